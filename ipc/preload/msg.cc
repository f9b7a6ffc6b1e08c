// msgget, msgsnd, msgrcv, msgctl.
#include <pthread.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>

#include "ipc/preload/connection.h"
#include "ipc/preload/permissions.h"

namespace kevre::ipc::preload {
namespace {
int write_info(int cmd, void* buffer, const Usage& usage) {
  msginfo info;
  memset(&info, 0, sizeof info);
  info.msgmni = static_cast<int>(usage.limits.msg_mni);
  info.msgmax = static_cast<int>(usage.limits.msg_max);
  info.msgmnb = static_cast<int>(usage.limits.msg_mnb);
  info.msgssz = 16;
  info.msgseg = 0xffff;
  const bool in_use = cmd == MSG_INFO;
  info.msgpool = in_use ? static_cast<int>(usage.objects) : static_cast<int>(kMsgMni * (kMsgMnb / 1024));
  info.msgmap = in_use ? static_cast<int>(usage.amount) : static_cast<int>(kMsgMnb);
  info.msgtql = in_use ? static_cast<int>(usage.bytes) : static_cast<int>(kMsgMnb);
  return copy_out(buffer, &info, sizeof info);
}

int write_stat(void* buffer, const Stat& stat) {
  msqid_ds ds;
  memset(&ds, 0, sizeof ds);
  fill_permissions(ds.msg_perm, stat);
  ds.msg_stime = stat.first_time;
  ds.msg_rtime = stat.second_time;
  ds.msg_ctime = stat.change_time;
  ds.__msg_cbytes = stat.bytes;
  ds.msg_qnum = stat.count;
  ds.msg_qbytes = stat.size;
  ds.msg_lspid = static_cast<pid_t>(stat.first_pid);
  ds.msg_lrpid = static_cast<pid_t>(stat.second_pid);
  return copy_out(buffer, &ds, sizeof ds);
}
}  // namespace

int64_t do_msgget(int key, int flags) {
  Exchange what;
  what.call.op = Op::kMsgGet;
  what.call.key = key;
  what.call.flags = flags;
  const int error = exchange(what);
  return finish(error, what.answer.value);
}

int64_t do_msgsnd(int id, const void* message, size_t bytes, int flags) {
  if (bytes > kMsgBytesMost) {
    return finish(EINVAL, 0);
  }
  Exchange what;
  what.call.op = Op::kMsgSend;
  what.call.id = id;
  what.call.flags = flags;
  what.payload = message;
  what.payload_bytes = sizeof(int64_t) + bytes;
  what.may_block = (flags & IPC_NOWAIT) == 0;
  what.cancellable = true;
  return finish(exchange(what), 0);
}

int64_t do_msgrcv(int id, void* message, size_t bytes, long type, int flags) {
  if (static_cast<ssize_t>(bytes) < 0) {
    return finish(EINVAL, 0);
  }
  Exchange what;
  what.call.op = Op::kMsgReceive;
  what.call.id = id;
  what.call.flags = flags;
  what.call.size = bytes;
  what.call.value = type;
  what.out = message;
  what.out_bytes = sizeof(int64_t) + (bytes < kMsgBytesMost ? bytes : kMsgBytesMost);
  what.may_block = (flags & IPC_NOWAIT) == 0;
  what.cancellable = true;
  const int error = exchange(what);
  return finish(error, what.answer.value);
}

int64_t do_msgctl(int id, int cmd, void* buffer) {
  Exchange what;
  what.call.op = Op::kMsgCtl;
  what.call.id = id;
  what.call.cmd = cmd;
  SetArguments arguments;
  Stat stat;
  Usage usage;
  int error = 0;
  switch (cmd) {
    case IPC_SET: {
      msqid_ds ds;
      if (copy_in(&ds, buffer, sizeof ds) != 0) {
        return finish(EFAULT, 0);
      }
      arguments = {ds.msg_perm.uid, ds.msg_perm.gid, ds.msg_perm.mode, 0, ds.msg_qbytes};
      what.payload = &arguments;
      what.payload_bytes = sizeof arguments;
      return finish(exchange(what), 0);
    }
    case IPC_STAT:
    case MSG_STAT:
    case MSG_STAT_ANY:
      what.out = &stat;
      what.out_bytes = sizeof stat;
      error = exchange(what);
      error = error == 0 ? write_stat(buffer, stat) : error;
      return finish(error, what.answer.value);
    case IPC_INFO:
    case MSG_INFO:
      what.out = &usage;
      what.out_bytes = sizeof usage;
      error = exchange(what);
      error = error == 0 ? write_info(cmd, buffer, usage) : error;
      return finish(error, what.answer.value);
    default:
      error = exchange(what);
      return finish(error, what.answer.value);
  }
}

}  // namespace kevre::ipc::preload

using namespace kevre::ipc::preload;
KEVRE_EXPORT int msgget(key_t key, int flags) noexcept {
  return static_cast<int>(do_msgget(key, flags));
}
KEVRE_EXPORT int msgsnd(int id, const void* message, size_t bytes, int flags) {
  ::pthread_testcancel();
  return static_cast<int>(do_msgsnd(id, message, bytes, flags));
}
KEVRE_EXPORT ssize_t msgrcv(int id, void* message, size_t bytes, long type, int flags) {
  ::pthread_testcancel();
  return do_msgrcv(id, message, bytes, type, flags);
}
KEVRE_EXPORT int msgctl(int id, int cmd, msqid_ds* buffer) noexcept {
  return static_cast<int>(do_msgctl(id, cmd, buffer));
}
