// `kevre run`: the caller's side. Carries stdin, stdout, stderr, signals, window size and exit status between this
// process and programs that daemons start; on a terminal the program gets a terminal.
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/sockets.h"

extern char** environ;

namespace kevre::tools {
namespace {

constexpr size_t kInputPiece = 65536;
constexpr std::array kForwarded = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT};

// The terminal in raw mode for the time of the run: keys go to the other node's terminal as they are.
class RawTerminal {
 public:
  explicit RawTerminal(bool on) : on_(on && ::tcgetattr(STDIN_FILENO, &before_) == 0) {
    if (on_) {
      termios raw = before_;
      ::cfmakeraw(&raw);
      ::tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
  }
  ~RawTerminal() {
    if (on_) {
      ::tcsetattr(STDIN_FILENO, TCSADRAIN, &before_);
    }
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  termios before_{};
  bool on_;
};

struct Program {
  ControlClient client;
  std::string node;
  bool ended = false;
  int status = 1;
};

bool write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0 && errno == EAGAIN) {
      pollfd writable{fd, POLLOUT, 0};
      ::poll(&writable, 1, -1);
      continue;
    }
    if (n <= 0) {
      return false;
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return true;
}

std::array<uint16_t, 2> window_size() {
  winsize size{};
  ::ioctl(STDIN_FILENO, TIOCGWINSZ, &size);
  return {size.ws_row, size.ws_col};
}

nlohmann::json describe(const RunOptions& options, const std::string& node, bool terminal) {
  std::vector<gid_t> groups(static_cast<size_t>(std::max(::getgroups(0, nullptr), 0)));
  ::getgroups(static_cast<int>(groups.size()), groups.data());
  const mode_t mask = ::umask(0);
  ::umask(mask);
  std::error_code ignored;
  const auto window = window_size();
  // Names and environments need not be UTF-8: such bytes travel as they are in latin-1 form, see bytes_to_json.
  nlohmann::json request = {{"do", "run"},       {"node", node},           {"tty", terminal},
                            {"uid", ::geteuid()}, {"gid", ::getegid()},     {"groups", groups},
                            {"umask", mask},      {"rows", window[0]},      {"columns", window[1]}};
  request["cwd"] = bytes_to_json(std::filesystem::current_path(ignored).string());
  request["argv"] = nlohmann::json::array();
  for (const std::string& argument : options.command) {
    request["argv"].push_back(bytes_to_json(argument));
  }
  request["environment"] = nlohmann::json::array();
  for (char** entry = environ; *entry != nullptr; ++entry) {
    request["environment"].push_back(bytes_to_json(*entry));
  }
  return request;
}

class Carrier {
 public:
  Carrier(std::vector<Program> programs, int signals, bool terminal)
      : programs_(std::move(programs)), signals_(signals), terminal_(terminal) {}

  int carry() {
    // Only the first program reads this process's input; the others see its end at once, as with mpirun.
    for (size_t i = 1; i < programs_.size(); ++i) {
      (void)programs_[i].client.send(FrameKind::kStdin, {});
    }
    while (step()) {
    }
    int worst = 0;
    for (const Program& program : programs_) {
      worst = std::max(worst, program.status);
    }
    return worst;
  }

 private:
  bool step() {
    std::vector<pollfd> watched;
    for (const Program& program : programs_) {
      watched.push_back({program.ended ? -1 : program.client.socket(), POLLIN, 0});
    }
    watched.push_back({signals_, POLLIN, 0});
    const bool room = input_under_way_ + kInputPiece <= kInputWindowBytes;
    watched.push_back({stdin_open_ && room && !programs_[0].ended ? STDIN_FILENO : -1, POLLIN, 0});
    if (::poll(watched.data(), watched.size(), -1) < 0) {
      return errno == EINTR;
    }
    bool running = false;
    for (size_t i = 0; i < programs_.size(); ++i) {
      if (watched[i].revents != 0) {
        receive(programs_[i]);
      }
      running = running || !programs_[i].ended;
    }
    if ((watched[programs_.size()].revents & POLLIN) != 0) {
      forward_signal();
    }
    if (watched[programs_.size() + 1].revents != 0) {
      forward_input();
    }
    return running && output_open_;
  }

  void receive(Program& program) {
    const auto open = program.client.receive([&](FrameKind kind, std::span<const std::byte> bytes) {
      switch (kind) {
        case FrameKind::kStdout:
          output_open_ = output_open_ && write_all(STDOUT_FILENO, bytes);
          break;
        case FrameKind::kStderr:
          write_all(STDERR_FILENO, bytes);
          break;
        case FrameKind::kExit: {
          uint32_t status = 0;
          std::memcpy(&status, bytes.data(), std::min(bytes.size(), sizeof status));
          program.status = static_cast<int>(status);
          program.ended = true;
          break;
        }
        case FrameKind::kCredit: {
          uint32_t taken = 0;
          std::memcpy(&taken, bytes.data(), std::min(bytes.size(), sizeof taken));
          input_under_way_ -= std::min<size_t>(taken, input_under_way_);
          break;
        }
        case FrameKind::kError:
          complain(Error{Errc::kSystem, 0, std::string(as_text(bytes))});
          program.ended = true;
          program.status = 1;
          break;
        case FrameKind::kJson:
        case FrameKind::kStdin:
        case FrameKind::kSignal:
        case FrameKind::kWindow:
          break;
      }
    });
    if (!program.ended && (!open || !*open)) {
      complain(Error{Errc::kPeerLost, 0, "the daemon that carried the program on " + program.node + " is gone"});
      program.ended = true;
      program.status = 1;
    }
    if (!output_open_) {
      program.status = 128 + SIGPIPE;  // nobody reads: the program is told by the closed connection
    }
  }

  void forward_signal() {
    signalfd_siginfo info{};
    if (::read(signals_, &info, sizeof info) != sizeof info) {
      return;
    }
    for (Program& program : programs_) {
      if (program.ended) {
        continue;
      }
      if (info.ssi_signo == SIGWINCH) {
        if (terminal_) {
          const auto window = window_size();
          (void)program.client.send(FrameKind::kWindow, std::as_bytes(std::span(window)));
        }
        continue;
      }
      const std::byte number{static_cast<unsigned char>(info.ssi_signo)};
      (void)program.client.send(FrameKind::kSignal, std::span(&number, 1));
    }
  }

  void forward_input() {
    std::array<std::byte, kInputPiece> buffer;
    const ssize_t got = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
      return;
    }
    stdin_open_ = got > 0;
    input_under_way_ += static_cast<size_t>(std::max<ssize_t>(got, 0));
    // The end of input is a frame without bytes. A failed send shows as the closed connection in receive().
    (void)programs_[0].client.send(FrameKind::kStdin, std::span(buffer).first(static_cast<size_t>(std::max<ssize_t>(got, 0))));
  }

  std::vector<Program> programs_;
  int signals_;
  bool terminal_;
  bool stdin_open_ = true;
  size_t input_under_way_ = 0;  // sent to the first program and not yet taken by it
  bool output_open_ = true;
};

UniqueFd watch_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : kForwarded) {
    sigaddset(&set, number);
  }
  sigaddset(&set, SIGWINCH);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  return UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC));
}

}  // namespace

int run(const Target& target, const RunOptions& options) {
  const auto path = control_socket_of(target.cluster);
  if (!path) {
    return complain(path.error());
  }
  std::vector<std::string> nodes{options.node};
  if (options.copies > 0) {
    auto client = ControlClient::connect(*path);
    if (!client) {
      return complain(client.error());
    }
    const auto listed = client->call({{"do", "nodes"}});
    if (!listed) {
      return complain(listed.error());
    }
    nodes.clear();
    for (int i = 0; i < options.copies; ++i) {
      nodes.push_back((*listed)[static_cast<size_t>(i) % listed->size()]["name"].get<std::string>());
    }
  }
  const UniqueFd signals = watch_signals();
  const bool terminal = options.copies == 0 && ::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1;
  std::vector<Program> programs;
  for (const std::string& node : nodes) {
    const auto nearest = control_socket_of(target.cluster, node);
    auto client = ControlClient::connect(nearest ? *nearest : *path);
    if (!client) {
      return complain(client.error());
    }
    programs.push_back({std::move(*client), node.empty() ? "this node" : node});
    if (const auto sent = programs.back().client.send(FrameKind::kJson, as_bytes(describe(options, node, terminal).dump())); !sent) {
      return complain(sent.error());
    }
  }
  const RawTerminal raw(terminal);
  return Carrier(std::move(programs), signals.get(), terminal).carry();
}

}  // namespace kevre::tools
