// counter KEY ROUNDS: adds to two counters of one segment, one by an atomic, one under a semaphore with
// SEM_UNDO. counter KEY make | show: makes the objects; prints both counters and removes the objects.
#include "check.h"

int main(int argc, char** argv) {
  if (argc != 3)
    return 2;
  key_t key = (key_t)atoi(argv[1]);
  int make = strcmp(argv[2], "make") == 0 ? IPC_CREAT | IPC_EXCL : 0;
  int memory = shmget(key, 8192, make | 0600), lock = semget(key, 1, make | 0600);
  if (memory < 0 || lock < 0)
    return 3;
  if (make)
    return semctl(lock, 0, SETVAL, 1) == 0 ? 0 : 4;
  volatile long* counters = shmat(memory, NULL, 0);
  if (counters == (void*)-1)
    return 5;
  if (strcmp(argv[2], "show") == 0) {
    printf("%ld %ld %d\n", counters[0], counters[512], semctl(lock, 0, GETVAL));
    shmctl(memory, IPC_RMID, NULL);
    semctl(lock, 0, IPC_RMID);
    return 0;
  }
  for (int i = atoi(argv[2]); i > 0; --i) {
    __atomic_fetch_add(&counters[0], 1, __ATOMIC_SEQ_CST);
    if (sem_do(lock, 0, -1, SEM_UNDO) != 0)
      return 6;
    counters[512] = counters[512] + 1;
    if (sem_do(lock, 0, 1, SEM_UNDO) != 0)
      return 7;
  }
  return 0;
}
