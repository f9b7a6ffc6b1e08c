// A program for tests: a forked process that attaches a segment the way an unmodified program does through
// the preload library (USERFAULTFD_IOC_NEW on the daemon's descriptor, mmap, descriptor and address sent
// back), waits until it is served, and then runs a body. Killed and reaped by the destructor, whatever the
// test did. Also the body that obeys commands (load, store, add, fork, ...), for tests that go step by step.
#pragma once

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/fd.h"
#include "dsm/uffd.h"

namespace kevre::dsm::test {

inline void add_atomically(volatile void* at, uint64_t value) {
  __asm__ volatile("lock xaddq %0, %1"
                   : "+r"(value), "+m"(*static_cast<volatile uint64_t*>(at))
                   :
                   : "memory");
}

class Program {
 public:
  // `memory`: where the segment is mapped; `control`: the program's end of a SOCK_SEQPACKET pair.
  using Body = std::function<int(std::byte* memory, int control)>;
  struct Options {
    uid_t uid = 0;
    int protection = PROT_READ | PROT_WRITE;
  };

  Program(int device, int memfd, uint64_t bytes, const Options& options, const Body& body) {
    int pair[2];
    KEVRE_CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    pid_ = ::fork();
    KEVRE_CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::close(pair[0]);
      ::_exit(run(device, memfd, bytes, options, body, pair[1]));
    }
    ::close(pair[1]);
    control_.reset(pair[0]);
    std::byte record[8];
    auto received = receive_with_fds(control_.get(), record);
    KEVRE_CHECK(received && received->bytes == 8 && received->fds.size() == 1,
                "the program could not attach");
    std::memcpy(&address_, record, 8);
    uffd_ = std::move(received->fds[0]);
  }
  Program(Program&&) = delete;
  ~Program() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }

  UniqueFd take_uffd() { return std::move(uffd_); }
  uint64_t address() const { return address_; }
  pid_t pid() const { return pid_; }
  int control() const { return control_.get(); }
  void go() { KEVRE_CHECK(::send(control_.get(), "g", 1, MSG_NOSIGNAL) == 1); }  // it is served: run the body
  void kill() { ::kill(pid_, SIGKILL); }
  // Exit status as waitpid gives it; true when it has ended.
  bool ended(int* status) {
    if (pid_ > 0 && ::waitpid(pid_, status, WNOHANG) == pid_) {
      pid_ = -1;
      return true;
    }
    return false;
  }
  void reap() {
    if (pid_ > 0) {
      ::waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
  }

 private:
  static int run(int device, int memfd, uint64_t bytes, const Options& options, const Body& body,
                 int control) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (options.uid != 0 &&
        (::setgroups(0, nullptr) != 0 || ::setgid(options.uid) != 0 || ::setuid(options.uid) != 0)) {
      return 101;
    }
    const int fd = uffd::create(device);
    void* const memory = ::mmap(nullptr, bytes, options.protection, MAP_SHARED, memfd, 0);
    if (fd < 0 || memory == MAP_FAILED) {
      return 102;
    }
    const auto address = reinterpret_cast<uint64_t>(memory);
    const int fds[] = {fd};
    char go = 0;
    if (!send_with_fds(control, std::as_bytes(std::span(&address, 1)), fds) ||
        ::recv(control, &go, 1, 0) != 1) {
      return 103;
    }
    return body(static_cast<std::byte*>(memory), control);  // fd stays open for the program's life
  }

  pid_t pid_ = -1;
  UniqueFd control_;
  UniqueFd uffd_;
  uint64_t address_ = 0;
};

// ---- the body that obeys

struct Command {
  enum class Kind : uint8_t {
    kLoad,
    kStore,
    kAdd,
    kKernelStore,
    kDontNeed,
    kRemove,
    kUnmap,
    kMove,
    kBecomeChild,
    kExit,
  } kind = Kind::kLoad;
  uint64_t offset = 0;
  uint64_t value = 0;
};
struct Answer {
  uint64_t value = 0;
  int signal = 0;  // SIGBUS: the access failed so
  int error = 0;
};

inline sigjmp_buf bus_jump;
inline void on_bus(int) {
  ::siglongjmp(bus_jump, 1);
}

inline Answer obey_one(std::byte** memory, const Command& command) {
  Answer answer;
  std::byte* const at = *memory + command.offset;
  auto* const word = reinterpret_cast<volatile uint64_t*>(at);
  if (sigsetjmp(bus_jump, 1) != 0) {
    answer.signal = SIGBUS;
    return answer;
  }
  int result = 0;
  switch (command.kind) {
    case Command::Kind::kLoad:
      answer.value = *word;
      break;
    case Command::Kind::kStore:
      *word = command.value;
      break;
    case Command::Kind::kAdd:
      add_atomically(at, command.value);
      break;
    case Command::Kind::kKernelStore: {
      int ends[2];
      result = ::pipe(ends);
      if (::write(ends[1], &command.value, 8) != 8 || ::read(ends[0], at, 8) != 8) {
        result = -1;
      }
      ::close(ends[0]);
      ::close(ends[1]);
      break;
    }
    case Command::Kind::kDontNeed:
      result = ::madvise(at, 4096, MADV_DONTNEED);
      break;
    case Command::Kind::kRemove:
      result = ::madvise(at, 4096, MADV_REMOVE);
      break;
    case Command::Kind::kUnmap:
      result = ::munmap(at, command.value);
      break;
    case Command::Kind::kMove: {
      void* const moved =
          ::mremap(*memory, command.value, command.value, MREMAP_MAYMOVE | MREMAP_FIXED,
                   ::mmap(nullptr, command.value, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      result = moved == MAP_FAILED ? -1 : 0;
      *memory = static_cast<std::byte*>(moved);
      break;
    }
    case Command::Kind::kBecomeChild: {  // from now on a child obeys, and the parent waits for it
      const pid_t child = ::fork();
      if (child == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        answer.value = static_cast<uint64_t>(::getpid());
        return answer;
      }
      int status = 0;
      ::waitpid(child, &status, 0);
      ::_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 99);
    }
    case Command::Kind::kExit:
      ::_exit(static_cast<int>(command.value));
  }
  answer.error = result == 0 ? 0 : errno;
  return answer;
}

inline Program::Body obey() {
  return [](std::byte* memory, int control) {
    struct sigaction action {};
    action.sa_handler = on_bus;
    action.sa_flags = SA_NODEFER;
    ::sigaction(SIGBUS, &action, nullptr);
    Command command;
    std::byte* place = memory;
    while (::recv(control, &command, sizeof command, 0) == static_cast<ssize_t>(sizeof command)) {
      const Answer answer = obey_one(&place, command);
      if (::send(control, &answer, sizeof answer, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof answer)) {
        break;
      }
    }
    return 0;
  };
}

}  // namespace kevre::dsm::test
