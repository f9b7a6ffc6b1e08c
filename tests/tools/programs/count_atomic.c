/* count_atomic KEY ROUNDS: adds 1 to the first word of the segment ROUNDS times with one locked instruction each, no
 * lock around it. Creates the segment when it does not exist. With ROUNDS 0 prints the word. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/shm.h>

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int id = shmget((key_t)strtol(argv[1], NULL, 0), 4096, IPC_CREAT | 0600);
  long *word = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
  if (word == (void *)-1) { perror("shmget or shmat"); return 1; }
  long rounds = atol(argv[2]);
  for (long i = 0; i < rounds; i++) __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
  if (rounds == 0) printf("%ld\n", *word);
  return 0;
}
