// The limits as programs read and set them in /proc/sys/kernel, and what they do. Each is put back.
#include "check.h"

static char* file_text(const char* name) {
  static char text[200];
  char path[100];
  snprintf(path, sizeof path, "/proc/sys/kernel/%s", name);
  memset(text, 0, sizeof text);
  FILE* file = fopen(path, "r");
  CHECK(file != NULL);
  if (file != NULL) {
    CHECK(fgets(text, sizeof text, file) != NULL);
    fclose(file);
  }
  return text;
}
static void set(const char* name, const char* text) {
  char path[100];
  snprintf(path, sizeof path, "/proc/sys/kernel/%s", name);
  int fd = open(path, O_WRONLY);
  CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
  close(fd);
}

static void defaults(void) {
  CHECK(strcmp(file_text("shmmni"), "4096\n") == 0);
  CHECK(strcmp(file_text("shmmax"), "18446744073692774399\n") == 0);
  CHECK(strcmp(file_text("shmall"), "18446744073692774399\n") == 0);
  CHECK(strcmp(file_text("msgmni"), "32000\n") == 0);
  CHECK(strcmp(file_text("msgmax"), "8192\n") == 0);
  CHECK(strcmp(file_text("msgmnb"), "16384\n") == 0);
  CHECK(strcmp(file_text("sem"), "32000\t1024000000\t500\t32000\n") == 0);
  CHECK(strcmp(file_text("shm_rmid_forced"), "0\n") == 0);
}

static void sizes(void) {
  char old[100];
  strcpy(old, file_text("shmmax"));
  set("shmmax", "8192");
  CHECK(strcmp(file_text("shmmax"), "8192\n") == 0);
  FAILS(shmget(IPC_PRIVATE, 8193, 0600), EINVAL);
  int id = shmget(IPC_PRIVATE, 8192, 0600);
  CHECK(id >= 0 && shmctl(id, IPC_RMID, NULL) == 0);
  struct shminfo info;
  CHECK(shmctl(0, IPC_INFO, (struct shmid_ds*)&info) >= 0 && info.shmmax == 8192 && info.shmmni == 4096);
  set("shmmax", old);
  struct {
    long type;
    char text[20000];
  } m = {1, ""};
  set("msgmax", "100\n");
  int q = msgget(IPC_PRIVATE, 0600);
  FAILS(msgsnd(q, &m, 101, 0), EINVAL);
  CHECK(msgsnd(q, &m, 100, 0) == 0);
  set("msgmax", "16000\n");
  CHECK(msgsnd(q, &m, 16000, 0) == 0 && msgrcv(q, &m, 100, 0, 0) == 100 &&
        msgrcv(q, &m, 20000, 0, 0) == 16000);
  set("msgmax", "8192");
  set("msgmnb", "300");
  int small = msgget(IPC_PRIVATE, 0600);
  struct msqid_ds ds;
  CHECK(msgctl(small, IPC_STAT, &ds) == 0 && ds.msg_qbytes == 300);
  CHECK(msgctl(q, IPC_STAT, &ds) == 0 && ds.msg_qbytes == 16384);
  FAILS(msgsnd(small, &m, 301, IPC_NOWAIT), EAGAIN);
  set("msgmnb", "16384");
  CHECK(msgctl(q, IPC_RMID, NULL) == 0 && msgctl(small, IPC_RMID, NULL) == 0);
}

static void counts(void) {
  struct shm_info used;
  CHECK(shmctl(0, SHM_INFO, (struct shmid_ds*)&used) >= 0);
  char text[20];
  snprintf(text, sizeof text, "%d", used.used_ids + 2);
  set("shmmni", text);
  int a = shmget(IPC_PRIVATE, 1, 0600), b = shmget(IPC_PRIVATE, 1, 0600);
  FAILS(shmget(IPC_PRIVATE, 1, 0600), ENOSPC);
  set("shmmni", "4096");
  CHECK(shmctl(a, IPC_RMID, NULL) == 0 && shmctl(b, IPC_RMID, NULL) == 0);
  set("msgmni", "0");
  FAILS(msgget(IPC_PRIVATE, 0600), ENOSPC);
  set("msgmni", "32000");
  set("sem", "10 1024000000 3 32000");
  FAILS(semget(IPC_PRIVATE, 11, 0600), EINVAL);
  int id = semget(IPC_PRIVATE, 10, 0600);
  struct sembuf four[4] = {{0, 1, 0}, {1, 1, 0}, {2, 1, 0}, {3, 1, 0}};
  CHECK(id >= 0 && semop(id, four, 3) == 0);
  FAILS(semop(id, four, 4), E2BIG);
  set("sem", "32000 1024000000 500 0");
  FAILS(semget(IPC_PRIVATE, 1, 0600), ENOSPC);
  set("sem", "32000 1024000000 500 32000");
  CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void next_ids(void) {
  if (access("/proc/sys/kernel/shm_next_id", F_OK) != 0)
    return;
  set("shm_next_id", "1234567");
  int a = shmget(IPC_PRIVATE, 1, 0600);
  CHECK(a == 1234567 && strcmp(file_text("shm_next_id"), "-1\n") == 0);
  set("shm_next_id", "1234567");
  int b = shmget(IPC_PRIVATE, 1, 0600);
  CHECK(b != a && b >= 0);
  CHECK(shmctl(a, IPC_RMID, NULL) == 0 && shmctl(b, IPC_RMID, NULL) == 0);
  set("msg_next_id", "77777");
  int q = msgget(IPC_PRIVATE, 0600);
  CHECK(q == 77777 && msgctl(q, IPC_RMID, NULL) == 0);
  set("sem_next_id", "88888");
  int s = semget(IPC_PRIVATE, 1, 0600);
  CHECK(s == 88888 && semctl(s, 0, IPC_RMID) == 0);
}

static void read_and_written(void) {
  char text[100] = "";
  int fd = open("/proc/sys/kernel/msgmni", O_RDWR);
  CHECK(fd >= 0 && read(fd, text, sizeof text) == 6 && strcmp(text, "32000\n") == 0);
  CHECK(read(fd, text, sizeof text) == 0);
  close(fd);
  fd = open("/proc/sys/kernel/msgmni", O_RDWR);
  CHECK(fd >= 0 && write(fd, "31000", 5) == 5);
  close(fd);
  CHECK(strcmp(file_text("msgmni"), "31000\n") == 0);
  set("msgmni", "32000");
}

static void others(void) {
  pid_t child = fork();
  if (child == 0) {
    if (setgroups(0, NULL) != 0 || setregid(65534, 65534) != 0 || setreuid(65534, 65534) != 0)
      _exit(2);
    _exit(open("/proc/sys/kernel/shmmni", O_WRONLY) == -1 && errno == EACCES &&
                  strcmp(file_text("shmmni"), "4096\n") == 0
              ? failures
              : 1);
  }
  CHECK(status_of(child) == 0);
}

int main(void) {
  defaults();
  if (geteuid() != 0)
    return finish();
  sizes();
  counts();
  next_ids();
  read_and_written();
  others();
  return finish();
}
