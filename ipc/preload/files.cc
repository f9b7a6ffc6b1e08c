// open, openat, fopen (and their 64-bit and fortified names) for exactly /proc/sysvipc/{shm,sem,msg}, which
// ipcs, lsipc and ipcrm read, and the settings in /proc/sys/kernel; and ftok, which must give one key for one
// file on every node.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "ipc/preload/connection.h"

namespace kevre::ipc::preload {
namespace {
int text_number(const char* path) {
  constexpr char kPrefix[] = "/proc/sysvipc/";
  if (path == nullptr || ::strncmp(path, kPrefix, sizeof kPrefix - 1) != 0) {
    return -1;
  }
  const char* name = path + sizeof kPrefix - 1;
  return ::strcmp(name, "shm") == 0   ? 0
         : ::strcmp(name, "sem") == 0 ? 1
         : ::strcmp(name, "msg") == 0 ? 2
                                      : -1;
}

// The settings come behind the three texts.
constexpr int kTexts = 3;
int file_number(const char* path) {
  constexpr char kPrefix[] = "/proc/sys/kernel/";
  if (path == nullptr || ::strncmp(path, kPrefix, sizeof kPrefix - 1) != 0) {
    return text_number(path);
  }
  for (int i = 0; i < kSettings; ++i) {
    if (::strcmp(path + sizeof kPrefix - 1, kSettingNames[i]) == 0) {
      return kTexts + i;
    }
  }
  return -1;
}

// The setting's text, to be read at `end`'s other end, and then its end.
int give_text(int setting, int end) {
  Exchange what;
  what.call.op = Op::kSettingText;
  what.call.index = setting;
  const int error = exchange(what);
  if (error != 0) {
    return error;
  }
  char text[kSettingBytesMax];
  const ssize_t got = what.fds[0] < 0 ? -1 : ::read(what.fds[0], text, sizeof text);
  ::close(what.fds[0]);
  if (got < 0 || ::write(end, text, static_cast<size_t>(got)) != got || ::shutdown(end, SHUT_WR) != 0) {
    return EMFILE;
  }
  return 0;
}

// A socket whose other end the daemon reads: what a program writes to the file. -1 and errno.
int open_setting_to_write(int setting, int flags) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return -1;
  }
  Exchange what;
  what.call.op = Op::kSettingWriter;
  what.call.index = setting;
  what.call.flags = flags & O_ACCMODE;
  what.send_fd = ends[1];
  int error = (flags & O_ACCMODE) == O_RDWR ? give_text(setting, ends[1]) : 0;
  error = error == 0 ? exchange(what) : error;
  ::close(ends[1]);
  if (error != 0) {
    ::close(ends[0]);
  } else if ((flags & O_CLOEXEC) == 0) {
    ::fcntl(ends[0], F_SETFD, 0);
  }
  return static_cast<int>(finish(error, ends[0]));
}

// A descriptor of the text, or -1 and errno.
int open_text(int which, int flags) {
  if ((flags & O_ACCMODE) != O_RDONLY) {
    if (which >= kTexts) {
      return open_setting_to_write(which - kTexts, flags);
    }
    errno = EACCES;
    return -1;
  }
  Exchange what;
  what.call.op = which < kTexts ? Op::kProcText : Op::kSettingText;
  what.call.index = which < kTexts ? which : which - kTexts;
  const int error = exchange(what);
  if (error == 0 && (flags & O_CLOEXEC) == 0) {
    ::fcntl(what.fds[0], F_SETFD, 0);
  }
  return static_cast<int>(finish(error, what.fds[0]));
}

// Before the constructors ran nobody can ask the loader: the kernel is asked directly.
using OpenAt = int (*)(int, const char*, int, ...);
using Fopen = FILE* (*)(const char*, const char*);
OpenAt g_openat = nullptr;

__attribute__((constructor)) void find_next() {
  g_openat = reinterpret_cast<OpenAt>(::dlsym(RTLD_NEXT, "openat"));
}

int open_file(int directory, const char* path, int flags, mode_t mode) {
  const int which = file_number(path);
  if (which >= 0) {
    return open_text(which, flags);
  }
  if (g_openat == nullptr) {
    return static_cast<int>(::syscall(SYS_openat, directory, path, flags, mode));
  }
  return g_openat(directory, path, flags, mode);
}

FILE* open_stream(const char* path, const char* how, Fopen next) {
  const int which = file_number(path);
  if (which < 0) {
    return next(path, how);
  }
  const int access = ::strchr(how, '+') != nullptr ? O_RDWR : how[0] == 'r' ? O_RDONLY : O_WRONLY;
  const int close_on_exec = ::strchr(how, 'e') != nullptr ? O_CLOEXEC : 0;
  const int fd = open_text(which, access | close_on_exec);
  return fd < 0 ? nullptr : ::fdopen(fd, how);
}

bool takes_mode(int flags) {
  return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
}
}  // namespace
}  // namespace kevre::ipc::preload

using namespace kevre::ipc::preload;

#define KEVRE_MODE(last)                                     \
  mode_t mode = 0;                                           \
  if (takes_mode(flags)) {                                   \
    va_list arguments;                                       \
    va_start(arguments, last);                               \
    mode = static_cast<mode_t>(va_arg(arguments, unsigned)); \
    va_end(arguments);                                       \
  }

#undef open
#undef open64
#undef openat
#undef openat64
#undef fopen
#undef fopen64
KEVRE_EXPORT int open(const char* path, int flags, ...) {
  KEVRE_MODE(flags)
  return open_file(AT_FDCWD, path, flags, mode);
}
KEVRE_EXPORT int open64(const char* path, int flags, ...) {
  KEVRE_MODE(flags)
  return open_file(AT_FDCWD, path, flags, mode);
}
KEVRE_EXPORT int openat(int directory, const char* path, int flags, ...) {
  KEVRE_MODE(flags)
  return open_file(directory, path, flags, mode);
}
KEVRE_EXPORT int openat64(int directory, const char* path, int flags, ...) {
  KEVRE_MODE(flags)
  return open_file(directory, path, flags, mode);
}
KEVRE_EXPORT int __open_2(const char* path, int flags) {
  return open_file(AT_FDCWD, path, flags, 0);
}
KEVRE_EXPORT int __open64_2(const char* path, int flags) {
  return open_file(AT_FDCWD, path, flags, 0);
}
KEVRE_EXPORT int __openat_2(int directory, const char* path, int flags) {
  return open_file(directory, path, flags, 0);
}
KEVRE_EXPORT int __openat64_2(int directory, const char* path, int flags) {
  return open_file(directory, path, flags, 0);
}
KEVRE_EXPORT FILE* fopen(const char* path, const char* how) {
  static Fopen next = nullptr;
  if (next == nullptr) {
    next = reinterpret_cast<Fopen>(::dlsym(RTLD_NEXT, "fopen"));
  }
  return open_stream(path, how, next);
}
KEVRE_EXPORT FILE* fopen64(const char* path, const char* how) {
  static Fopen next = nullptr;
  if (next == nullptr) {
    next = reinterpret_cast<Fopen>(::dlsym(RTLD_NEXT, "fopen64"));
  }
  return open_stream(path, how, next);
}

// Below another root directory the daemon's socket has no name.
KEVRE_EXPORT int chroot(const char* path) noexcept {
  const int saved_errno = errno;
  keep_folder();
  errno = saved_errno;
  return static_cast<int>(::syscall(SYS_chroot, path));
}

// glibc's layout, with the file system's id (the same on every node that mounts it) in the place of the
// device number.
KEVRE_EXPORT key_t ftok(const char* path, int project) noexcept {
  struct stat file;
  struct statfs system;
  if (::stat(path, &file) != 0 || ::statfs(path, &system) != 0) {
    return -1;
  }
  uint32_t words[2];
  memcpy(words, &system.f_fsid, sizeof words);
  uint32_t folded = words[0] ^ words[1];
  folded ^= folded >> 16;
  folded ^= folded >> 8;
  return static_cast<key_t>((static_cast<uint32_t>(file.st_ino) & 0xffffu) | (folded & 0xffu) << 16 |
                            (static_cast<uint32_t>(project) & 0xffu) << 24);
}
