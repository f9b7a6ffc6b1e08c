// semget, semop, semtimedop, semctl.
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sem.h>

#include "ipc/preload/connection.h"
#include "ipc/preload/permissions.h"

namespace kevre::ipc::preload {
namespace {
int write_info(int cmd, void* buffer, const Usage& usage) {
  seminfo info;
  memset(&info, 0, sizeof info);
  info.semmni = static_cast<int>(usage.limits.sem_mni);
  info.semmns = static_cast<int>(usage.limits.sem_mns);
  info.semmsl = static_cast<int>(usage.limits.sem_msl);
  info.semopm = static_cast<int>(usage.limits.sem_opm);
  info.semvmx = kSemVmx;
  info.semmnu = static_cast<int>(kSemMns);
  info.semmap = static_cast<int>(kSemMns);
  info.semume = static_cast<int>(kSemOpm);
  info.semusz = cmd == SEM_INFO ? static_cast<int>(usage.objects) : 20;
  info.semaem = cmd == SEM_INFO ? static_cast<int>(usage.amount) : kSemVmx;
  return copy_out(buffer, &info, sizeof info);
}

int write_stat(void* buffer, const Stat& stat) {
  semid_ds ds;
  memset(&ds, 0, sizeof ds);
  fill_permissions(ds.sem_perm, stat);
  ds.sem_otime = stat.first_time;
  ds.sem_ctime = stat.change_time;
  ds.sem_nsems = stat.size;
  return copy_out(buffer, &ds, sizeof ds);
}

// How many semaphores the set has: GETALL and SETALL do not say how long their array is. 0 or an errno.
int count_of(int id, size_t* count) {
  Exchange ask;
  ask.call.op = Op::kSemCount;
  ask.call.id = id;
  const int error = exchange(ask);
  *count = static_cast<size_t>(ask.answer.value);
  return error;
}

int64_t all_values(Exchange& what, void* array) {
  size_t count = 0;
  int error = count_of(what.call.id, &count);
  if (error != 0) {
    return finish(error, 0);
  }
  if (what.call.cmd == SETALL) {
    what.payload = array;
    what.payload_bytes = count * sizeof(uint16_t);
  } else {
    what.out = array;
    what.out_bytes = count * sizeof(uint16_t);
  }
  error = exchange(what);
  return finish(error, 0);
}
}  // namespace

int64_t do_semget(int key, int count, int flags) {
  if (count < 0) {
    return finish(EINVAL, 0);
  }
  Exchange what;
  what.call.op = Op::kSemGet;
  what.call.key = key;
  what.call.size = static_cast<uint64_t>(count);
  what.call.flags = flags;
  const int error = exchange(what);
  return finish(error, what.answer.value);
}

int64_t do_semtimedop(int id, void* operations, size_t count, const timespec* timeout) {
  timespec limit = {0, 0};
  if (timeout != nullptr && copy_in(&limit, timeout, sizeof limit) != 0) {
    return finish(EFAULT, 0);
  }
  if (count < 1) {
    return finish(EINVAL, 0);
  }
  if (count > kSemOpm) {
    return finish(E2BIG, 0);
  }
  if (timeout != nullptr && (limit.tv_sec < 0 || limit.tv_nsec < 0 || limit.tv_nsec >= 1000000000)) {
    return finish(EINVAL, 0);
  }
  Exchange what;
  what.call.op = Op::kSemOp;
  what.call.id = id;
  what.call.size = count;
  what.payload = operations;
  what.payload_bytes = count * sizeof(SemOperation);
  what.may_block = true;
  what.timeout = timeout != nullptr ? &limit : nullptr;
  return finish(exchange(what), 0);
}

int64_t do_semctl(int id, int number, int cmd, unsigned long argument) {
  Exchange what;
  what.call.op = Op::kSemCtl;
  what.call.id = id;
  what.call.index = number;
  what.call.cmd = cmd;
  void* buffer = reinterpret_cast<void*>(argument);
  SetArguments arguments;
  Stat stat;
  Usage usage;
  int error = 0;
  switch (cmd) {
    case SETVAL:
      what.call.value = static_cast<int>(argument);
      break;
    case GETALL:
    case SETALL:
      return all_values(what, buffer);
    case IPC_SET: {
      semid_ds ds;
      if (copy_in(&ds, buffer, sizeof ds) != 0) {
        return finish(EFAULT, 0);
      }
      arguments = {ds.sem_perm.uid, ds.sem_perm.gid, ds.sem_perm.mode, 0, 0};
      what.payload = &arguments;
      what.payload_bytes = sizeof arguments;
      break;
    }
    case IPC_STAT:
    case SEM_STAT:
    case SEM_STAT_ANY:
      what.out = &stat;
      what.out_bytes = sizeof stat;
      error = exchange(what);
      error = error == 0 ? write_stat(buffer, stat) : error;
      return finish(error, what.answer.value);
    case IPC_INFO:
    case SEM_INFO:
      what.out = &usage;
      what.out_bytes = sizeof usage;
      error = exchange(what);
      error = error == 0 ? write_info(cmd, buffer, usage) : error;
      return finish(error, what.answer.value);
    default:
      break;
  }
  error = exchange(what);
  return finish(error, what.answer.value);
}

}  // namespace kevre::ipc::preload

using namespace kevre::ipc::preload;
KEVRE_EXPORT int semget(key_t key, int count, int flags) noexcept {
  return static_cast<int>(do_semget(key, count, flags));
}
KEVRE_EXPORT int semop(int id, sembuf* operations, size_t count) noexcept {
  return static_cast<int>(do_semtimedop(id, operations, count, nullptr));
}
KEVRE_EXPORT int semtimedop(int id, sembuf* operations, size_t count, const timespec* timeout) noexcept {
  return static_cast<int>(do_semtimedop(id, operations, count, timeout));
}
KEVRE_EXPORT int semctl(int id, int number, int cmd, ...) noexcept {
  va_list arguments;
  va_start(arguments, cmd);
  const unsigned long argument = va_arg(arguments, unsigned long);
  va_end(arguments);
  return static_cast<int>(do_semctl(id, number, cmd, argument));
}
