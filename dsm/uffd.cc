#include "dsm/uffd.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace kevre::dsm::uffd {
namespace {

struct PoisonArgument {  // struct uffdio_poison, Linux 6.6
  uffdio_range range;
  uint64_t mode;
  int64_t updated;
};
constexpr unsigned long kIoctlPoison = _IOWR(UFFDIO, 0x08, PoisonArgument);
constexpr unsigned long kIoctlNew = _IO(0xAA, 0x00);  // USERFAULTFD_IOC_NEW

}  // namespace

int create(int device) {
  if (device >= 0) {
    return ::ioctl(device, kIoctlNew, O_CLOEXEC | O_NONBLOCK);
  }
  return static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
}

int api(int fd, uint64_t features, uint64_t* got) {
  uffdio_api argument{};
  argument.api = UFFD_API;
  argument.features = features;
  if (::ioctl(fd, UFFDIO_API, &argument) != 0) {
    return errno;
  }
  if (got != nullptr) {
    *got = argument.features;
  }
  return 0;
}

int register_range(int fd, uint64_t address, uint64_t bytes, uint64_t modes) {
  uffdio_register argument{};
  argument.range = {address, bytes};
  argument.mode = modes;
  return ::ioctl(fd, UFFDIO_REGISTER, &argument) == 0 ? 0 : errno;
}

int unregister(int fd, uint64_t address, uint64_t bytes) {
  uffdio_range argument{address, bytes};
  return ::ioctl(fd, UFFDIO_UNREGISTER, &argument) == 0 ? 0 : errno;
}

int copy(int fd, uint64_t to, const void* from, uint64_t bytes, uint64_t mode, uint64_t* done) {
  uffdio_copy argument{};
  argument.dst = to;
  argument.src = reinterpret_cast<uint64_t>(from);
  argument.len = bytes;
  argument.mode = mode;
  const int error = ::ioctl(fd, UFFDIO_COPY, &argument) == 0 ? 0 : errno;
  *done = argument.copy > 0 ? static_cast<uint64_t>(argument.copy) : 0;
  return error;
}

int continue_range(int fd, uint64_t address, uint64_t bytes, uint64_t mode, uint64_t* done) {
  uffdio_continue argument{};
  argument.range = {address, bytes};
  argument.mode = mode;
  const int error = ::ioctl(fd, UFFDIO_CONTINUE, &argument) == 0 ? 0 : errno;
  *done = argument.mapped > 0 ? static_cast<uint64_t>(argument.mapped) : 0;
  return error;
}

int write_protect(int fd, uint64_t address, uint64_t bytes, bool on) {
  uffdio_writeprotect argument{};
  argument.range = {address, bytes};
  argument.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  return ::ioctl(fd, UFFDIO_WRITEPROTECT, &argument) == 0 ? 0 : errno;
}

int wake(int fd, uint64_t address, uint64_t bytes) {
  uffdio_range argument{address, bytes};
  return ::ioctl(fd, UFFDIO_WAKE, &argument) == 0 ? 0 : errno;
}

int poison(int fd, uint64_t address, uint64_t bytes) {
  PoisonArgument argument{};
  argument.range = {address, bytes};
  return ::ioctl(fd, kIoctlPoison, &argument) == 0 ? 0 : errno;
}

}  // namespace kevre::dsm::uffd
