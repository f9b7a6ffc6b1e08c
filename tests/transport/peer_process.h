// The other process of the process tests: transport_peer (peer_main.cc), started, talked to and killed from
// here.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <string>

#include "base/check.h"
#include "base/fd.h"
#include "transport/transport.h"

namespace kevre::transport::testing {

// A child process with a transport; killed and reaped when this goes.
class Child {
 public:
  // `unshare_flags`: namespaces of its own (needs root).
  Child(const std::string& tls, const char* mode, int unshare_flags = 0) {
    int pair[2];
    KEVRE_CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    socket_.reset(pair[0]);
    UniqueFd theirs(pair[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      exec(theirs.get(), tls, mode, unshare_flags);
    }
  }
  ~Child() { kill(); }
  void kill() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
  }
  Address swap_addresses(const Address& mine) {
    std::array<std::byte, kAddressBytesMax> buffer;
    const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    ::send(socket_.get(), mine.data(), mine.size(), MSG_NOSIGNAL);
    return got <= 0 ? Address{} : Address(buffer.begin(), buffer.begin() + got);
  }
  void signal(int number) { ::kill(pid_, number); }
  void hang_up() { socket_.reset(); }
  int wait() {
    int status = -1;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }

 private:
  [[noreturn]] static void exec(int socket, const std::string& tls, const char* mode, int unshare_flags) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (unshare_flags != 0) {
      if (::unshare(unshare_flags) != 0) {
        ::_exit(90);
      }
      const pid_t inner = ::fork();  // the first process of the new pid namespace
      if (inner != 0) {
        int status = 0;
        ::waitpid(inner, &status, 0);
        ::_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 91);
      }
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if ((unshare_flags & CLONE_NEWNS) != 0) {
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
        ::mount("proc", "/proc", "proc", 0, nullptr);
        ::mount("tmpfs", "/dev/shm", "tmpfs", 0, nullptr);
      }
    }
    ::dup2(socket, 3);
    ::fcntl(3, F_SETFD, 0);
    const std::string path = std::string(TRANSPORT_PEER);
    ::execl(path.c_str(), path.c_str(), "2", tls.c_str(), mode, static_cast<char*>(nullptr));
    ::_exit(92);
  }

  pid_t pid_ = -1;
  UniqueFd socket_;
};

}  // namespace kevre::transport::testing
