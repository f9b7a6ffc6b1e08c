// shmget, shmat, shmdt, shmctl.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

#include "ipc/preload/connection.h"
#include "ipc/preload/permissions.h"

namespace kevre::ipc::preload {
namespace {
constexpr uintptr_t kPage = 4096;
pthread_mutex_t g_attach =
    PTHREAD_MUTEX_INITIALIZER;  // one attach at a time: the first one brings the userfaultfd
bool g_has_uffd = false;        // also when the program closed it
Descriptor g_uffd;              // of this address space; never closed while it lives

struct BlockSignals {
  BlockSignals() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &old);
  }
  ~BlockSignals() { ::pthread_sigmask(SIG_SETMASK, &old, nullptr); }
  sigset_t old;
};

// 0 or an errno; *address is rounded.
int check_address(uintptr_t* address, int flags) {
  if (*address == 0) {
    return (flags & SHM_REMAP) != 0 ? EINVAL : 0;
  }
  if (*address % kPage != 0) {
    if ((flags & SHM_RND) == 0) {
      return EINVAL;
    }
    *address -= *address % kPage;
    if (*address == 0 && (flags & SHM_REMAP) != 0) {
      return EINVAL;
    }
  }
  return 0;
}

// The mapping, or MAP_FAILED and an errno in *error.
void* map(uintptr_t address, size_t bytes, int flags, int fd, int* error) {
  int protection = PROT_READ;
  protection |= (flags & SHM_RDONLY) != 0 ? 0 : PROT_WRITE;
  protection |= (flags & SHM_EXEC) != 0 ? PROT_EXEC : 0;
  int how = MAP_SHARED;
  if (address != 0) {
    how |= (flags & SHM_REMAP) != 0 ? MAP_FIXED : MAP_FIXED_NOREPLACE;
  }
  void* mapped = ::mmap(reinterpret_cast<void*>(address), bytes, protection, how, fd, 0);
  *error = mapped == MAP_FAILED ? errno : 0;
  *error = *error == EEXIST ? EINVAL : *error;
  return mapped;
}

int new_uffd(int device) {
  const int fd = ::ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
  return fd < 0 ? fd : high_descriptor(fd);
}

void tell_failed() {
  Exchange failed;
  failed.call.op = Op::kAttachFailed;
  exchange(failed);
}

int attach(int id, uintptr_t address, int flags, void** at) {
  Exchange ask;
  ask.call.op = Op::kShmAt;
  ask.call.id = id;
  ask.call.flags = flags;
  int error = exchange(ask);
  if (error != 0) {
    return error;
  }
  const int memory = ask.fds[0];
  const int device = ask.fds[1];
  const size_t bytes = (ask.answer.size + kPage - 1) / kPage * kPage;
  void* mapped = MAP_FAILED;
  if (memory < 0 || (ask.answer.value != 0 && device < 0)) {
    error = EMFILE;  // no room for them
  } else {
    mapped = map(address, bytes, flags, memory, &error);
  }
  if (memory >= 0) {
    ::close(memory);
  }
  int uffd = -1;
  if (device >= 0) {
    if (error == 0) {
      uffd = new_uffd(device);
      error = uffd >= 0 ? 0 : errno == EMFILE ? EMFILE : ENOMEM;
      if (error != 0) {
        ::munmap(mapped, bytes);
      }
    }
    ::close(device);
  }
  if (error == 0) {
    Exchange done;
    done.call.op = Op::kAttached;
    done.call.value = reinterpret_cast<intptr_t>(mapped);
    done.send_fd = uffd;
    error = exchange(done);
    if (error != 0) {
      ::munmap(mapped, bytes);
    }
  } else {
    tell_failed();
  }
  if (uffd >= 0) {
    if (error == 0) {
      keep_uffd(uffd);
    } else {
      ::close(uffd);
    }
  }
  *at = mapped;
  return error;
}
}  // namespace

void lock_attach() {
  ::pthread_mutex_lock(&g_attach);
}
void unlock_attach() {
  ::pthread_mutex_unlock(&g_attach);
}
bool has_uffd() {
  return g_has_uffd;
}
void keep_uffd(int uffd) {
  if (g_uffd.fd() != uffd) {
    g_uffd.close();
  }
  g_uffd = Descriptor(uffd);
  g_has_uffd = uffd >= 0;
}

int64_t do_shmget(int key, size_t bytes, int flags) {
  Exchange what;
  what.call.op = Op::kShmGet;
  what.call.key = key;
  what.call.size = bytes;
  what.call.flags = flags;
  const int error = exchange(what);
  return finish(error, what.answer.value);
}

int64_t do_shmat(int id, const void* address, int flags) {
  const int saved_errno = errno;
  auto where = reinterpret_cast<uintptr_t>(address);
  void* at = nullptr;
  int error = id < 0 ? EINVAL : check_address(&where, flags);
  if (error == 0) {
    const BlockSignals blocked;
    lock_attach();
    error = attach(id, where, flags, &at);
    if (error == EMFILE) {
      const MoreDescriptors more;
      error = attach(id, where, flags, &at);
    }
    error = error == EMFILE ? ENOMEM : error;
    unlock_attach();
  }
  errno = saved_errno;
  return finish(error, reinterpret_cast<intptr_t>(at));
}

int64_t do_shmdt(const void* address) {
  const int saved_errno = errno;
  const BlockSignals blocked;
  Exchange start;
  start.call.op = Op::kDetachStart;
  start.call.value = reinterpret_cast<intptr_t>(address);
  int error = exchange(start);
  if (error == 0) {
    ::munmap(const_cast<void*>(address), start.answer.size);
    Exchange done;
    done.call.op = Op::kDetachDone;
    done.call.value = start.call.value;
    error = exchange(done);
  }
  errno = saved_errno;
  return finish(error, 0);
}

namespace {
int write_info(int cmd, void* buffer, const Usage& usage) {
  if (cmd == IPC_INFO) {
    shminfo info;
    memset(&info, 0, sizeof info);
    info.shmmax = usage.limits.shm_max;
    info.shmmin = 1;
    info.shmmni = usage.limits.shm_mni;
    info.shmseg = usage.limits.shm_mni;
    info.shmall = usage.limits.shm_all;
    return copy_out(buffer, &info, sizeof info);
  }
  struct shm_info info;
  memset(&info, 0, sizeof info);
  info.used_ids = static_cast<int>(usage.objects);
  info.shm_tot = usage.amount;
  return copy_out(buffer, &info, sizeof info);
}

int write_stat(void* buffer, const Stat& stat) {
  shmid_ds ds;
  memset(&ds, 0, sizeof ds);
  fill_permissions(ds.shm_perm, stat);
  ds.shm_segsz = stat.size;
  ds.shm_atime = stat.first_time;
  ds.shm_dtime = stat.second_time;
  ds.shm_ctime = stat.change_time;
  ds.shm_cpid = static_cast<pid_t>(stat.first_pid);
  ds.shm_lpid = static_cast<pid_t>(stat.second_pid);
  ds.shm_nattch = stat.count;
  return copy_out(buffer, &ds, sizeof ds);
}
}  // namespace

int64_t do_shmctl(int id, int cmd, void* buffer) {
  Exchange what;
  what.call.op = Op::kShmCtl;
  what.call.id = id;
  what.call.cmd = cmd;
  SetArguments arguments;
  Stat stat;
  Usage usage;
  switch (cmd) {
    case IPC_SET: {
      shmid_ds ds;
      if (copy_in(&ds, buffer, sizeof ds) != 0) {
        return finish(EFAULT, 0);
      }
      arguments = {ds.shm_perm.uid, ds.shm_perm.gid, ds.shm_perm.mode, 0, 0};
      what.payload = &arguments;
      what.payload_bytes = sizeof arguments;
      return finish(exchange(what), 0);
    }
    case IPC_STAT:
    case SHM_STAT:
    case SHM_STAT_ANY: {
      what.out = &stat;
      what.out_bytes = sizeof stat;
      int error = exchange(what);
      error = error == 0 ? write_stat(buffer, stat) : error;
      return finish(error, what.answer.value);
    }
    case IPC_INFO:
    case SHM_INFO: {
      what.out = &usage;
      what.out_bytes = sizeof usage;
      int error = exchange(what);
      error = error == 0 ? write_info(cmd, buffer, usage) : error;
      return finish(error, what.answer.value);
    }
    default: {
      const int error = exchange(what);
      return finish(error, what.answer.value);
    }
  }
}

}  // namespace kevre::ipc::preload

using namespace kevre::ipc::preload;
KEVRE_EXPORT int shmget(key_t key, size_t bytes, int flags) noexcept {
  return static_cast<int>(do_shmget(key, bytes, flags));
}
KEVRE_EXPORT void* shmat(int id, const void* address, int flags) noexcept {
  return reinterpret_cast<void*>(do_shmat(id, address, flags));
}
KEVRE_EXPORT int shmdt(const void* address) noexcept {
  return static_cast<int>(do_shmdt(address));
}
KEVRE_EXPORT int shmctl(int id, int cmd, shmid_ds* buffer) noexcept {
  return static_cast<int>(do_shmctl(id, cmd, buffer));
}
