/* node_loss MODE KEY [PAGES [VALUE]]: what a program sees when a node goes. Prints "ready" and then how it ended.
 *   create   makes the segment, a semaphore at 0 and an empty queue
 *   sem      waits in semop; prints the error's name
 *   msg      waits in msgrcv; prints the error's name
 *   churn    writes random pages until SIGBUS, or until its input ends; prints "SIGBUS" or "done"
 *   fill     writes VALUE into every page, then waits for the end of its input
 *   check    attaches, waits for the end of its input, reads every page: "same N other N lost N" */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <unistd.h>

static sigjmp_buf lost_page;
static void on_bus(int number) { (void)number; siglongjmp(lost_page, 1); }
static const char *outcome(int result) { return result >= 0 ? "ok" : strerrorname_np(errno); }
static int fail(const char *what) { printf("%s: %s\n", what, strerrorname_np(errno)); return 1; }
static void wait_for_end_of_input(void) { char c; while (read(0, &c, 1) > 0) {} }
static int input_ended(void) {
  struct pollfd input = {0, POLLIN, 0};
  char c;
  return poll(&input, 1, 0) == 1 && read(0, &c, 1) <= 0;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  const char *mode = argv[1];
  key_t key = (key_t)strtol(argv[2], NULL, 0);
  long pages = argc > 3 ? atol(argv[3]) : 1, value = argc > 4 ? atol(argv[4]) : 0;
  int flags = strcmp(mode, "create") == 0 ? IPC_CREAT | IPC_EXCL | 0600 : 0600;
  int shm = shmget(key, (size_t)pages * 4096, flags), sem = semget(key, 1, flags), msg = msgget(key, flags);
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (shm < 0 || sem < 0 || msg < 0) return fail("get");
  if (flags & IPC_CREAT) { puts("created"); return 0; }
  if (strcmp(mode, "sem") == 0) {
    struct sembuf down = {0, -1, 0};
    puts("ready");
    puts(outcome(semop(sem, &down, 1)));
    return 0;
  }
  if (strcmp(mode, "msg") == 0) {
    struct { long type; char text[8]; } m;
    puts("ready");
    puts(outcome((int)msgrcv(msg, &m, sizeof m.text, 0, 0)));
    return 0;
  }
  char *memory = shmat(shm, NULL, 0);
  if (memory == (void *)-1) return fail("shmat");
  signal(SIGBUS, on_bus);
  if (strcmp(mode, "churn") == 0) {
    unsigned seed = (unsigned)getpid();
    if (sigsetjmp(lost_page, 1) != 0) { puts("SIGBUS"); return 0; }
    puts("ready");
    for (unsigned long i = 0; i % 64 != 0 || !input_ended(); i++) {
      __atomic_fetch_add((long *)(memory + (size_t)(rand_r(&seed) % pages) * 4096 + 8), 1, __ATOMIC_RELAXED);
    }
    puts("done");
    return 0;
  }
  if (strcmp(mode, "fill") == 0) {
    for (long i = 0; i < pages; i++) *(volatile long *)(memory + i * 4096) = value + i;
    puts("ready");
    wait_for_end_of_input();
    return 0;
  }
  long same = 0, other = 0;
  volatile long lost = 0, at = 0;
  puts("ready");
  wait_for_end_of_input();
  if (sigsetjmp(lost_page, 1) != 0) { lost++; at++; }
  for (; at < pages; at++) {
    if (*(volatile long *)(memory + at * 4096) == value + at) same++; else other++;
  }
  printf("same %ld other %ld lost %ld\n", same, other, lost);
  return 0;
}
