// Queues: calls, errors, types, blocking, full queues.
#include "check.h"

struct message {
  long type;
  char text[8200];
};
static struct message m;

static int send_text(int q, long type, const char* text, int flags) {
  m.type = type;
  strcpy(m.text, text);
  return msgsnd(q, &m, strlen(text), flags);
}
static int receives(int q, long type, int flags, const char* text) {
  memset(&m, 0, sizeof m);
  ssize_t got = msgrcv(q, &m, 100, type, flags);
  return got == (ssize_t)strlen(text) && memcmp(m.text, text, (size_t)got) == 0;
}

static void errors(void) {
  int q = msgget(IPC_PRIVATE, 0600);
  CHECK(q >= 0);
  FAILS(send_text(q, 0, "x", 0), EINVAL);
  FAILS(msgsnd(q, &m, 8193, 0), EINVAL);
  FAILS(msgsnd(q, (void*)8, 10, 0), EFAULT);
  FAILS(send_text(-1, 1, "x", 0), EINVAL);
  FAILS(msgrcv(q, &m, 10, 0, IPC_NOWAIT), ENOMSG);
  FAILS(msgrcv(q, &m, (size_t)-1, 0, IPC_NOWAIT), EINVAL);
  FAILS(msgctl(q, 4711, NULL), EINVAL);
  FAILS(msgctl(q, IPC_STAT, (void*)8), EFAULT);
  CHECK(send_text(q, 7, "long one", 0) == 0);
  FAILS(msgrcv(q, &m, 3, 0, IPC_NOWAIT), E2BIG);
  CHECK(msgrcv(q, &m, 3, 0, MSG_NOERROR) == 3 && m.type == 7 && memcmp(m.text, "lon", 3) == 0);
  CHECK(msgsnd(q, &(struct message){.type = 1}, 0, 0) == 0);
  CHECK(msgrcv(q, &m, 0, 0, 0) == 0);
  CHECK(send_text(q, 1, "lost", 0) == 0);
  FAILS(msgrcv(q, (void*)8, 100, 0, 0), EFAULT);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
  FAILS(msgctl(q, IPC_RMID, NULL), EINVAL);
}

static void types(void) {
  int q = msgget(IPC_PRIVATE, 0600);
  CHECK(send_text(q, 3, "a", 0) == 0 && send_text(q, 1, "b", 0) == 0 && send_text(q, 2, "c", 0) == 0 &&
        send_text(q, 3, "d", 0) == 0 && send_text(q, 1, "e", 0) == 0);
  CHECK(receives(q, 3, 0, "a"));
  CHECK(receives(q, -2, 0, "b"));
  CHECK(receives(q, 1, MSG_EXCEPT, "c"));
  CHECK(receives(q, 0, 0, "d"));
  CHECK(receives(q, -100, 0, "e"));
  struct msqid_ds ds;
  CHECK(msgctl(q, IPC_STAT, &ds) == 0);
  CHECK(ds.msg_qnum == 0 && ds.msg_lspid == getpid() && ds.msg_lrpid == getpid() && ds.msg_qbytes == 16384);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
}

static unsigned long stat_count(int q) {
  struct msqid_ds ds;
  return msgctl(q, IPC_STAT, &ds) == 0 ? ds.msg_qnum : 999;
}

static void blocking(void) {
  int q = msgget(IPC_PRIVATE, 0600);
  m.type = 1;
  CHECK(msgsnd(q, &m, 8192, 0) == 0 && msgsnd(q, &m, 8192, 0) == 0);
  FAILS(msgsnd(q, &m, 1, IPC_NOWAIT), EAGAIN);
  pid_t sender = fork();
  if (sender == 0)
    _exit(send_text(q, 2, "late", 0) == 0 ? 0 : 1);
  CHECK(msgrcv(q, &m, 8192, 1, 0) == 8192);
  CHECK(status_of(sender) == 0);
  UNTIL(stat_count(q) == 2);
  CHECK(receives(q, 2, 0, "late"));
  CHECK(msgrcv(q, &m, 8192, 1, 0) == 8192);
  pid_t receiver = fork();
  if (receiver == 0)
    _exit(receives(q, 5, 0, "for you") ? 0 : 1);
  CHECK(send_text(q, 5, "for you", 0) == 0);
  CHECK(status_of(receiver) == 0);
  receiver = fork();
  if (receiver == 0)
    _exit(msgrcv(q, &m, 10, 0, 0) == -1 && errno == EIDRM ? 0 : 1);
  wait_ms(50);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
  int status = status_of(receiver);
  CHECK(status == 0 || status == 1);  // it may have come late: EINVAL
}

int main(void) {
  errors();
  types();
  blocking();
  return finish();
}
