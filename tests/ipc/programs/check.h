// For the conformance programs: plain C, the same oracle natively and under kevre. Exit 0: every check held.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int failures;

#define CHECK(condition)                                                                                    \
  do {                                                                                                      \
    errno = 0;                                                                                              \
    if (!(condition)) {                                                                                     \
      fprintf(stderr, "%s:%d: %s (errno %d %s)\n", __FILE__, __LINE__, #condition, errno, strerror(errno)); \
      ++failures;                                                                                           \
    }                                                                                                       \
  } while (0)
// The call fails with exactly this errno.
#define FAILS(call, error) CHECK((call) == -1 && errno == (error))

static inline int sem_do(int id, int number, int value, int flags) {
  struct sembuf operation = {(unsigned short)number, (short)value, (short)flags};
  return semop(id, &operation, 1);
}
static inline void wait_ms(int ms) {  // between polls of a condition, never instead of one
  struct timespec t = {0, ms * 1000000L};
  nanosleep(&t, NULL);
}
// Waits until the condition holds, at most ten seconds.
#define UNTIL(condition)                    \
  do {                                      \
    int tries_ = 0;                         \
    while (!(condition) && ++tries_ < 5000) \
      wait_ms(2);                           \
    CHECK(condition);                       \
  } while (0)
static inline int status_of(pid_t child) {
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
static inline int finish(void) {
  return failures == 0 ? 0 : 1;
}
