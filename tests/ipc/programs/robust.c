// Programs that do to their process what daemons and frameworks do, and then use IPC.
#include <dlfcn.h>
#include <sched.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "check.h"

static int g_id;  // a set of four semaphores
extern char** environ;

static int works(void) {
  return sem_do(g_id, 0, 1, 0) == 0 && sem_do(g_id, 0, -1, 0) == 0 ? 0 : 1;
}
static int in_child(int (*what)(void)) {
  pid_t child = fork();
  if (child == 0) {
    alarm(30);
    _exit(what());
  }
  return status_of(child);
}

static int closes_everything(void) {
  int before = works();
  close_range(3, ~0u, 0);
  // Others take the numbers: they are not to be touched.
  int files[40];
  for (int i = 0; i < 40; ++i)
    files[i] = fcntl(open("/dev/null", O_RDONLY), F_DUPFD, 900 + 3 * i);
  int after = works();
  for (int i = 0; i < 40; ++i)
    if (fcntl(files[i], F_GETFD) < 0)
      return 2;
  return before | after;
}
static int closes_and_reuses_with_memory(void) {
  int id = shmget(IPC_PRIVATE, 4096, 0600);
  char* p = shmat(id, NULL, 0);
  p[0] = 'a';
  closefrom(3);
  int keep[1100];
  for (int i = 3; i < 1020; ++i)
    keep[i] = open("/dev/null", O_RDONLY);
  int kept_open = keep[3];
  int in_its_child = in_child(works);
  int fine = works() == 0 && in_its_child == 0 && p[0] == 'a' && fcntl(kept_open, F_GETFD) >= 0;
  for (int i = 3; i < 1020; ++i)
    fine &= keep[i] < 0 || fcntl(keep[i], F_GETFD) >= 0;
  fine &= shmdt(p) == 0 && shmctl(id, IPC_RMID, NULL) == 0;
  return fine ? 0 : 1;
}
static int clears_the_environment(void) {
  clearenv();
  return works();
}
static int has_few_descriptors(void) {
  struct rlimit few = {6, 6};
  close_range(3, ~0u, 0);
  if (setrlimit(RLIMIT_NOFILE, &few) != 0)
    return 2;
  int id = shmget(IPC_PRIVATE, 4096, 0600);
  char* p = shmat(id, NULL, 0);
  if (p == (void*)-1)
    return 3;
  return works() | shmdt(p) | shmctl(id, IPC_RMID, NULL);
}
static int uses_all_descriptors(void) {
  struct rlimit soft;
  getrlimit(RLIMIT_NOFILE, &soft);
  soft.rlim_cur = 64;
  setrlimit(RLIMIT_NOFILE, &soft);
  while (open("/dev/null", O_RDONLY) >= 0) {
  }
  return works();
}
static int changes_its_root(void) {
  char folder[] = "/tmp/kevre-chroot-XXXXXX";
  if (geteuid() != 0)
    return 0;
  if (mkdtemp(folder) == NULL || chroot(folder) != 0 || chdir("/") != 0)
    return 2;
  int status = works();
  int inner = in_child(works);
  return status | inner;
}
static int becomes_nobody(void) {
  if (geteuid() != 0)
    return 0;
  if (setgroups(0, NULL) != 0 || setgid(65534) != 0 || setuid(65534) != 0)
    return 2;
  int id = semget(IPC_PRIVATE, 1, 0600);
  struct semid_ds ds;
  int fine =
      id >= 0 && semctl(id, 0, IPC_STAT, &ds) == 0 && ds.sem_perm.uid == 65534 && ds.sem_perm.gid == 65534;
  fine &= sem_do(g_id, 0, 1, 0) == -1 && errno == EACCES;
  fine &= semctl(id, 0, IPC_RMID) == 0;
  return fine ? 0 : 1;
}
// Twice forked, on its own: the semaphore 1 says how it went.
static int daemonises(void) {
  works();
  if (fork() != 0)
    _exit(0);
  setsid();
  if (fork() != 0)
    _exit(0);
  chdir("/");
  closefrom(0);
  open("/dev/null", O_RDWR);
  dup(0), dup(0);
  alarm(30);
  _exit(works() == 0 && sem_do(g_id, 1, 1, 0) == 0 ? 0 : 1);
}

// As scripting languages call it.
static void asks_the_loader(void) {
  void* libc = dlopen("libc.so.6", RTLD_NOW);
  int (*get)(key_t, int, int) = (int (*)(key_t, int, int))dlsym(libc, "semget");
  CHECK(get != NULL && get(0x5e3a0008, 1, IPC_CREAT | 0600) >= 0);
  int id = semget(0x5e3a0008, 1, 0600);
  CHECK(id >= 0 && semctl(id, 0, IPC_RMID) == 0);
  void* module = dlopen(DEEP_MODULE, RTLD_NOW | RTLD_DEEPBIND);
  CHECK(module != NULL);
  get = (int (*)(key_t, int, int))dlsym(module, "make_set");
  CHECK(get != NULL && get(0x5e3a0008, 1, IPC_CREAT | 0600) >= 0);
  id = semget(0x5e3a0008, 1, 0600);
  CHECK(id >= 0 && semctl(id, 0, IPC_RMID) == 0);
  CHECK(dlclose(module) == 0 && dlclose(libc) == 0);
  CHECK(dlsym(RTLD_NEXT, "semget") != NULL && dlsym(RTLD_DEFAULT, "no_such_name") == NULL && dlerror() != NULL);
}

static void starts_others(void) {
  for (volatile int i = 0; i < 10; ++i) {
    pid_t child = vfork();
    if (child == 0) {
      execlp("true", "true", (char*)NULL);
      _exit(1);
    }
    CHECK(status_of(child) == 0);
    char* words[] = {"true", NULL};
    CHECK(posix_spawnp(&child, "true", NULL, NULL, words, environ) == 0 && status_of(child) == 0);
    CHECK(works() == 0);
  }
  CHECK(system("exit 3") == 3 << 8);
}

static void* forks(void* unused) {
  (void)unused;
  for (int i = 0; i < 8; ++i) {
    pid_t child = fork();
    if (child == 0) {
      alarm(30);
      _exit(works());
    }
    CHECK(status_of(child) == 0);
    CHECK(works() == 0);
  }
  return NULL;
}
static void fork_storm(void) {
  int id = shmget(IPC_PRIVATE, 4096, 0600);
  char* p = shmat(id, NULL, 0);
  pthread_t thread[8];
  for (int i = 0; i < 8; ++i)
    pthread_create(&thread[i], NULL, forks, NULL);
  for (int i = 0; i < 8; ++i)
    pthread_join(thread[i], NULL);
  struct shmid_ds ds;
  UNTIL(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1);
  CHECK(shmdt(p) == 0 && shmctl(id, IPC_RMID, NULL) == 0);
}

static void* takes(void* unused) {
  (void)unused;
  return (void*)(intptr_t)sem_do(g_id, 2, -1, 0);
}
static void many_waiting_threads(void) {
  enum { kMany = 500 };
  static pthread_t thread[kMany];
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 128 << 10);
  for (int i = 0; i < kMany; ++i)
    CHECK(pthread_create(&thread[i], &small, takes, NULL) == 0);
  UNTIL(semctl(g_id, 2, GETNCNT) == kMany);
  CHECK(sem_do(g_id, 2, kMany, 0) == 0);
  for (int i = 0; i < kMany; ++i) {
    void* result = (void*)1;
    pthread_join(thread[i], &result);
    CHECK(result == NULL);
  }
  CHECK(semctl(g_id, 2, GETVAL) == 0);
}

static volatile sig_atomic_t g_cleaned;
static int g_queue;
static void cleans(void* unused) {
  (void)unused;
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  g_cleaned = !sigismember(&mask, SIGUSR1) && works() == 0 ? 1 : 2;
}
static void* receives(void* unused) {
  struct {
    long type;
    char text[10];
  } m;
  pthread_cleanup_push(cleans, NULL);
  msgrcv(g_queue, &m, 10, 0, 0);
  pthread_cleanup_pop(0);
  return unused;
}
static void cancelled_threads(void) {
  g_queue = msgget(IPC_PRIVATE, 0600);
  for (int i = 0; i < 10; ++i) {
    pthread_t thread;
    void* result = NULL;
    g_cleaned = 0;
    pthread_create(&thread, NULL, receives, NULL);
    wait_ms(i * 3);
    CHECK(pthread_cancel(thread) == 0);
    CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED && g_cleaned == 1);
  }
  struct {
    long type;
    char text[10];
  } m = {1, "kept"};
  CHECK(msgsnd(g_queue, &m, 5, 0) == 0 && msgrcv(g_queue, &m, 10, 0, IPC_NOWAIT) == 5);
  CHECK(msgctl(g_queue, IPC_RMID, NULL) == 0);
}

static volatile sig_atomic_t g_handled;
static void handled(int number) {
  (void)number;
  ++g_handled;
}
// Every wait ends with success or, when a handler ran, with EINTR; none is lost, none is restarted.
static void signal_storm(void) {
  enum { kRounds = 400 };
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handled;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, NULL);
  pid_t taker = fork();
  if (taker == 0) {
    alarm(60);
    int got = 0, bad = 0;
    sem_do(g_id, 3, 1, 0);
    while (got < kRounds) {
      int before = g_handled;
      if (sem_do(g_id, 0, -1, 0) == 0)
        ++got;
      else if (errno != EINTR || g_handled == before)
        ++bad;
    }
    _exit(bad == 0 ? 0 : 1);
  }
  CHECK(sem_do(g_id, 3, -1, 0) == 0);
  pid_t giver = fork();
  if (giver == 0) {
    for (int i = 0; i < kRounds; ++i)
      if (sem_do(g_id, 0, 1, 0) != 0)
        _exit(1);
    _exit(0);
  }
  int status = 0;
  while (waitpid(taker, &status, WNOHANG) == 0) {
    kill(taker, SIGUSR1);
    sched_yield();
  }
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(status_of(giver) == 0 && semctl(g_id, 0, GETVAL) == 0);
}

int main(void) {
  g_id = semget(IPC_PRIVATE, 4, 0600);
  CHECK(g_id >= 0);
  CHECK(in_child(closes_everything) == 0);
  CHECK(in_child(closes_and_reuses_with_memory) == 0);
  CHECK(in_child(clears_the_environment) == 0);
  CHECK(in_child(has_few_descriptors) == 0);
  CHECK(in_child(uses_all_descriptors) == 0);
  CHECK(in_child(changes_its_root) == 0);
  CHECK(in_child(becomes_nobody) == 0);
  CHECK(in_child(daemonises) == 0);
  UNTIL(semctl(g_id, 1, GETVAL) == 1);
  asks_the_loader();
  starts_others();
  fork_storm();
  many_waiting_threads();
  cancelled_threads();
  signal_storm();
  CHECK(semctl(g_id, 0, IPC_RMID) == 0);
  return finish();
}
