// Queues, the finer rules: rights, limits of a queue, who is woken, copies, what is recorded.
#include "check.h"

#define NOBODY 65534
struct message {
  long type;
  char text[8192];
};
static struct message m;

static int put(int q, long type, size_t bytes, int flags) {
  m.type = type;
  memset(m.text, (int)('a' + type % 26), bytes);
  return msgsnd(q, &m, bytes, flags);
}
static struct msqid_ds stat_of(int q) {
  struct msqid_ds ds;
  memset(&ds, 0, sizeof ds);
  CHECK(msgctl(q, IPC_STAT, &ds) == 0);
  return ds;
}
static int as_nobody(void (*what)(int), int q) {
  pid_t child = fork();
  if (child == 0) {
    failures = 0;
    CHECK(setgroups(0, NULL) == 0 && setregid(NOBODY, NOBODY) == 0 && setreuid(NOBODY, NOBODY) == 0);
    what(q);
    _exit(failures);
  }
  return status_of(child);
}
static void nothing_allowed(int q) {
  struct msqid_ds ds;
  memset(&ds, 0, sizeof ds);
  FAILS(put(q, 1, 1, 0), EACCES);
  FAILS(msgrcv(q, &m, 10, 0, IPC_NOWAIT), EACCES);
  FAILS(msgctl(q, IPC_STAT, &ds), EACCES);
  FAILS(msgctl(q, IPC_SET, &ds), EPERM);
  FAILS(msgctl(q, IPC_RMID, NULL), EPERM);
  CHECK(msgget(0x5e3a0003, 0) == q);
  FAILS(msgget(0x5e3a0003, 0600), EACCES);
  FAILS(msgget(0x5e3a0003, IPC_CREAT | 0002), EACCES);
  struct msginfo info;
  int highest = msgctl(0, MSG_INFO, (struct msqid_ds*)&info), found = 0;
  for (int i = 0; i <= highest; ++i) {
    CHECK(msgctl(i, MSG_STAT, &ds) != q);
    found |= msgctl(i, MSG_STAT_ANY, &ds) == q;
  }
  CHECK(found);
}
static void writing_allowed(int q) {
  CHECK(put(q, 1, 1, 0) == 0);
  FAILS(msgrcv(q, &m, 10, 0, IPC_NOWAIT), EACCES);
}
static void given(int q) {
  struct msqid_ds ds = stat_of(q);
  ds.msg_qbytes = 100;
  CHECK(msgctl(q, IPC_SET, &ds) == 0);
  ds.msg_qbytes = 16384;
  CHECK(msgctl(q, IPC_SET, &ds) == 0);  // back up to msgmnb
  ds.msg_qbytes = 16385;
  FAILS(msgctl(q, IPC_SET, &ds), EPERM);
  CHECK(stat_of(q).msg_qbytes == 16384);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
}
static void rights(void) {
  if (geteuid() != 0)
    return;
  int q = msgget(0x5e3a0003, IPC_CREAT | IPC_EXCL | 0600);
  CHECK(q >= 0);
  CHECK(as_nobody(nothing_allowed, q) == 0);
  struct msqid_ds ds = stat_of(q);
  ds.msg_perm.mode = 0602;
  CHECK(msgctl(q, IPC_SET, &ds) == 0);
  CHECK(as_nobody(writing_allowed, q) == 0);
  CHECK(stat_of(q).msg_qnum == 1);
  ds.msg_qbytes = 1 << 20;  // root may
  ds.msg_perm.uid = NOBODY;
  if (msgctl(q, IPC_SET, &ds) == -1) {  // without CAP_SYS_RESOURCE it may not
    CHECK(ds.msg_qbytes = 16384);
    CHECK(msgctl(q, IPC_SET, &ds) == 0);
  }
  CHECK(as_nobody(given, q) == 0);
}

static void names(void) {
  FAILS(msgget(0x5e3a0004, 0600), ENOENT);
  int q = msgget(0x5e3a0004, IPC_CREAT | IPC_EXCL | 0600);
  CHECK(q >= 0 && msgget(0x5e3a0004, IPC_CREAT | 0600) == q);
  FAILS(msgget(0x5e3a0004, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
  struct msqid_ds ds = stat_of(q);
  CHECK(ds.msg_qnum == 0 && ds.msg_lspid == 0 && ds.msg_lrpid == 0 && ds.msg_stime == 0 && ds.msg_rtime == 0);
  CHECK(ds.msg_ctime >= time(NULL) - 5 && ds.msg_ctime <= time(NULL) + 1 && ds.msg_perm.__key == 0x5e3a0004);
  CHECK(ds.msg_perm.uid == geteuid() && ds.msg_perm.cgid == getegid() && (ds.msg_perm.mode & 0777) == 0600);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
  FAILS(put(q, 1, 1, 0), EINVAL);
  FAILS(msgrcv(q, &m, 1, 0, IPC_NOWAIT), EINVAL);
}

static void recorded(void) {
  int q = msgget(IPC_PRIVATE, 0600);
  pid_t child = fork();
  if (child == 0)
    _exit(put(q, 3, 100, 0) == 0 && put(q, 4, 0, 0) == 0 ? 0 : 1);
  CHECK(status_of(child) == 0);
  struct msqid_ds ds = stat_of(q);
  CHECK(ds.msg_qnum == 2 && ds.__msg_cbytes == 100 && ds.msg_lspid == child && ds.msg_lrpid == 0);
  CHECK(ds.msg_stime >= ds.msg_ctime && ds.msg_rtime == 0);
  struct msginfo info;
  CHECK(msgctl(0, MSG_INFO, (struct msqid_ds*)&info) >= 0);
  CHECK(info.msgpool >= 1 && info.msgmap >= 2 && info.msgtql >= 100);
  CHECK(msgrcv(q, &m, 200, 0, 0) == 100 && m.type == 3 && m.text[99] == 'd');
  ds = stat_of(q);
  CHECK(ds.msg_lrpid == getpid() && ds.msg_rtime != 0 && ds.__msg_cbytes == 0 && ds.msg_qnum == 1);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
}

static void sizes(void) {
  int q = msgget(IPC_PRIVATE, 0600);
  CHECK(put(q, 1, 8192, 0) == 0);
  FAILS(msgrcv(q, &m, 8191, 0, 0), E2BIG);
  CHECK(stat_of(q).msg_qnum == 1);
  CHECK(msgrcv(q, &m, 8192, 0, 0) == 8192 && m.text[8191] == 'b');
  struct msqid_ds ds = stat_of(q);
  ds.msg_qbytes = 10;
  CHECK(msgctl(q, IPC_SET, &ds) == 0);
  FAILS(put(q, 1, 11, IPC_NOWAIT), EAGAIN);
  CHECK(put(q, 1, 10, IPC_NOWAIT) == 0);
  FAILS(put(q, 1, 1, IPC_NOWAIT), EAGAIN);
  for (int i = 0; i < 9; ++i)  // messages without text fill a queue too
    CHECK(put(q, 2, 0, IPC_NOWAIT) == 0);
  FAILS(put(q, 2, 0, IPC_NOWAIT), EAGAIN);
  // A larger queue lets the waiting sender go on.
  pid_t child = fork();
  if (child == 0)
    _exit(put(q, 5, 50, 0) == 0 ? 0 : 1);
  wait_ms(30);
  ds.msg_qbytes = 1000;
  CHECK(msgctl(q, IPC_SET, &ds) == 0 && status_of(child) == 0);
  CHECK(msgrcv(q, &m, 50, 5, IPC_NOWAIT) == 50);
  m.type = -1;
  FAILS(msgsnd(q, &m, 1, 0), EINVAL);
  FAILS(msgsnd(q, &m, (size_t)-1, 0), EINVAL);
  CHECK(put(q, 0x7fffffffffffffff, 1, 0) == 0 && msgrcv(q, &m, 1, 0x7fffffffffffffff, IPC_NOWAIT) == 1);
  CHECK(m.type == 0x7fffffffffffffff);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
}

static void copies(void) {
  int q = msgget(IPC_PRIVATE, 0600);
  CHECK(put(q, 5, 5, 0) == 0 && put(q, 6, 6, 0) == 0);
  ssize_t got = msgrcv(q, &m, 100, 1, MSG_COPY | IPC_NOWAIT);
  if (got == -1 && errno == ENOSYS)
    return (void)msgctl(q, IPC_RMID, NULL);
  CHECK(got == 6 && m.type == 6 && stat_of(q).msg_qnum == 2);
  CHECK(msgrcv(q, &m, 100, 0, MSG_COPY | IPC_NOWAIT) == 5 && m.type == 5);
  FAILS(msgrcv(q, &m, 100, 2, MSG_COPY | IPC_NOWAIT), ENOMSG);
  FAILS(msgrcv(q, &m, 100, 0, MSG_COPY), EINVAL);
  FAILS(msgrcv(q, &m, 100, 0, MSG_COPY | MSG_EXCEPT | IPC_NOWAIT), EINVAL);
  FAILS(msgrcv(q, &m, 3, 0, MSG_COPY | IPC_NOWAIT), E2BIG);
  CHECK(stat_of(q).msg_lrpid == 0);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
}

// Children that wait for a type; which of them gets what.
static pid_t receiver(int q, long type, int flags, size_t bytes) {
  pid_t child = fork();
  if (child == 0) {
    alarm(20);
    ssize_t got = msgrcv(q, &m, bytes, type, flags);
    _exit(got >= 0 ? (int)m.type : 100 + errno);
  }
  return child;
}
// Nothing shows that a receiver waits. Where it matters who came first, a check gives it time, and when the outcome is
// that of the other order, which is as right, tries again with more.
enum { kTries = 7 };
static int time_of(int attempt) { return 20 << attempt; }

// Too small a buffer: told so, and the next gets the message.
static void too_small(int q) {
  int told = 0;
  for (int attempt = 0; attempt < kTries && !told; ++attempt) {
    pid_t small = receiver(q, 0, 0, 2);
    wait_ms(time_of(attempt));
    pid_t large = receiver(q, 0, 0, 100);
    CHECK(put(q, 9, 10, 0) == 0);
    int status = 0;
    pid_t first = wait(&status);
    told = first == small;
    if (!told) {  // it came later and still waits
      CHECK(first == large && WIFEXITED(status) && WEXITSTATUS(status) == 9);
      CHECK(put(q, 9, 10, 0) == 0 && status_of(small) == 100 + E2BIG);
      CHECK(msgrcv(q, &m, 10, 0, IPC_NOWAIT) == 10);
      continue;
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 100 + E2BIG);
    CHECK(status_of(large) == 9);
  }
  CHECK(told);
}
// A queue that is removed: all who wait are told; who comes later finds nothing.
static void removed(void) {
  int told = 0;
  for (int attempt = 0; attempt < kTries && told < 4; ++attempt) {
    int q = msgget(IPC_PRIVATE, 0600);
    pid_t all[4];
    for (int i = 0; i < 4; ++i)
      all[i] = receiver(q, i, 0, 10);
    wait_ms(time_of(attempt));
    CHECK(msgctl(q, IPC_RMID, NULL) == 0);
    told = 0;
    for (int i = 0; i < 4; ++i) {
      int status = status_of(all[i]);
      CHECK(status == 100 + EIDRM || status == 100 + EINVAL);
      told += status == 100 + EIDRM;
    }
  }
  CHECK(told == 4);
}
static void waiting(void) {
  int q = msgget(IPC_PRIVATE, 0600);
  pid_t three = receiver(q, 3, 0, 100), not_three = receiver(q, 3, MSG_EXCEPT, 100),
        low = receiver(q, -2, 0, 100);
  CHECK(put(q, 3, 1, 0) == 0 && status_of(three) == 3);
  CHECK(put(q, 4, 1, 0) == 0 && status_of(not_three) == 4);
  CHECK(put(q, 5, 1, 0) == 0 && put(q, 2, 1, 0) == 0 && status_of(low) == 2);
  CHECK(stat_of(q).msg_qnum == 1 && msgrcv(q, &m, 1, 0, IPC_NOWAIT) == 1 && m.type == 5);
  too_small(q);
  pid_t cut = receiver(q, 0, MSG_NOERROR, 2);
  CHECK(put(q, 8, 10, 0) == 0 && status_of(cut) == 8);
  // Many receivers, each gets one.
  pid_t all[12];
  for (int i = 0; i < 12; ++i)
    all[i] = receiver(q, 0, 0, 10);
  for (int i = 0; i < 12; ++i)
    CHECK(put(q, 20 + i, 3, 0) == 0);
  int sum = 0;
  for (int i = 0; i < 12; ++i)
    sum += status_of(all[i]);
  CHECK(sum == 12 * 20 + 66 && stat_of(q).msg_qnum == 0);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
  removed();
}

// Several senders and receivers at once: everything arrives once, each sender's in its order.
static void crowd(void) {
  enum { kSenders = 4, kReceivers = 3, kEach = 300 };
  int q = msgget(IPC_PRIVATE, 0600), results[2];
  CHECK(pipe(results) == 0);
  pid_t children[kSenders + kReceivers];
  for (int s = 0; s < kSenders; ++s)
    if ((children[s] = fork()) == 0) {
      struct {
        long type;
        int number;
        char pad[300];
      } out = {s + 1, 0, ""};
      for (; out.number < kEach; ++out.number)
        if (msgsnd(q, &out, sizeof out - sizeof(long), 0) != 0)
          _exit(1);
      _exit(0);
    }
  for (int r = 0; r < kReceivers; ++r)
    if ((children[kSenders + r] = fork()) == 0) {
      struct {
        long type;
        int number;
        char pad[300];
      } in;
      int last[kSenders + 1] = {-1, -1, -1, -1, -1}, count = 0;
      while (msgrcv(q, &in, sizeof in - sizeof(long), 0, 0) >= 0 && in.type <= kSenders) {
        if (in.number <= last[in.type])
          _exit(1);
        last[in.type] = in.number;
        ++count;
      }
      _exit(write(results[1], &count, sizeof count) == sizeof count ? 0 : 1);
    }
  for (int s = 0; s < kSenders; ++s)
    CHECK(status_of(children[s]) == 0);
  for (int r = 0; r < kReceivers; ++r)
    CHECK(put(q, 99, 10, 0) == 0);
  int total = 0, count = 0;
  for (int r = 0; r < kReceivers; ++r) {
    CHECK(status_of(children[kSenders + r]) == 0 && read(results[0], &count, sizeof count) == sizeof count);
    total += count;
  }
  CHECK(total == kSenders * kEach);
  CHECK(msgctl(q, IPC_RMID, NULL) == 0);
}

int main(void) {
  rights();
  names();
  recorded();
  sizes();
  copies();
  waiting();
  crowd();
  return finish();
}
