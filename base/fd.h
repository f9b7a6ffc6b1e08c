// UniqueFd: owns one descriptor and closes it. Also the few descriptor helpers that every folder needs.
// Threads: any, one owner at a time. Tested in tests/base/fd_test.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/result.h"

namespace kevre {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

// A datagram or record with descriptors attached (SCM_RIGHTS), on a connected UNIX socket.
// send_with_fds: the whole of `bytes` or an error. Blocks only if the socket does.
Result<void> send_with_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds);

struct Received {
  size_t bytes = 0;  // 0: the other side closed
  std::vector<UniqueFd> fds;
};
// At most `buffer.size()` bytes and 8 descriptors (CLOEXEC). A longer record or more descriptors: Errc::kCorrupt.
Result<Received> receive_with_fds(int socket, std::span<std::byte> buffer);

Result<void> set_nonblocking(int fd, bool on);

}  // namespace kevre
