// Segments, the finer rules: rights, addresses, protections, removal while attached, what is recorded.
#include "check.h"

#define NOBODY 65534
#define FAILS_AT(call, error) CHECK((call) == (void*)-1 && errno == (error))

static struct shmid_ds stat_of(int id) {
  struct shmid_ds ds;
  memset(&ds, 0, sizeof ds);
  CHECK(shmctl(id, IPC_STAT, &ds) == 0);
  return ds;
}
static int as_nobody(void (*what)(int), int id) {
  pid_t child = fork();
  if (child == 0) {
    failures = 0;
    CHECK(setgroups(0, NULL) == 0 && setregid(NOBODY, NOBODY) == 0 && setreuid(NOBODY, NOBODY) == 0);
    what(id);
    _exit(failures);
  }
  return status_of(child);
}
static void nothing_allowed(int id) {
  struct shmid_ds ds;
  memset(&ds, 0, sizeof ds);
  FAILS_AT(shmat(id, NULL, 0), EACCES);
  FAILS_AT(shmat(id, NULL, SHM_RDONLY), EACCES);
  FAILS(shmctl(id, IPC_STAT, &ds), EACCES);
  FAILS(shmctl(id, IPC_SET, &ds), EPERM);
  FAILS(shmctl(id, IPC_RMID, NULL), EPERM);
  FAILS(shmctl(id, SHM_LOCK, NULL), EPERM);
  FAILS(shmctl(id, SHM_UNLOCK, NULL), EPERM);
  CHECK(shmget(0x5e3a0005, 0, 0) == id);
  FAILS(shmget(0x5e3a0005, 0, 0600), EACCES);
  FAILS(shmget(0x5e3a0005, 0, 0004), EACCES);
  struct shm_info info;
  int highest = shmctl(0, SHM_INFO, (struct shmid_ds*)&info), found = 0;
  for (int i = 0; i <= highest; ++i) {
    CHECK(shmctl(i, SHM_STAT, &ds) != id);
    found |= shmctl(i, SHM_STAT_ANY, &ds) == id;
  }
  CHECK(found);
}
static void reading_allowed(int id) {
  FAILS_AT(shmat(id, NULL, 0), EACCES);
  FAILS_AT(shmat(id, NULL, SHM_RDONLY | SHM_EXEC), EACCES);
  char* p = shmat(id, NULL, SHM_RDONLY);
  CHECK(p != (void*)-1 && p[0] == 'r' && shmdt(p) == 0);
}
static void given(int id) {
  char* p = shmat(id, NULL, 0);
  CHECK(p != (void*)-1 && (p[0] = 'g') && shmdt(p) == 0);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}
static void rights(void) {
  if (geteuid() != 0)
    return;
  int id = shmget(0x5e3a0005, 4096, IPC_CREAT | IPC_EXCL | 0600);
  CHECK(id >= 0);
  char* p = shmat(id, NULL, 0);
  p[0] = 'r';
  CHECK(shmdt(p) == 0);
  CHECK(as_nobody(nothing_allowed, id) == 0);
  struct shmid_ds ds = stat_of(id);
  ds.shm_perm.mode = 0604;
  CHECK(shmctl(id, IPC_SET, &ds) == 0 && (stat_of(id).shm_perm.mode & 0777) == 0604);
  CHECK(as_nobody(reading_allowed, id) == 0);
  ds.shm_perm.mode = 0600;
  ds.shm_perm.uid = NOBODY;
  CHECK(shmctl(id, IPC_SET, &ds) == 0);
  CHECK(as_nobody(given, id) == 0);
  FAILS(shmctl(id, IPC_STAT, &ds), EINVAL);
}

static void names_and_sizes(void) {
  FAILS(shmget(0x5e3a0006, 4096, 0600), ENOENT);
  int id = shmget(0x5e3a0006, 5000, IPC_CREAT | IPC_EXCL | 0640);
  CHECK(id >= 0 && shmget(0x5e3a0006, 5000, IPC_CREAT | 0640) == id && shmget(0x5e3a0006, 0, 0) == id);
  CHECK(shmget(0x5e3a0006, 1, 0) == id);
  FAILS(shmget(0x5e3a0006, 5001, 0), EINVAL);
  FAILS(shmget(0x5e3a0006, 5000, IPC_CREAT | IPC_EXCL), EEXIST);
  struct shmid_ds ds = stat_of(id);
  CHECK(ds.shm_segsz == 5000 && ds.shm_nattch == 0 && ds.shm_lpid == 0 && ds.shm_cpid == getpid());
  CHECK(ds.shm_atime == 0 && ds.shm_dtime == 0 && ds.shm_ctime >= time(NULL) - 5);
  CHECK((ds.shm_perm.mode & 01777) == 0640 && ds.shm_perm.__key == 0x5e3a0006);
  CHECK(shmctl(id, SHM_LOCK, NULL) == 0 && (stat_of(id).shm_perm.mode & 02000) != 0);
  CHECK(shmctl(id, SHM_UNLOCK, NULL) == 0 && (stat_of(id).shm_perm.mode & 02000) == 0);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
  FAILS(shmget(IPC_PRIVATE, 0, 0600), EINVAL);
  FAILS(shmget(IPC_PRIVATE, (size_t)1 << 46, 0600), ENOMEM);
  int large = shmget(IPC_PRIVATE, (size_t)1 << 40, SHM_NORESERVE | 0600);
  CHECK(large >= 0);
  char* p = shmat(large, NULL, 0);
  CHECK(p != (void*)-1);
  if (p != (void*)-1) {
    p[((size_t)1 << 40) - 1] = 7;
    CHECK(p[((size_t)1 << 40) - 1] == 7 && p[(size_t)1 << 39] == 0 && shmdt(p) == 0);
  }
  CHECK(shmctl(large, IPC_RMID, NULL) == 0);
}

static void addresses(void) {
  int id = shmget(IPC_PRIVATE, 3 * 4096, 0600);
  char* free_range = mmap(NULL, 16 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(munmap(free_range, 16 * 4096) == 0);
  CHECK(shmat(id, free_range + 4096, 0) == free_range + 4096);
  FAILS_AT(shmat(id, free_range + 3 * 4096, 0), EINVAL);  // overlaps
  FAILS_AT(shmat(id, free_range + 9 * 4096 + 1, 0), EINVAL);
  CHECK(shmat(id, free_range + 9 * 4096 + 4095, SHM_RND) == free_range + 9 * 4096);
  strcpy(free_range + 9 * 4096, "both");
  CHECK(strcmp(free_range + 4096, "both") == 0);
  FAILS(shmdt(free_range + 2 * 4096), EINVAL);
  FAILS(shmdt(free_range + 4097), EINVAL);
  CHECK(shmdt(free_range + 4096) == 0);
  char* other =
      mmap(free_range, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  strcpy(other, "replaced");
  CHECK(shmat(id, other, SHM_REMAP) == other && strcmp(other, "both") == 0);
  FAILS_AT(shmat(id, (void*)1, SHM_RND | SHM_REMAP), EINVAL);
  CHECK(stat_of(id).shm_nattch == 2);
  CHECK(shmdt(other) == 0 && shmdt(free_range + 9 * 4096) == 0 && stat_of(id).shm_nattch == 0);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static int dies_of(void (*what)(char*), char* p) {
  pid_t child = fork();
  if (child == 0) {
    what(p);
    _exit(0);
  }
  return status_of(child);
}
static void writes(char* p) {
  *(volatile char*)p = 1;
}
static void runs(char* p) {
  ((void (*)(void))p)();
}
static void protections(void) {
  int id = shmget(IPC_PRIVATE, 4096, 0700);
  char* w = shmat(id, NULL, 0);
  w[0] = (char)0xc3;  // ret
  char* r = shmat(id, NULL, SHM_RDONLY);
  char* x = shmat(id, NULL, SHM_EXEC);
  CHECK(dies_of(writes, r) == 128 + SIGSEGV);
  CHECK(dies_of(writes, w) == 0 && r[0] == 1);
  w[0] = (char)0xc3;
#ifdef __x86_64__
  CHECK(dies_of(runs, w) == 128 + SIGSEGV && dies_of(runs, x) == 0);
#endif
  // System calls reach the memory, and say EFAULT where they may not.
  int ends[2];
  CHECK(pipe(ends) == 0 && write(ends[1], "abc", 3) == 3);
  FAILS(read(ends[0], r, 3), EFAULT);
  CHECK(write(ends[1], "def", 3) == 3 && read(ends[0], w, 3) == 3);
  close(ends[0]), close(ends[1]);
  CHECK(shmdt(w) == 0 && shmdt(r) == 0 && shmdt(x) == 0);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static void removed_while_attached(void) {
  int id = shmget(0x5e3a0007, 4096, IPC_CREAT | 0600);
  char* p = shmat(id, NULL, 0);
  strcpy(p, "first");
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
  struct shmid_ds ds = stat_of(id);
  CHECK((ds.shm_perm.mode & 01000) != 0 && ds.shm_perm.__key == IPC_PRIVATE && ds.shm_nattch == 1);
  int second = shmget(0x5e3a0007, 4096, IPC_CREAT | IPC_EXCL | 0600);
  CHECK(second >= 0 && second != id);
  char* again = shmat(id, NULL, 0);  // by its id, as long as somebody has it
  CHECK(again != (void*)-1 && strcmp(again, "first") == 0 && shmdt(again) == 0);
  pid_t child = fork();
  if (child == 0)
    _exit(strcmp(p, "first") == 0 && shmdt(p) == 0 ? 0 : 1);
  CHECK(status_of(child) == 0);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0 && shmdt(p) == 0);
  UNTIL(shmctl(id, IPC_STAT, &ds) == -1);
  FAILS_AT(shmat(id, NULL, 0), EINVAL);
  CHECK(shmctl(second, IPC_RMID, NULL) == 0);
}

static void recorded(void) {
  int id = shmget(IPC_PRIVATE, 4096, 0600);
  char* p = shmat(id, NULL, 0);
  struct shmid_ds ds = stat_of(id);
  CHECK(ds.shm_lpid == getpid() && ds.shm_atime >= ds.shm_ctime && ds.shm_dtime == 0);
  int gate[2];
  CHECK(pipe(gate) == 0);
  pid_t child = fork();
  if (child == 0) {
    char byte;
    close(gate[1]);
    _exit(read(gate[0], &byte, 1) == 0 ? 0 : 1);
  }
  UNTIL(stat_of(id).shm_nattch == 2);
  close(gate[0]), close(gate[1]);
  CHECK(status_of(child) == 0);
  UNTIL(stat_of(id).shm_nattch == 1);
  ds = stat_of(id);
  CHECK(ds.shm_lpid == child && ds.shm_dtime >= ds.shm_atime - 1);
  // exec ends the attachments.
  CHECK(pipe(gate) == 0);
  child = fork();
  if (child == 0) {
    dup2(gate[0], 0);
    close(gate[0]), close(gate[1]);
    execlp("cat", "cat", (char*)NULL);
    _exit(1);
  }
  close(gate[0]);
  UNTIL(stat_of(id).shm_nattch == 1);
  close(gate[1]);
  CHECK(status_of(child) == 0);
  CHECK(shmdt(p) == 0);
  struct shm_info info;
  CHECK(shmctl(0, SHM_INFO, (struct shmid_ds*)&info) >= 0 && info.used_ids >= 1 && info.shm_tot >= 1);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static void many(void) {
  enum { kMany = 1000 };
  static char* at[kMany];
  int id = shmget(IPC_PRIVATE, 4096, 0600);
  for (int i = 0; i < kMany; ++i)
    CHECK((at[i] = shmat(id, NULL, 0)) != (void*)-1);
  at[0][5] = 'm';
  CHECK(at[kMany - 1][5] == 'm' && stat_of(id).shm_nattch == kMany);
  pid_t child = fork();
  if (child == 0)
    _exit(at[500][5] == 'm' ? 0 : 1);
  CHECK(status_of(child) == 0);
  for (int i = 0; i < kMany; ++i)
    CHECK(shmdt(at[i]) == 0);
  UNTIL(stat_of(id).shm_nattch == 0);
  CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static void keys_of_files(void) {
  FAILS(ftok("/no/such/file", 1), ENOENT);
  CHECK(ftok("/etc", 1) == ftok("/etc/", 1) && ftok("/etc", 1) != ftok("/etc", 2));
  CHECK(ftok("/etc", 'a') != -1 && ((unsigned)ftok("/etc", 'a') >> 24) == 'a');
}

int main(void) {
  rights();
  names_and_sizes();
  addresses();
  protections();
  removed_while_attached();
  recorded();
  many();
  keys_of_files();
  return finish();
}
