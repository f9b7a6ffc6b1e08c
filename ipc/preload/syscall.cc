// syscall() for the numbers of System V IPC; every other number goes to the kernel as it is.
#include <stdarg.h>
#include <sys/syscall.h>

#include "ipc/preload/connection.h"

namespace kevre::ipc::preload {
namespace {
long kernel(long number, const long* a) {
  long result = 0;
#if defined(__x86_64__)
  register long a3 __asm__("r10") = a[3];
  register long a4 __asm__("r8") = a[4];
  register long a5 __asm__("r9") = a[5];
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(a3), "r"(a4), "r"(a5)
                   : "rcx", "r11", "memory");
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a[0];
  register long x1 __asm__("x1") = a[1];
  register long x2 __asm__("x2") = a[2];
  register long x3 __asm__("x3") = a[3];
  register long x4 __asm__("x4") = a[4];
  register long x5 __asm__("x5") = a[5];
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  result = x0;
#else
#error "kevre: x86-64 and aarch64 only"
#endif
  if (result < 0 && result > -4096) {
    errno = static_cast<int>(-result);
    return -1;
  }
  return result;
}

template <class T>
T* pointer(long value) {
  return reinterpret_cast<T*>(value);
}
int number(long value) {
  return static_cast<int>(value);
}
size_t size(long value) {
  return static_cast<size_t>(value);
}
}  // namespace
}  // namespace kevre::ipc::preload

using namespace kevre::ipc::preload;
KEVRE_EXPORT long syscall(long call, ...) noexcept {
  long a[6];
  va_list arguments;
  va_start(arguments, call);
  for (long& argument : a) {
    argument = va_arg(arguments, long);
  }
  va_end(arguments);
  switch (call) {
    case SYS_shmget:
      return do_shmget(number(a[0]), size(a[1]), number(a[2]));
    case SYS_shmat:
      return do_shmat(number(a[0]), pointer<void>(a[1]), number(a[2]));
    case SYS_shmdt:
      return do_shmdt(pointer<void>(a[0]));
    case SYS_shmctl:
      return do_shmctl(number(a[0]), number(a[1]), pointer<void>(a[2]));
    case SYS_semget:
      return do_semget(number(a[0]), number(a[1]), number(a[2]));
    case SYS_semop:
      return do_semtimedop(number(a[0]), pointer<void>(a[1]), size(a[2]), nullptr);
    case SYS_semtimedop:
      return do_semtimedop(number(a[0]), pointer<void>(a[1]), size(a[2]), pointer<timespec>(a[3]));
    case SYS_semctl:
      return do_semctl(number(a[0]), number(a[1]), number(a[2]), static_cast<unsigned long>(a[3]));
    case SYS_msgget:
      return do_msgget(number(a[0]), number(a[1]));
    case SYS_msgsnd:
      return do_msgsnd(number(a[0]), pointer<void>(a[1]), size(a[2]), number(a[3]));
    case SYS_msgrcv:
      return do_msgrcv(number(a[0]), pointer<void>(a[1]), size(a[2]), a[3], number(a[4]));
    case SYS_msgctl:
      return do_msgctl(number(a[0]), number(a[1]), pointer<void>(a[2]));
    default:
      return kernel(call, a);
  }
}
