/* Plain POSIX: nothing here knows of kevre. Started as: worker KEYFILE ROUNDS
 * Adds 1 to the shared total and to its own counter ROUNDS times under the semaphore, then serves the work queue:
 * takes numbers (type 1), sends back their squares (type 2), until it takes a 0. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

struct shared { long total, own[3]; };
struct job { long type, number; };

static void die(const char *what) { perror(what); exit(1); }

static void change(int set, short by) {
  struct sembuf op = {0, by, SEM_UNDO};
  if (semop(set, &op, 1) != 0) die("semop");
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  key_t key = ftok(argv[1], 'k');
  int segment = shmget(key, 4096, 0600), set = semget(key, 1, 0600), queue = msgget(key, 0600);
  if (segment < 0 || set < 0 || queue < 0) die("shmget, semget or msgget");
  struct shared *shared = shmat(segment, NULL, 0);
  if (shared == (void *)-1) die("shmat");

  for (long i = 0; i < atol(argv[2]); i++) {
    change(set, -1);
    shared->total++;
    shared->own[2]++;
    change(set, +1);
  }
  long served = 0;
  for (struct job job; msgrcv(queue, &job, sizeof job.number, 1, 0) == sizeof job.number && job.number != 0; served++) {
    job.type = 2;
    job.number *= job.number;
    if (msgsnd(queue, &job, sizeof job.number, 0) != 0) die("msgsnd");
  }
  printf("served %ld\n", served);
  return shmdt(shared) == 0 ? 0 : 1;
}
