// Semaphores: calls, errors and their order, values, undo, who waits.
#include "check.h"

static int values(int id, int number) {
  return semctl(id, number, GETVAL);
}

static void errors(void) {
  int id = semget(IPC_PRIVATE, 2, 0600);
  CHECK(id >= 0);
  struct sembuf many[501];
  memset(many, 0, sizeof many);
  FAILS(semop(id, many, 0), EINVAL);
  FAILS(semop(99999999, many, 501), E2BIG);
  FAILS(semop(id, (struct sembuf*)8, 1), EFAULT);
  FAILS(semop(-1, many, 1), EINVAL);
  FAILS(sem_do(id, 2, 1, 0), EFBIG);
  FAILS(sem_do(id, 0, -1, IPC_NOWAIT), EAGAIN);
  CHECK(sem_do(id, 0, 32767, 0) == 0);
  FAILS(sem_do(id, 0, 1, 0), ERANGE);
  FAILS(sem_do(id, 0, 0, IPC_NOWAIT), EAGAIN);
  FAILS(semctl(id, 0, SETVAL, 32768), ERANGE);
  FAILS(semctl(id, 0, SETVAL, -1), ERANGE);
  FAILS(semctl(id, 2, GETVAL), EINVAL);
  FAILS(semctl(id, 0, 12345), EINVAL);
  FAILS(semctl(id, 0, IPC_STAT, (void*)8), EFAULT);
  FAILS(semget(IPC_PRIVATE, 0, 0600), EINVAL);
  FAILS(semget(IPC_PRIVATE, 32001, 0600), EINVAL);
  struct timespec bad = {0, 1000000000};
  FAILS(semtimedop(id, many, 1, &bad), EINVAL);
  FAILS(semtimedop(id, many, 1, (struct timespec*)8), EFAULT);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
  FAILS(semctl(id, 0, IPC_RMID), EINVAL);
}

static void all_values(void) {
  int id = semget(IPC_PRIVATE, 300, 0600);
  unsigned short in[300], out[300];
  for (int i = 0; i < 300; ++i)
    in[i] = (unsigned short)(i * 7);
  CHECK(semctl(id, 0, SETALL, in) == 0);
  CHECK(semctl(id, 0, GETALL, out) == 0);
  CHECK(memcmp(in, out, sizeof in) == 0);
  CHECK(values(id, 299) == 299 * 7);
  CHECK(semctl(id, 5, GETPID) == getpid());
  struct semid_ds ds;
  CHECK(semctl(id, 0, IPC_STAT, &ds) == 0);
  CHECK(ds.sem_nsems == 300 && (ds.sem_perm.mode & 0777) == 0600 && ds.sem_otime == 0 && ds.sem_ctime != 0);
  CHECK(sem_do(id, 0, 1, 0) == 0);
  CHECK(semctl(id, 0, IPC_STAT, &ds) == 0 && ds.sem_otime != 0);
  in[3] = 40000;
  FAILS(semctl(id, 0, SETALL, in), ERANGE);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void atomic_and_hand_off(void) {
  int id = semget(IPC_PRIVATE, 2, 0600);
  pid_t child = fork();
  if (child == 0) {
    struct sembuf both[2] = {{0, 1, 0}, {1, -1, 0}};
    _exit(semop(id, both, 2) == 0 ? 0 : 1);
  }
  UNTIL(semctl(id, 1, GETNCNT) == 1);
  CHECK(semctl(id, 0, GETNCNT) == 0);
  CHECK(values(id, 0) == 0);
  CHECK(sem_do(id, 1, 1, 0) == 0);
  FAILS(sem_do(id, 1, -1, IPC_NOWAIT), EAGAIN);
  CHECK(values(id, 0) == 1);
  CHECK(status_of(child) == 0);
  CHECK(semctl(id, 1, GETPID) == child);
  child = fork();
  if (child == 0)
    _exit(sem_do(id, 0, 0, 0) == 0 ? 0 : 1);
  UNTIL(semctl(id, 0, GETZCNT) == 1);
  CHECK(sem_do(id, 0, -1, 0) == 0);
  CHECK(status_of(child) == 0);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void undo(void) {
  int id = semget(IPC_PRIVATE, 1, 0600);
  CHECK(semctl(id, 0, SETVAL, 5) == 0);
  pid_t child = fork();
  if (child == 0) {
    sem_do(id, 0, -2, SEM_UNDO);
    pid_t grandchild = fork();  // does not inherit it
    if (grandchild == 0)
      _exit(values(id, 0) == 3 ? 0 : 1);
    _exit(status_of(grandchild) == 0 && values(id, 0) == 3 ? 0 : 1);
  }
  CHECK(status_of(child) == 0);
  UNTIL(values(id, 0) == 5);
  child = fork();
  if (child == 0) {
    sem_do(id, 0, -5, SEM_UNDO);
    for (;;)
      pause();
  }
  UNTIL(values(id, 0) == 0);
  pid_t waiter = fork();
  if (waiter == 0)
    _exit(sem_do(id, 0, -5, 0) == 0 ? 0 : 1);
  UNTIL(semctl(id, 0, GETNCNT) == 1);
  kill(child, SIGKILL);
  CHECK(status_of(child) == 128 + SIGKILL);
  CHECK(status_of(waiter) == 0);
  CHECK(values(id, 0) == 0);
  // Survives exec, and is applied when the new program ends.
  CHECK(semctl(id, 0, SETVAL, 2) == 0);
  int gate[2];
  CHECK(pipe(gate) == 0);
  child = fork();
  if (child == 0) {
    sem_do(id, 0, -1, SEM_UNDO);
    dup2(gate[0], 0);
    close(gate[0]);
    close(gate[1]);
    execlp("cat", "cat", (char*)NULL);
    _exit(1);
  }
  close(gate[0]);
  UNTIL(values(id, 0) == 1);
  wait_ms(100);  // exec happens; nothing may change
  CHECK(values(id, 0) == 1);
  close(gate[1]);
  CHECK(status_of(child) == 0);
  UNTIL(values(id, 0) == 2);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void* thread_undo(void* id) {
  sem_do(*(int*)id, 0, 1, SEM_UNDO);
  return NULL;
}

static void undo_of_threads(void) {
  int id = semget(IPC_PRIVATE, 1, 0600);
  pid_t child = fork();
  if (child == 0) {
    pthread_t thread;
    pthread_create(&thread, NULL, thread_undo, &id);
    pthread_join(thread, NULL);
    _exit(values(id, 0) == 1 ? 0 : 1);  // the process lives: not undone
  }
  CHECK(status_of(child) == 0);
  UNTIL(values(id, 0) == 0);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void removed_while_waiting(void) {
  int id = semget(IPC_PRIVATE, 1, 0600);
  pid_t child = fork();
  if (child == 0)
    _exit(sem_do(id, 0, -1, 0) == -1 && errno == EIDRM ? 0 : 1);
  UNTIL(semctl(id, 0, GETNCNT) == 1);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
  CHECK(status_of(child) == 0);
}

static void times_out(void) {
  int id = semget(IPC_PRIVATE, 1, 0600);
  struct sembuf take = {0, -1, 0};
  struct timespec short_time = {0, 30000000}, none = {0, 0}, before, after;
  clock_gettime(CLOCK_MONOTONIC, &before);
  FAILS(semtimedop(id, &take, 1, &short_time), EAGAIN);
  clock_gettime(CLOCK_MONOTONIC, &after);
  CHECK((after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec >= 30000000);
  FAILS(semtimedop(id, &take, 1, &none), EAGAIN);
  CHECK(semctl(id, 0, SETVAL, 1) == 0);
  CHECK(semtimedop(id, &take, 1, &none) == 0);
  CHECK(semctl(id, 0, GETNCNT) == 0);
  CHECK(syscall(SYS_semop, id, &(struct sembuf){0, 1, 0}, 1) == 0);
  CHECK(values(id, 0) == 1);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void information(void) {
  struct seminfo info;
  CHECK(semctl(0, 0, IPC_INFO, &info) >= 0);
  CHECK(info.semvmx == 32767 && info.semmsl == 32000 && info.semopm == 500 && info.semmni == 32000);
  int id = semget(IPC_PRIVATE, 4, 0600);
  int highest = semctl(0, 0, SEM_INFO, &info);
  CHECK(highest >= 0 && info.semusz >= 1 && info.semaem >= 4);
  struct semid_ds ds;
  int found = 0;
  for (int i = 0; i <= highest; ++i)
    found |= semctl(i, 0, SEM_STAT, &ds) == id;
  CHECK(found);
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

int main(void) {
  errors();
  all_values();
  atomic_and_hand_off();
  undo();
  undo_of_threads();
  removed_while_waiting();
  times_out();
  information();
  return finish();
}
