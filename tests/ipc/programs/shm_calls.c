// Shared memory: calls, errors, addresses, attachments over fork, exec, exit and kill.
#include "check.h"

static unsigned long attached(int id) {
  struct shmid_ds ds;
  return shmctl(id, IPC_STAT, &ds) == 0 ? ds.shm_nattch : 999;
}

static void errors(void) {
  FAILS(shmget(IPC_PRIVATE, 0, 0600), EINVAL);
  FAILS(shmget(IPC_PRIVATE, (size_t)-1, 0600), EINVAL);
  FAILS(shmget(0x7b76696b, 100, 0600), ENOENT);
  int id = shmget(IPC_PRIVATE, 5000, 0600);
  CHECK(id >= 0);
  CHECK(shmat(-1, NULL, 0) == (void*)-1 && errno == EINVAL);
  CHECK(shmat(id, (void*)0x12345, 0) == (void*)-1 && errno == EINVAL);
  CHECK(shmat(id, NULL, SHM_REMAP) == (void*)-1 && errno == EINVAL);
  FAILS(shmdt((void*)0x1000), EINVAL);
  FAILS(shmctl(id, 4711, NULL), EINVAL);
  FAILS(shmctl(id, IPC_STAT, (void*)8), EFAULT);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
  FAILS(shmctl(id, IPC_STAT, NULL), EINVAL);
}

static void addresses(void) {
  int id = shmget(IPC_PRIVATE, 5000, 0600);
  char* a = shmat(id, NULL, 0);
  CHECK(a != (void*)-1);
  CHECK(a[0] == 0 && a[4999] == 0 && a[8191] == 0);
  strcpy(a, "same memory");
  char* b = shmat(id, NULL, 0);
  CHECK(b != a && strcmp(b, "same memory") == 0);
  CHECK(attached(id) == 2);
  CHECK(shmat(id, a, 0) == (void*)-1 && errno == EINVAL);  // in use
  FAILS(shmdt(a + 4096), EINVAL);
  CHECK(shmdt(a) == 0);
  FAILS(shmdt(a), EINVAL);
  CHECK(attached(id) == 1);
  char* c = shmat(id, a + 100, SHM_RND);
  CHECK(c == a && strcmp(c, "same memory") == 0);
  char* d = shmat(id, a, SHM_REMAP);
  CHECK(d == a && strcmp(d, "same memory") == 0);
  CHECK(shmdt(d) == 0);
  char* r = shmat(id, NULL, SHM_RDONLY);
  CHECK(strcmp(r, "same memory") == 0);
  pid_t child = fork();
  if (child == 0) {
    r[0] = 'x';
    _exit(0);
  }
  CHECK(status_of(child) == 128 + SIGSEGV);
  CHECK(shmdt(r) == 0 && shmdt(b) == 0);
  CHECK(attached(id) == 0);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static void forks(void) {
  int id = shmget(IPC_PRIVATE, 4096, 0600);
  int gate[2];
  CHECK(pipe(gate) == 0);
  volatile int* word = shmat(id, NULL, 0);
  *word = 7;
  pid_t child = fork();
  if (child == 0) {
    char c;
    close(gate[1]);
    int right = *word == 7;
    *word = 8;
    right &= read(gate[0], &c, 1) == 0;
    _exit(right && shmdt((void*)word) == 0 ? 0 : 1);
  }
  CHECK(attached(id) == 2);
  UNTIL(*word == 8);
  close(gate[0]);
  close(gate[1]);
  CHECK(status_of(child) == 0);
  UNTIL(attached(id) == 1);
  child = fork();
  if (child == 0) {
    *word = 9;
    for (;;)
      pause();
  }
  UNTIL(*word == 9);
  CHECK(attached(id) == 2);
  kill(child, SIGKILL);
  status_of(child);
  UNTIL(attached(id) == 1);
  CHECK(pipe(gate) == 0);
  child = fork();
  if (child == 0) {
    dup2(gate[0], 0);
    close(gate[0]);
    close(gate[1]);
    execlp("cat", "cat", (char*)NULL);
    _exit(1);
  }
  close(gate[0]);
  UNTIL(attached(id) == 1);  // exec detaches
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
  struct shmid_ds ds;
  CHECK(shmctl(id, IPC_STAT, &ds) == 0 && (ds.shm_perm.mode & SHM_DEST) != 0 && ds.shm_cpid == getpid());
  CHECK(shmdt((void*)word) == 0);
  FAILS(shmctl(id, IPC_STAT, &ds), EINVAL);
  close(gate[1]);
  CHECK(status_of(child) == 0);
}

static void removed_while_attached(void) {
  key_t key = 0x6b760000 | (getpid() & 0xffff);
  int id = shmget(key, 100, IPC_CREAT | IPC_EXCL | 0600);
  FAILS(shmget(key, 100, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
  FAILS(shmget(key, 101, 0), EINVAL);
  CHECK(shmget(key, 0, 0) == id);
  char* a = shmat(id, NULL, 0);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
  char* b = shmat(id, NULL, 0);
  CHECK(b != (void*)-1);
  a[5] = 'k';
  CHECK(b[5] == 'k');
  int other = shmget(key, 100, IPC_CREAT | IPC_EXCL | 0600);
  CHECK(other >= 0 && other != id);
  CHECK(shmdt(a) == 0 && shmdt(b) == 0);
  FAILS(shmctl(id, IPC_RMID, NULL), EINVAL);
  CHECK(shmctl(other, IPC_RMID, NULL) == 0);
}

static void information(void) {
  struct shminfo info;
  CHECK(shmctl(0, IPC_INFO, (struct shmid_ds*)&info) >= 0);
  CHECK(info.shmmni == 4096 && info.shmmin == 1);
  int id = shmget(IPC_PRIVATE, 4097, 0600);
  struct shm_info used;
  int highest = shmctl(0, SHM_INFO, (struct shmid_ds*)&used);
  CHECK(highest >= 0 && used.used_ids >= 1 && used.shm_tot >= 2);
  CHECK(shmctl(id, SHM_LOCK, NULL) == 0);
  struct shmid_ds ds;
  CHECK(shmctl(id, IPC_STAT, &ds) == 0 && (ds.shm_perm.mode & SHM_LOCKED) != 0);
  CHECK(shmctl(id, SHM_UNLOCK, NULL) == 0);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

int main(void) {
  errors();
  addresses();
  forks();
  removed_while_attached();
  information();
  return finish();
}
