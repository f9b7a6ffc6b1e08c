#include "tools/piped_program.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <utility>

#include "base/clock.h"

extern char** environ;

namespace kevre::tools {

Result<PipedProgram> PipedProgram::start(const std::vector<std::string>& command) {
  int input[2], output[2];
  if (::pipe2(input, O_CLOEXEC) != 0) {
    return fail_errno("pipe2");
  }
  PipedProgram program;
  program.to_.reset(input[1]);
  const UniqueFd child_input(input[0]);
  if (::pipe2(output, O_CLOEXEC) != 0) {
    return fail_errno("pipe2");
  }
  program.from_.reset(output[0]);
  const UniqueFd child_output(output[1]);

  std::vector<char*> arguments;
  for (const std::string& word : command) {
    arguments.push_back(const_cast<char*>(word.c_str()));
  }
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, child_input.get(), STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, child_output.get(), STDOUT_FILENO);
  const int failed = ::posix_spawnp(&program.pid_, arguments[0], &actions, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    program.pid_ = -1;
    return fail_errno_text(failed, "start " + command[0]);
  }
  return program;
}

PipedProgram::PipedProgram(PipedProgram&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      to_(std::move(other.to_)),
      from_(std::move(other.from_)),
      pending_(std::move(other.pending_)) {}

PipedProgram::~PipedProgram() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
}

Result<std::string> PipedProgram::ask(const std::string& line, int timeout_ms) {
  const std::string text = line + "\n";
  if (::write(to_.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return fail_errno("writing to the program");
  }
  return read_line(timeout_ms);
}

Result<std::string> PipedProgram::read_line(int timeout_ms) {
  const Nanos deadline = now_ns() + timeout_ms * kMillisecond;
  for (;;) {
    if (const size_t end = pending_.find('\n'); end != std::string::npos) {
      std::string line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      return line;
    }
    const Nanos left = deadline - now_ns();
    pollfd readable{from_.get(), POLLIN, 0};
    if (left <= 0 || ::poll(&readable, 1, static_cast<int>(left / kMillisecond) + 1) == 0) {
      return fail(Errc::kTimedOut, "no answer from the program within {} ms", timeout_ms);
    }
    std::array<char, 4096> buffer;
    const ssize_t got = ::read(from_.get(), buffer.data(), buffer.size());
    if (got <= 0) {
      return fail(Errc::kPeerLost, "the program ended without an answer");
    }
    pending_.append(buffer.data(), static_cast<size_t>(got));
  }
}

Result<int> PipedProgram::finish(int timeout_ms) {
  to_.reset();
  const UniqueFd ended(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  pollfd readable{ended.get(), POLLIN, 0};
  if (!ended || ::poll(&readable, 1, timeout_ms) != 1) {
    return fail(Errc::kTimedOut, "the program did not end within {} ms", timeout_ms);
  }
  int status = 0;
  ::waitpid(std::exchange(pid_, -1), &status, 0);
  return status;
}

}  // namespace kevre::tools
