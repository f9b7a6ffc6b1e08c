#include "cluster/program.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>

#include "base/check.h"
#include "base/clock.h"

namespace kevre::cluster {

Program::Program(EventLoop* loop, uint64_t run, LaunchRequest request, Emit emit)
    : loop_(loop), run_(run), request_(std::move(request)), emit_(std::move(emit)) {}

Program::~Program() {
  loop_->cancel(kill_timer_);
  if (spawned_.pidfd) {
    loop_->remove(spawned_.pidfd.get());
  }
  close_output(Stream::kOutput);
  close_output(Stream::kError);
  close_input();
  if (spawned_.pid > 0 && !process_gone_ && !request_.detach) {
    ::kill(-spawned_.pid, SIGKILL);  // the daemon ends: nobody could hear of the program any more
  }
}

void Program::emit(LaunchMessage message) {
  message.run = run_;
  if (!caller_gone_ || message.type == LaunchType::kExit) {
    emit_(std::move(message));
  }
}

Result<Descriptors> Program::open_terminal() {
  output_.fd = UniqueFd(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK));
  char name[128];
  if (!output_.fd || ::grantpt(output_.fd.get()) != 0 || ::unlockpt(output_.fd.get()) != 0 ||
      ::ptsname_r(output_.fd.get(), name, sizeof name) != 0) {
    return fail_errno("a terminal for the program");
  }
  program_ends_[0] = UniqueFd(::open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!program_ends_[0]) {
    return fail_errno("a terminal for the program ({})", name);
  }
  if (::geteuid() == 0 && ::fchown(program_ends_[0].get(), request_.uid, static_cast<gid_t>(-1)) != 0) {
    return fail_errno("a terminal for the program ({})", name);
  }
  const winsize size{request_.window.rows, request_.window.columns, 0, 0};
  ::ioctl(output_.fd.get(), TIOCSWINSZ, &size);
  const int slave = program_ends_[0].get();
  return Descriptors{slave, slave, slave, true};
}

Result<Descriptors> Program::open_streams() {
  if (request_.detach) {
    return Descriptors{};
  }
  if (request_.pty) {
    return open_terminal();
  }
  for (int i = 0; i < 3; ++i) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) {
      return fail_errno("pipes for the program");
    }
    UniqueFd& ours = i == 0 ? input_ : i == 1 ? output_.fd : error_.fd;
    ours = UniqueFd(ends[i == 0 ? 1 : 0]);
    program_ends_[i] = UniqueFd(ends[i == 0 ? 0 : 1]);
    KEVRE_TRY(set_nonblocking(ours.get(), true));
  }
  return Descriptors{program_ends_[0].get(), program_ends_[1].get(), program_ends_[2].get(), false};
}

void Program::start() {
  const Result<Descriptors> descriptors = open_streams();
  SpawnResult result;
  if (descriptors) {
    result = spawn(request_, *descriptors);
  } else {
    result.failed = ExitStatus{ExitStatus::Kind::kFailed, 1, descriptors.error().text};
  }
  for (UniqueFd& fd : program_ends_) {
    fd.reset();
  }
  LaunchMessage m;
  if (!result.started) {
    ended_ = true;
    status_ = result.failed;
    m.type = LaunchType::kExit;
    m.status = status_;
    emit(std::move(m));
    return;
  }
  spawned_ = std::move(result.program);
  m.type = LaunchType::kStarted;
  m.number = static_cast<uint32_t>(spawned_.pid);
  emit(std::move(m));
  if (!loop_->add(spawned_.pidfd.get(), EPOLLIN, [this](uint32_t) { on_process_end(); })) {
    send_signal(SIGKILL);  // no descriptors or memory left: an unwatched program would be lost
    on_process_end();
    return;
  }
  watch(Stream::kOutput, true);
  watch(Stream::kError, true);
}

void Program::watch(Stream stream, bool on) {
  Out& o = out(stream);
  const bool terminal_input = request_.pty && stream == Stream::kOutput && input_watched_;
  if (!o.fd) {
    return;
  }
  const uint32_t events = (on ? EPOLLIN : 0u) | (terminal_input ? EPOLLOUT : 0u);
  // A descriptor with no event wanted still reports a hang-up for ever, so it leaves the loop.
  if (events == 0) {
    if (o.watched) {
      loop_->remove(o.fd.get());
      o.watched = false;
    }
  } else if (o.watched) {
    loop_->modify(o.fd.get(), events);
  } else {
    o.watched = loop_
                    ->add(o.fd.get(), events,
                          [this, stream](uint32_t happened) {
                            if ((happened & EPOLLOUT) != 0) {
                              write_input();
                            }
                            if ((happened & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
                              read_output(stream);
                            }
                          })
                    .has_value();
  }
}

void Program::close_output(Stream stream) {
  Out& o = out(stream);
  if (o.fd && o.watched) {
    loop_->remove(o.fd.get());
    o.watched = false;
  }
  o.fd.reset();
}

void Program::read_output(Stream stream) {
  Out& o = out(stream);
  while (o.fd && o.credit > 0) {
    LaunchMessage m;
    m.type = LaunchType::kData;
    m.stream = stream;
    m.data.resize(std::min(o.credit, kChunkBytesMax));
    const ssize_t n = ::read(o.fd.get(), m.data.data(), m.data.size());
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0 && errno == EAGAIN) {
      break;
    }
    if (n <= 0) {  // the end; a terminal says EIO when its last user is gone
      close_output(stream);
      break;
    }
    m.data.resize(static_cast<size_t>(n));
    o.credit -= !caller_gone_ ? static_cast<size_t>(n) : 0;  // without a caller it is only thrown away
    emit(std::move(m));
    if (static_cast<size_t>(n) < kChunkBytesMax && !process_gone_) {
      break;  // a short read has most likely emptied it; let others have their turn
    }
  }
  watch(stream, o.credit > 0);
  report_when_drained();
}

void Program::write_input() {
  const int fd = request_.pty ? output_.fd.get() : input_.get();
  size_t written = 0;
  bool full = false;
  while (fd >= 0 && written < pending_input_.size()) {
    const ssize_t n = ::write(fd, pending_input_.data() + written, pending_input_.size() - written);
    if (n > 0) {
      written += static_cast<size_t>(n);
    } else if (n < 0 && errno == EAGAIN) {
      full = true;
      break;
    } else if (n < 0 && errno != EINTR) {  // nobody reads any more: swallowed, as the pipe of a shell does
      break;
    }
  }
  if (!full) {
    written = pending_input_.size();
  }
  pending_input_.erase(pending_input_.begin(), pending_input_.begin() + static_cast<ptrdiff_t>(written));
  if (written > 0) {
    LaunchMessage m;
    m.type = LaunchType::kCredit;
    m.stream = Stream::kInput;
    m.number = static_cast<uint32_t>(written);
    emit(std::move(m));
  }
  if (request_.pty) {
    input_watched_ = full;
    watch(Stream::kOutput, output_.credit > 0);
  } else if (input_ && full != input_watched_) {
    input_watched_ = full;
    if (full) {
      (void)loop_->add(input_.get(), EPOLLOUT, [this](uint32_t) { write_input(); });
    } else {
      loop_->remove(input_.get());
    }
  }
  if (!full && input_ends_) {
    close_input();
  }
}

void Program::close_input() {
  if (request_.pty && output_.fd && input_ends_) {
    // A terminal's end of file is a character; the terminal stays open for output.
    const cc_t end = 4;
    (void)!::write(output_.fd.get(), &end, 1);
    input_ends_ = false;
  }
  if (input_) {
    if (input_watched_) {
      loop_->remove(input_.get());
      input_watched_ = false;
    }
    input_.reset();
  }
}

void Program::send_signal(int signal) {
  if (spawned_.pid > 0 && !process_gone_) {
    ::kill(-spawned_.pid, signal);
  }
}

void Program::on_message(const LaunchMessage& m) {
  switch (m.type) {
    case LaunchType::kData:
      if (m.stream == Stream::kInput && !input_ends_ &&
          pending_input_.size() + m.data.size() <= kWindowBytes) {
        pending_input_.insert(pending_input_.end(), m.data.begin(), m.data.end());
        write_input();
      }
      break;
    case LaunchType::kInputEnd:
      input_ends_ = true;
      write_input();
      break;
    case LaunchType::kCredit:
      if (m.stream != Stream::kInput) {
        Out& o = out(m.stream);
        o.credit = std::min(kWindowBytes, o.credit + m.number);
        read_output(m.stream);
      }
      break;
    case LaunchType::kSignal:
      send_signal(static_cast<int>(m.number));
      break;
    case LaunchType::kResize:
      if (request_.pty && output_.fd) {
        const winsize size{m.window.rows, m.window.columns, 0, 0};
        ::ioctl(output_.fd.get(), TIOCSWINSZ, &size);  // the kernel sends SIGWINCH
      }
      break;
    case LaunchType::kCancel:
      hang_up();
      break;
    case LaunchType::kStart:
    case LaunchType::kStarted:
    case LaunchType::kExit:
    case LaunchType::kWait:
      break;  // not for a program that runs
  }
}

void Program::hang_up() {
  if (request_.detach || ended_) {
    return;
  }
  caller_gone_ = true;
  // Nobody consumes what it says any more: it must not hang in a write before it can end.
  output_.credit = error_.credit = kWindowBytes;
  watch(Stream::kOutput, true);
  watch(Stream::kError, true);
  send_signal(SIGHUP);
  send_signal(SIGCONT);
  loop_->cancel(kill_timer_);
  kill_timer_ = loop_->after(kKillAfterNs, [this] { send_signal(SIGKILL); });
  input_ends_ = false;
  pending_input_.clear();
  close_input();
  if (process_gone_) {
    report_when_drained();
  }
}

void Program::on_process_end() {
  siginfo_t info{};
  if (::waitid(P_PID, static_cast<id_t>(spawned_.pid), &info, WEXITED) != 0 && errno == EINTR) {
    return;
  }
  loop_->remove(spawned_.pidfd.get());
  spawned_.pidfd.reset();
  // What it left behind in its process group has no caller any more either, unless it was to stay.
  if (kill_timer_ != 0 && !request_.detach) {
    ::kill(-spawned_.pid, SIGKILL);
  }
  process_gone_ = true;
  loop_->cancel(kill_timer_);
  status_.kind = info.si_code == CLD_EXITED ? ExitStatus::Kind::kExited : ExitStatus::Kind::kSignaled;
  status_.code = info.si_status;
  if (request_.pty) {
    // The end of its session hangs the terminal up, which read() tells after the last byte; in case it does
    // not:
    kill_timer_ = loop_->after(kDrainNs, [this] {
      close_output(Stream::kOutput);
      report_when_drained();
    });
  }
  read_output(Stream::kOutput);
  read_output(Stream::kError);
  report_when_drained();
}

// Its end is told when everything that it wrote is out. What a child of it that lives on writes later is
// nobody's: the streams are closed as soon as they are empty.
void Program::report_when_drained() {
  if (!process_gone_ || ended_) {
    return;
  }
  for (const Stream stream : {Stream::kOutput, Stream::kError}) {
    int unread = 0;
    if (out(stream).fd && !caller_gone_ && request_.pty) {
      return;
    }
    if (out(stream).fd && !caller_gone_ && ::ioctl(out(stream).fd.get(), FIONREAD, &unread) == 0 &&
        unread > 0) {
      return;
    }
  }
  ended_ = true;
  loop_->cancel(kill_timer_);
  close_output(Stream::kOutput);
  close_output(Stream::kError);
  close_input();
  LaunchMessage m;
  m.type = LaunchType::kExit;
  m.status = status_;
  emit(std::move(m));
}

}  // namespace kevre::cluster
