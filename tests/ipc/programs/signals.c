// Signals and threads around calls that wait: EINTR always, never restarted, never lost, no connection mixed
// up.
#include <setjmp.h>

#include "check.h"

static volatile sig_atomic_t handled;
static int g_id;
static sigjmp_buf g_jump;

static void count(int signal_number) {
  (void)signal_number;
  ++handled;
}
static void calls_ipc(int signal_number) {
  (void)signal_number;
  int before = errno;
  handled = semctl(g_id, 1, GETVAL) + 1;
  errno = before;
}
static void jumps(int signal_number) {
  (void)signal_number;
  siglongjmp(g_jump, 1);
}
static void on_signal(int number, void (*handler)(int), int flags) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigaction(number, &action, NULL);
}

static void interrupted(void) {
  struct itimerval soon = {{0, 0}, {0, 30000}};
  for (int flags = 0; flags <= SA_RESTART; flags += SA_RESTART) {
    on_signal(SIGALRM, count, flags);
    handled = 0;
    setitimer(ITIMER_REAL, &soon, NULL);
    FAILS(sem_do(g_id, 0, -1, 0), EINTR);
    CHECK(handled == 1);
  }
  int q = msgget(IPC_PRIVATE, 0600);
  struct {
    long type;
    char text[8192];
  } m = {1, ""};
  setitimer(ITIMER_REAL, &soon, NULL);
  FAILS(msgrcv(q, &m, 10, 0, 0), EINTR);
  CHECK(msgsnd(q, &m, 8192, 0) == 0 && msgsnd(q, &m, 8192, 0) == 0);
  setitimer(ITIMER_REAL, &soon, NULL);
  FAILS(msgsnd(q, &m, 1, 0), EINTR);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
  CHECK(semctl(g_id, 0, GETNCNT) == 0);
}

static void handler_calls_ipc(void) {
  struct itimerval soon = {{0, 0}, {0, 30000}};
  on_signal(SIGALRM, calls_ipc, 0);
  CHECK(semctl(g_id, 1, SETVAL, 41) == 0);
  handled = 0;
  setitimer(ITIMER_REAL, &soon, NULL);
  FAILS(sem_do(g_id, 0, -1, 0), EINTR);
  CHECK(handled == 42);
}

static void handler_jumps(void) {
  struct itimerval soon = {{0, 0}, {0, 30000}};
  on_signal(SIGALRM, jumps, 0);
  if (sigsetjmp(g_jump, 1) == 0) {
    setitimer(ITIMER_REAL, &soon, NULL);
    sem_do(g_id, 0, -1, 0);
    CHECK(!"came back");
  }
  UNTIL(semctl(g_id, 0, GETNCNT) == 0);  // nobody waits for it any more
  CHECK(sem_do(g_id, 0, 1, 0) == 0);
  CHECK(semctl(g_id, 0, GETVAL) == 1);
  CHECK(sem_do(g_id, 0, -1, 0) == 0);
}

// A storm of signals around posts and waits: every post is taken by exactly one wait that returned 0.
static void storm(void) {
  enum { kRounds = 300 };
  on_signal(SIGUSR1, count, 0);
  pid_t parent = getpid();
  pid_t annoyer = fork();
  if (annoyer == 0) {
    for (;;) {
      kill(parent, SIGUSR1);
      wait_ms(1);
    }
  }
  pid_t poster = fork();
  if (poster == 0) {
    on_signal(SIGUSR1, SIG_IGN, 0);
    for (int i = 0; i < kRounds; ++i) {
      if (sem_do(g_id, 0, 1, 0) != 0)
        _exit(1);
    }
    _exit(0);
  }
  int taken = 0;
  while (taken < kRounds) {
    if (sem_do(g_id, 0, -1, 0) == 0) {
      ++taken;
    } else if (errno != EINTR) {
      CHECK(!"another errno");
      break;
    }
  }
  kill(annoyer, SIGKILL);
  status_of(annoyer);
  int status = 0;
  while (waitpid(poster, &status, 0) < 0 && errno == EINTR) {
  }
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(semctl(g_id, 0, GETVAL) == 0);
}

static void* worker(void* unused) {
  (void)unused;
  for (int i = 0; i < 200; ++i) {
    if (sem_do(g_id, 2, -1, 0) != 0 || sem_do(g_id, 2, 1, 0) != 0)
      return (void*)1;
  }
  return NULL;
}

static void threads(void) {
  pthread_t all[8];
  CHECK(semctl(g_id, 2, SETVAL, 1) == 0);
  for (int i = 0; i < 8; ++i)
    pthread_create(&all[i], NULL, worker, NULL);
  for (int i = 0; i < 8; ++i) {
    void* result = NULL;
    pthread_join(all[i], &result);
    CHECK(result == NULL);
  }
  CHECK(semctl(g_id, 2, GETVAL) == 1);
}

static void* receiver(void* q) {
  struct {
    long type;
    char text[10];
  } m;
  msgrcv(*(int*)q, &m, 10, 0, 0);
  return NULL;
}

static void cancelled_thread(void) {
  int q = msgget(IPC_PRIVATE, 0600);
  pthread_t thread;
  pthread_create(&thread, NULL, receiver, &q);
  wait_ms(50);
  pthread_cancel(thread);
  void* result = NULL;
  pthread_join(thread, &result);
  CHECK(result == PTHREAD_CANCELED);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
}

static void closed_descriptors(void) {
  pid_t child = fork();
  if (child == 0) {
    semctl(g_id, 0, GETVAL);
    for (int fd = 3; fd < 2000; ++fd)
      close(fd);
    _exit(semctl(g_id, 1, GETVAL) == 41 ? 0 : 1);
  }
  CHECK(status_of(child) == 0);
}

int main(void) {
  g_id = semget(IPC_PRIVATE, 3, 0600);
  interrupted();
  handler_calls_ipc();
  handler_jumps();
  storm();
  threads();
  cancelled_thread();
  closed_descriptors();
  errno = 77;
  semctl(g_id, 1, GETVAL);
  CHECK(1);
  CHECK(semctl(g_id, 0, IPC_RMID) == 0);
  return finish();
}
