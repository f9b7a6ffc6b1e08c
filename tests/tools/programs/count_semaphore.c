/* count_semaphore KEY ROUNDS: ROUNDS times: down, read and write a plain counter in the segment, up (with SEM_UNDO, so
 * that a kill inside leaves the semaphore usable). Word 0: the counter; word 1: number of processes that were killed
 * inside the critical section is found by the test as the difference. With ROUNDS 0 prints the counter; -1 creates the
 * objects with the semaphore at 1. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/sem.h>
#include <sys/shm.h>

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  key_t key = (key_t)strtol(argv[1], NULL, 0);
  long rounds = atol(argv[2]);
  int flags = rounds < 0 ? IPC_CREAT | IPC_EXCL | 0600 : 0600;
  int id = shmget(key, 4096, flags), set = semget(key, 1, flags);
  volatile long *word = id < 0 || set < 0 ? (void *)-1 : shmat(id, NULL, 0);
  if (word == (void *)-1) { perror("shmget, semget or shmat"); return 1; }
  if (rounds < 0 && semctl(set, 0, SETVAL, 1) != 0) { perror("semctl"); return 1; }
  for (long i = 0; i < rounds; i++) {
    struct sembuf down = {0, -1, SEM_UNDO}, up = {0, 1, SEM_UNDO};
    if (semop(set, &down, 1) != 0) { perror("semop down"); return 1; }
    *word = *word + 1;
    if (semop(set, &up, 1) != 0) { perror("semop up"); return 1; }
  }
  if (rounds == 0) printf("%ld\n", *word);
  return 0;
}
