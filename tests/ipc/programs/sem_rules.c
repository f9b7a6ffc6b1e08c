// Semaphores, the finer rules: rights, keys, ids, undo, the order of waking, what is recorded.
#include "check.h"

#define NOBODY 65534

static int value(int id, int number) {
  return semctl(id, number, GETVAL);
}
static struct semid_ds stat_of(int id) {
  struct semid_ds ds;
  memset(&ds, 0, sizeof ds);
  CHECK(semctl(id, 0, IPC_STAT, &ds) == 0);
  return ds;
}
// In a child that is somebody else. The number of failed checks.
static int as_nobody(void (*what)(int), int id) {
  pid_t child = fork();
  if (child == 0) {
    failures = 0;
    CHECK(setgroups(0, NULL) == 0 && setregid(NOBODY, NOBODY) == 0 && setreuid(NOBODY, NOBODY) == 0);
    what(id);
    _exit(failures);
  }
  return status_of(child);
}

static void nothing_allowed(int id) {
  struct semid_ds ds;
  unsigned short all[3] = {0};
  FAILS(sem_do(id, 0, 1, 0), EACCES);
  FAILS(sem_do(id, 0, 0, IPC_NOWAIT), EACCES);
  FAILS(semctl(id, 0, GETVAL), EACCES);
  FAILS(semctl(id, 0, GETALL, all), EACCES);
  FAILS(semctl(id, 0, GETPID), EACCES);
  FAILS(semctl(id, 0, GETNCNT), EACCES);
  FAILS(semctl(id, 0, GETZCNT), EACCES);
  FAILS(semctl(id, 0, SETVAL, 1), EACCES);
  FAILS(semctl(id, 0, SETVAL, -1), ERANGE);
  FAILS(semctl(id, 0, SETALL, all), EACCES);
  FAILS(semctl(id, 0, IPC_STAT, &ds), EACCES);
  FAILS(semctl(id, 0, IPC_RMID), EPERM);
  memset(&ds, 0, sizeof ds);
  FAILS(semctl(id, 0, IPC_SET, &ds), EPERM);
  struct seminfo info;
  int highest = semctl(0, 0, SEM_INFO, &info), found = 0;
  for (int i = 0; i <= highest; ++i)
    found |= semctl(i, 0, SEM_STAT_ANY, &ds) == id;
  CHECK(found);
}
static void reading_allowed(int id) {
  struct semid_ds ds;
  CHECK(semctl(id, 0, GETVAL) == 0);
  CHECK(semctl(id, 0, IPC_STAT, &ds) == 0);
  CHECK(sem_do(id, 0, 0, 0) == 0);
  FAILS(sem_do(id, 0, 1, 0), EACCES);
  FAILS(semctl(id, 0, SETVAL, 1), EACCES);
}
static void others_key(int id) {
  CHECK(semget(0x5e3a0001, 0, 0) == id);  // no rights asked for
  FAILS(semget(0x5e3a0001, 1, 0400), EACCES);
  FAILS(semget(0x5e3a0001, 1, 0004), EACCES);
}
static void given(int id) {
  CHECK(semctl(id, 0, SETVAL, 3) == 0);
  CHECK(sem_do(id, 0, -3, 0) == 0);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void rights(void) {
  if (geteuid() != 0)
    return;
  int id = semget(0x5e3a0001, 3, IPC_CREAT | IPC_EXCL | 0600);
  CHECK(id >= 0);
  CHECK(as_nobody(nothing_allowed, id) == 0);
  CHECK(as_nobody(others_key, id) == 0);
  struct semid_ds ds = stat_of(id);
  time_t changed = ds.sem_ctime;
  ds.sem_perm.mode = 01604;
  CHECK(semctl(id, 0, IPC_SET, &ds) == 0);
  ds = stat_of(id);
  CHECK((ds.sem_perm.mode & 01777) == 0604 && ds.sem_ctime >= changed && ds.sem_otime == 0);
  CHECK(as_nobody(reading_allowed, id) == 0);
  ds.sem_perm.uid = NOBODY;
  CHECK(semctl(id, 0, IPC_SET, &ds) == 0);
  ds = stat_of(id);
  CHECK(ds.sem_perm.uid == NOBODY && ds.sem_perm.cuid == 0 && ds.sem_perm.cgid == 0);
  CHECK(as_nobody(given, id) == 0);
  FAILS(semctl(id, 0, IPC_STAT, &ds), EINVAL);
}

static void keys_and_ids(void) {
  FAILS(semget(0x5e3a0002, 1, 0600), ENOENT);
  int id = semget(0x5e3a0002, 2, IPC_CREAT | 0600);
  CHECK(id >= 0);
  CHECK(semget(0x5e3a0002, 2, IPC_CREAT | 0600) == id && semget(0x5e3a0002, 0, 0) == id);
  CHECK(semget(0x5e3a0002, 1, 0600) == id);
  FAILS(semget(0x5e3a0002, 3, 0600), EINVAL);
  FAILS(semget(0x5e3a0002, 2, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
  FAILS(semget(0x5e3a0002, -1, 0600), EINVAL);
  FAILS(semget(0x5e3a0002, 32001, IPC_CREAT | 0600), EINVAL);
  int a = semget(IPC_PRIVATE, 1, 0), b = semget(IPC_PRIVATE, 1, 0);
  CHECK(a >= 0 && b >= 0 && a != b);
  CHECK(semctl(a, 0, IPC_RMID) == 0 && semctl(b, 0, IPC_RMID) == 0);
  int big = semget(IPC_PRIVATE, 32000, 0600);
  CHECK(big >= 0 && sem_do(big, 31999, 1, 0) == 0 && value(big, 31999) == 1);
  CHECK(semctl(big, 0, IPC_RMID) == 0);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
  FAILS(sem_do(id, 0, 1, 0), EINVAL);
  // A slot that is used again tells the old id from the new one.
  for (int i = 0; i < 200; ++i) {
    int next = semget(IPC_PRIVATE, 1, 0600);
    CHECK(next != id);
    CHECK(semctl(next, 0, IPC_RMID) == 0);
  }
}

static void array_rules(void) {
  int id = semget(IPC_PRIVATE, 500, 0600);
  struct sembuf all[500];
  for (int i = 0; i < 500; ++i)
    all[i] = (struct sembuf){(unsigned short)i, 2, 0};
  CHECK(semop(id, all, 500) == 0 && value(id, 499) == 2);
  for (int i = 0; i < 500; ++i)
    all[i].sem_op = (short)(i == 499 ? -3 : -1);
  all[499].sem_flg = IPC_NOWAIT;
  FAILS(semop(id, all, 500), EAGAIN);  // nothing of it was done
  CHECK(value(id, 0) == 2 && value(id, 498) == 2);
  // One semaphore several times: in order.
  struct sembuf steps[3] = {{0, -2, 0}, {0, 0, 0}, {0, 5, 0}};
  CHECK(semop(id, steps, 3) == 0 && value(id, 0) == 5);
  struct sembuf over[2] = {{0, 1, 0}, {1, 32767, 0}};
  FAILS(semop(id, over, 2), ERANGE);
  CHECK(value(id, 0) == 5 && value(id, 1) == 2);
  over[1].sem_num = 500;
  FAILS(semop(id, over, 2), EFBIG);
  CHECK(semctl(id, 0, SETVAL, 32767) == 0 && value(id, 0) == 32767);
  FAILS(sem_do(id, 0, 1, SEM_UNDO), ERANGE);
  CHECK(sem_do(id, 0, -32767, 0) == 0 && value(id, 0) == 0);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void recorded(void) {
  int id = semget(IPC_PRIVATE, 2, 0600);
  CHECK(semctl(id, 0, GETPID) == 0);
  pid_t child = fork();
  if (child == 0)
    _exit(sem_do(id, 0, 0, 0) == 0 ? 0 : 1);
  CHECK(status_of(child) == 0);
  CHECK(semctl(id, 0, GETPID) == child && semctl(id, 1, GETPID) == 0);
  CHECK(semctl(id, 1, SETVAL, 4) == 0 && semctl(id, 1, GETPID) == getpid());
  child = fork();
  if (child == 0) {
    CHECK(sem_do(id, 1, -1, SEM_UNDO) == 0);
    _exit(failures);
  }
  CHECK(status_of(child) == 0);
  UNTIL(value(id, 1) == 4);
  CHECK(semctl(id, 1, GETPID) == child);
  CHECK(stat_of(id).sem_otime >= stat_of(id).sem_ctime - 1);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void undo_rules(void) {
  int id = semget(IPC_PRIVATE, 2, 0600);
  // SETVAL forgets what was to be undone; SETALL too.
  for (int way = 0; way < 2; ++way) {
    CHECK(semctl(id, 0, SETVAL, 10) == 0);
    int go[2], done[2];
    char byte = 0;
    CHECK(pipe(go) == 0 && pipe(done) == 0);
    pid_t child = fork();
    if (child == 0) {
      sem_do(id, 0, -3, SEM_UNDO);
      _exit(write(done[1], &byte, 1) == 1 && read(go[0], &byte, 1) == 1 ? 0 : 1);
    }
    CHECK(read(done[0], &byte, 1) == 1);
    unsigned short both[2] = {7, 0};
    CHECK(way == 0 ? semctl(id, 0, SETVAL, 7) == 0 : semctl(id, 0, SETALL, both) == 0);
    CHECK(write(go[1], &byte, 1) == 1 && status_of(child) == 0);
    wait_ms(30);  // an undo would be done about now
    CHECK(value(id, 0) == 7);
    close(go[0]), close(go[1]), close(done[0]), close(done[1]);
  }
  // What is undone stays between 0 and SEMVMX.
  CHECK(semctl(id, 0, SETVAL, 0) == 0);
  pid_t child = fork();
  if (child == 0) {
    sem_do(id, 0, 5, SEM_UNDO);
    sem_do(id, 0, -4, 0);
    sem_do(id, 1, -1, 0);
    _exit(0);
  }
  UNTIL(semctl(id, 1, GETNCNT) == 1);
  CHECK(value(id, 0) == 1);
  CHECK(sem_do(id, 1, 1, 0) == 0 && status_of(child) == 0);
  UNTIL(value(id, 0) == 0);
  // Sums over several operations are undone together.
  child = fork();
  if (child == 0) {
    for (int i = 0; i < 10; ++i)
      sem_do(id, 0, 2, SEM_UNDO);
    for (int i = 0; i < 5; ++i)
      sem_do(id, 0, -2, SEM_UNDO);
    kill(getpid(), SIGKILL);
  }
  CHECK(status_of(child) == 128 + SIGKILL);
  UNTIL(value(id, 0) == 0);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static pid_t taker(int id, int amount, int mark) {
  pid_t child = fork();
  if (child == 0) {
    if (sem_do(id, 0, -amount, 0) != 0)
      _exit(1);
    _exit(sem_do(id, mark, 1, 0) == 0 ? 0 : 1);
  }
  return child;
}

static void order(void) {
  int id = semget(IPC_PRIVATE, 4, 0600);
  pid_t a = taker(id, 2, 1);
  UNTIL(semctl(id, 0, GETNCNT) == 1);
  pid_t b = taker(id, 1, 2);
  UNTIL(semctl(id, 0, GETNCNT) == 2);
  pid_t c = taker(id, 1, 3);
  UNTIL(semctl(id, 0, GETNCNT) == 3);
  CHECK(sem_do(id, 0, 1, 0) == 0 && status_of(b) == 0);
  CHECK(semctl(id, 0, GETNCNT) == 2 && value(id, 0) == 0 && value(id, 2) == 1);
  CHECK(sem_do(id, 0, 3, 0) == 0 && status_of(a) == 0 && status_of(c) == 0);
  CHECK(value(id, 0) == 0 && value(id, 1) == 1 && value(id, 3) == 1);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

struct thread_wait {
  int id, number, result;
};
static void* waits(void* p) {
  struct thread_wait* w = p;
  w->result = sem_do(w->id, w->number, -1, 0) == 0 ? 0 : errno;
  return NULL;
}
static void threads(void) {
  enum { kThreads = 40 };
  int id = semget(IPC_PRIVATE, 2, 0600);
  pthread_t thread[kThreads];
  struct thread_wait w[kThreads];
  for (int i = 0; i < kThreads; ++i) {
    w[i] = (struct thread_wait){id, i % 2, -1};
    CHECK(pthread_create(&thread[i], NULL, waits, &w[i]) == 0);
  }
  UNTIL(semctl(id, 0, GETNCNT) == kThreads / 2 && semctl(id, 1, GETNCNT) == kThreads / 2);
  CHECK(sem_do(id, 0, kThreads / 2, 0) == 0);
  for (int i = 0; i < kThreads; i += 2) {
    pthread_join(thread[i], NULL);
    CHECK(w[i].result == 0);
  }
  CHECK(semctl(id, 1, GETNCNT) == kThreads / 2);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
  for (int i = 1; i < kThreads; i += 2) {
    pthread_join(thread[i], NULL);
    CHECK(w[i].result == EIDRM);
  }
}

static void errno_stays(void) {
  int id = semget(IPC_PRIVATE, 1, 0600);
  errno = 77;
  if (sem_do(id, 0, 1, 0) != 0 || value(id, 0) != 1 || semctl(id, 0, SETVAL, 0) != 0 || errno != 77)
    ++failures, fprintf(stderr, "errno changed to %d\n", errno);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

int main(void) {
  rights();
  keys_and_ids();
  array_rules();
  recorded();
  undo_rules();
  order();
  threads();
  errno_stays();
  return finish();
}
