#include "cluster/local.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/clock.h"
#include "base/fd.h"
#include "cluster/handshake.h"
#include "cluster/key.h"
#include "cluster/local_net.h"
#include "cluster/pid_range.h"

namespace kevre::cluster::local {
namespace {

namespace fs = std::filesystem;

constexpr int kStartTimeoutMs = 30'000;
constexpr int kEndTimeoutMs = 10'000;
constexpr int kMakeRetries = 100;
constexpr int kLockRetryUs = 10'000;
constexpr int kNamespaces = CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS;

// The name becomes a folder that down() removes with all that is in it: nothing that leads elsewhere may
// pass.
Result<void> check_name(const std::string& cluster) {
  if (!good_name(cluster)) {
    return fail(Errc::kInvalid,
                "'{}' is no name for a cluster; use letters, digits, '-', '_' and '.', at most 63, not '.' "
                "or '-' first",
                cluster);
  }
  return {};
}

// Whoever builds or takes down a cluster holds its folder locked; the kernel lets go when that process dies.
// kNotFound: the folder was removed meanwhile. `wait_ms` 0: kBusy when another process has it.
Result<UniqueFd> lock_directory(const std::string& directory, int wait_ms) {
  const Nanos deadline = now_ns() + wait_ms * kMillisecond;
  UniqueFd folder(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder) {
    return fail(Errc::kNotFound, "{} was removed meanwhile", directory);
  }
  while (::flock(folder.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return fail_errno("lock {}", directory);
    }
    if (now_ns() >= deadline) {
      return fail(Errc::kBusy,
                  "another 'kevre cluster up' or 'down' works on {}: try again when it has ended", directory);
    }
    ::usleep(kLockRetryUs);
  }
  struct stat ours {
  }, there{};
  if (::fstat(folder.get(), &ours) != 0 || ::stat(directory.c_str(), &there) != 0 ||
      ours.st_ino != there.st_ino) {
    return fail(Errc::kNotFound, "{} was removed meanwhile", directory);
  }
  return folder;
}

// "pid starttime": a pid alone may be somebody else's by now.
uint64_t start_time_of(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t end = text.rfind(')');
  if (end == std::string::npos) {
    return 0;
  }
  std::istringstream fields(text.substr(end + 2));
  std::string word;
  for (int i = 0; i < 19; ++i) {
    fields >> word;  // field 22 of proc(5) is the 20th behind the name
  }
  uint64_t time = 0;
  fields >> time;
  return time;
}

Result<void> write_pid_file(const std::string& path, pid_t pid) {
  std::ofstream file(path);
  file << pid << ' ' << start_time_of(pid) << '\n';
  file.close();
  if (!file) {
    return fail(Errc::kExhausted, "cannot write {}: is the disk full?", path);
  }
  return {};
}

pid_t read_pid_file(const std::string& path) {
  std::ifstream file(path);
  pid_t pid = -1;
  uint64_t time = 0;
  if (!(file >> pid >> time) || pid <= 1 || start_time_of(pid) != time || time == 0) {
    return -1;
  }
  return pid;
}

Result<void> end_process(pid_t pid, int first_signal) {
  const UniqueFd handle(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!handle) {
    return {};  // gone
  }
  for (const int number : {first_signal, SIGKILL}) {
    ::syscall(SYS_pidfd_send_signal, handle.get(), number, nullptr, 0);
    pollfd ended{handle.get(), POLLIN, 0};
    if (::poll(&ended, 1, kEndTimeoutMs) == 1) {
      ::waitpid(pid, nullptr, WNOHANG);  // when it is ours
      return {};
    }
  }
  return fail(Errc::kTimedOut, "process {} does not end: see /proc/{}/stack", pid, pid);
}

// Programs of plain nodes whose init was killed: their environment names the cluster's folder.
void end_orphans(const std::string& directory) {
  const std::string mark = "KEVRE_SOCKET=" + directory + "/";
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
    const std::string pid = entry.path().filename().string();
    if (std::isdigit(static_cast<unsigned char>(pid[0])) == 0) {
      continue;
    }
    std::ifstream file(entry.path() / "environ", std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    if (text.compare(0, mark.size(), mark) == 0 || text.find('\0' + mark) != std::string::npos) {
      (void)end_process(std::atoi(pid.c_str()), SIGKILL);
    }
  }
}

struct Pipe {
  UniqueFd read, write;
};

Result<Pipe> make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) {
    return fail_errno("pipe2");
  }
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// One line; an empty one at end of file. `stop_fd` readable: the user wants no more of it.
Result<std::string> read_line(int fd, int timeout_ms, int stop_fd) {
  std::string line;
  const Nanos deadline = now_ns() + timeout_ms * kMillisecond;
  for (;;) {
    const Nanos left = deadline - now_ns();
    std::array<pollfd, 2> readable{pollfd{fd, POLLIN, 0}, pollfd{stop_fd, POLLIN, 0}};
    if (left <= 0 ||
        ::poll(readable.data(), readable.size(), static_cast<int>(left / kMillisecond) + 1) == 0) {
      return fail(Errc::kTimedOut, "no answer within {} s", timeout_ms / 1000);
    }
    if (readable[1].revents != 0) {
      return fail(Errc::kBusy, "interrupted: what had been started is ended");
    }
    char c = 0;
    const ssize_t got = ::read(fd, &c, 1);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0 || c == '\n') {
      return line;
    }
    line += c;
  }
}

[[noreturn]] void exec(const std::vector<std::string>& words) {
  std::vector<char*> arguments;
  for (const std::string& word : words) {
    arguments.push_back(const_cast<char*>(word.c_str()));
  }
  arguments.push_back(nullptr);
  ::execv(arguments[0], arguments.data());
  ::_exit(127);
}

void detach_from_terminal() {
  ::setsid();
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    ::dup2(null.get(), fd);
  }
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

bool may_make_namespaces() {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(::unshare(kNamespaces) == 0 ? 0 : 1);
  }
  int status = 1;
  return child > 0 && ::waitpid(child, &status, 0) == child && status == 0;
}

Result<void> remove_cluster(const std::string& cluster);

// Starts and tracks the parts of one cluster; what it started ends when build() fails.
class Builder {
 public:
  explicit Builder(const Options& options) : options_(options), directory_(directory_of(options.name)) {}

  Result<UpResult> build() {
    Result<UpResult> result = try_build();
    if (!result && made_directory_) {
      roll_back();
    }
    return result;
  }

 private:
  // From memory, not from the pid files: perhaps the disk had no room for them.
  void roll_back() {
    starting_.clear();  // those that wait for the go byte see its end
    for (const pid_t pid : started_) {
      (void)end_process(pid, SIGTERM);
    }
    (void)remove_cluster(options_.name);
  }

  Result<UpResult> try_build() {
    KEVRE_TRY(check_name(options_.name));
    KEVRE_TRY(make_directory());
    plain_ = options_.plain;
    if (!plain_ && !may_make_namespaces()) {
      plain_ = true;
      missing_ =
          "no right to make namespaces: the nodes are plain processes on 127.0.0.1 and share pids; run as "
          "root for full nodes";
    }
    KEVRE_TRY(write_key_file(directory_ + "/key", generate_key()));
    if (!plain_) {
      KEVRE_TRY(start_holder());
    }
    for (uint32_t k = 1; k <= static_cast<uint32_t>(options_.nodes); ++k) {
      KEVRE_TRY(start_init(k));
    }
    if (!plain_) {
      std::vector<pid_t> inits;
      for (const Starting& s : starting_) {
        inits.push_back(s.node.init_pid);
      }
      KEVRE_TRY(join_by_bridge(holder_, inits, soft_roce().empty() ? 0 : kRdmaMtu));
    }
    UpResult up;
    up.missing = missing_;
    for (Starting& s : starting_) {
      KEVRE_TRY(start_daemon(s));
      up.nodes.push_back(s.node);
    }
    return up;
  }

  std::string soft_roce() const {
    if (plain_ || options_.transport == "ucx" || (options_.transport == "auto" && !soft_roce_loaded())) {
      return "";
    }
    return options_.transport == "verbs" ? "must" : "try";
  }

  Result<void> make_directory() {
    std::error_code failed;
    int made = -1;
    for (int i = 0; i < kMakeRetries && made != 0;
         ++i) {  // `down` of another cluster removes the parent when it is empty
      fs::create_directories(fs::path(directory_).parent_path(), failed);
      made = ::mkdir(directory_.c_str(), 0755);
      if (made != 0 && errno != ENOENT) {
        break;
      }
    }
    if (made != 0) {
      if (errno == EEXIST) {
        return fail(Errc::kExists,
                    "cluster '{0}' is up already, or left over: 'kevre --cluster {0} cluster down' ends it",
                    options_.name);
      }
      return fail_errno("create {}", directory_);
    }
    KEVRE_ASSIGN(lock_, lock_directory(directory_, 0));
    made_directory_ = true;
    return {};
  }

  Result<void> start_holder() {
    KEVRE_ASSIGN(Pipe failed, make_pipe());
    const pid_t child = ::fork();
    if (child < 0) {
      return fail_errno("fork");
    }
    if (child > 0) {
      started_.push_back(child);
    }
    if (child == 0) {
      detach_from_terminal();
      if (::unshare(CLONE_NEWNET) != 0) {
        ::dprintf(failed.write.get(), "%s\n", std::strerror(errno));
        ::_exit(1);
      }
      exec({options_.kevred, "--hold", "--cluster-directory", directory_});
    }
    holder_ = child;
    failed.write.reset();
    KEVRE_TRY(write_pid_file(directory_ + "/hold.pid", holder_));
    KEVRE_ASSIGN(const std::string text, read_line(failed.read.get(), kStartTimeoutMs, options_.stop_fd));
    if (!text.empty()) {
      return fail(Errc::kDenied, "network namespace for the bridge: {}", text);
    }
    return {};
  }

  struct Starting {
    Node node;
    uint32_t index = 0;
    UniqueFd ready, go;
  };

  std::vector<std::string> init_command(const Starting& s, int ready, int go) const {
    // The others join the first. A plain first node chooses its port, so they are made when it listens: start_init.
    const PidRange pids = PidRange::divide(s.index, static_cast<uint32_t>(options_.nodes));
    const std::string listen = plain_ ? fmt::format("127.0.0.1:{}", 0) : node_address(s.index) + ":7711";
    std::vector<std::string> words{options_.kevred, "--init",
                                   "--name",        s.node.name,
                                   "--init-index",  std::to_string(s.index),
                                   "--init-nodes",  std::to_string(options_.nodes),
                                   "--ready-fd",    std::to_string(ready),
                                   "--go-fd",       std::to_string(go),
                                   "--log",         s.node.directory + "/log"};
    if (!soft_roce().empty()) {
      words.insert(words.end(), {"--init-soft-roce", soft_roce()});
    }
    if (plain_) {
      words.push_back("--init-plain");
    } else {
      words.insert(words.end(),
                   {"--pid-first", std::to_string(pids.first()), "--pid-last", std::to_string(pids.last())});
    }
    if (s.index > 1) {
      words.insert(words.end(), {"--join", first_address_});
    }
    words.insert(words.end(), {"--listen", listen, "--key-file", directory_ + "/key", "--control-socket",
                               s.node.control_socket, "--node-socket", s.node.node_socket,
                               "--cluster-directory", directory_, "--transport", options_.transport});
    words.insert(words.end(), options_.daemon_arguments.begin(), options_.daemon_arguments.end());
    return words;
  }

  Result<void> start_init(uint32_t index) {
    Starting s;
    s.index = index;
    s.node.name = fmt::format("n{}", index);
    s.node.directory = directory_ + "/" + s.node.name;
    s.node.control_socket = s.node.directory + "/control.sock";
    s.node.node_socket = s.node.directory + "/node.sock";
    if (::mkdir(s.node.directory.c_str(), 0755) != 0) {
      return fail_errno("create {}", s.node.directory);
    }
    if (!plain_) {
      first_address_ = node_address(1) + ":7711";
    } else if (index > 1) {
      // Plain nodes choose free ports: node 1 has to be up before the others can be told where to join.
      starting_.push_back(std::move(s));
      return {};
    }
    KEVRE_TRY(fork_init(s));
    starting_.push_back(std::move(s));
    return {};
  }

  Result<void> fork_init(Starting& s) {
    KEVRE_ASSIGN(Pipe ready, make_pipe());
    KEVRE_ASSIGN(Pipe go, make_pipe());
    KEVRE_ASSIGN(Pipe number, make_pipe());
    const pid_t child = ::fork();
    if (child < 0) {
      return fail_errno("fork");
    }
    if (child == 0) {
      detach_from_terminal();
      if (!plain_ && ::unshare(kNamespaces) != 0) {
        ::_exit(1);
      }
      const pid_t init = ::fork();
      if (init == 0) {
        ::fcntl(ready.write.get(), F_SETFD, 0);
        ::fcntl(go.read.get(), F_SETFD, 0);
        exec(init_command(s, ready.write.get(), go.read.get()));
      }
      ::dprintf(number.write.get(), "%d\n", init);
      ::_exit(0);
    }
    ready.write.reset();
    number.write.reset();
    KEVRE_ASSIGN(const std::string text, read_line(number.read.get(), kStartTimeoutMs, options_.stop_fd));
    ::waitpid(child, nullptr, 0);
    s.node.init_pid = text.empty() ? -1 : std::atoi(text.c_str());
    if (s.node.init_pid <= 0) {
      return fail(Errc::kDenied, "cannot start the first process of {}: is the limit of processes reached?",
                  s.node.name);
    }
    started_.push_back(s.node.init_pid);
    KEVRE_TRY(write_pid_file(s.node.directory + "/init.pid", s.node.init_pid));
    const Result<std::string> made = read_line(ready.read.get(), kStartTimeoutMs, options_.stop_fd);
    KEVRE_TRY(made);
    if (*made != "made") {
      return fail(Errc::kSystem, "{}", made->empty() ? s.node.name + ": its first process ended" : *made);
    }
    s.ready = std::move(ready.read);
    s.go = std::move(go.write);
    return {};
  }

  Result<void> start_daemon(Starting& s) {
    if (!s.go) {
      KEVRE_TRY(fork_init(s));
    }
    if (::write(s.go.get(), "g", 1) != 1) {
      return fail_errno("{}: its first process is gone", s.node.name);
    }
    const auto line = read_line(s.ready.get(), kStartTimeoutMs, options_.stop_fd);
    if (!line || line->compare(0, 6, "ready ") != 0) {
      const std::string said = line && !line->empty() ? *line : last_line(s.node.directory + "/log");
      return fail(
          Errc::kSystem, "{} did not start: {}", s.node.name,
          !said.empty() ? said : (line ? std::string("the daemon ended without a word") : line.error().text));
    }
    if (s.index == 1) {
      first_address_ = line->substr(6);
    }
    if (options_.progress) {
      options_.progress(fmt::format("{} is up on {}", s.node.name, line->substr(6)));
    }
    return {};
  }

  static std::string last_line(const std::string& path) {
    std::ifstream file(path);
    std::string line, last;
    while (std::getline(file, line)) {
      last = line.empty() ? last : line;
    }
    return last;
  }

  const Options& options_;
  std::string directory_;
  bool made_directory_ = false;
  bool plain_ = false;
  std::string missing_;
  pid_t holder_ = -1;
  UniqueFd lock_;
  std::vector<pid_t> started_;
  std::string first_address_;
  std::vector<Starting> starting_;
};

}  // namespace

std::string directory_of(const std::string& cluster) {
  if (::geteuid() == 0) {
    return "/run/kevre/" + cluster;
  }
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && ::access(runtime, W_OK) == 0) {
    return fmt::format("{}/kevre/{}", runtime, cluster);
  }
  return fmt::format("/tmp/kevre-{}/{}", ::geteuid(), cluster);
}

Result<UpResult> up(const Options& options) {
  return Builder(options).build();
}

Result<std::vector<Node>> describe(const std::string& cluster) {
  KEVRE_TRY(check_name(cluster));
  const std::string directory = directory_of(cluster);
  if (!fs::exists(directory)) {
    return fail(Errc::kNotFound,
                "no cluster '{}' on this machine: start one with 'kevre cluster up --local 3'", cluster);
  }
  std::vector<Node> nodes;
  for (uint32_t k = 1; fs::exists(fmt::format("{}/n{}", directory, k)); ++k) {
    Node node;
    node.name = fmt::format("n{}", k);
    node.directory = directory + "/" + node.name;
    node.control_socket = node.directory + "/control.sock";
    node.node_socket = node.directory + "/node.sock";
    node.init_pid = read_pid_file(node.directory + "/init.pid");
    nodes.push_back(std::move(node));
  }
  return nodes;
}

namespace {

// The caller holds the folder locked.
Result<void> remove_cluster(const std::string& cluster) {
  KEVRE_ASSIGN(const std::vector<Node> nodes, describe(cluster));
  const std::string directory = directory_of(cluster);
  // The first that could not be ended is reported, after everything else was tried.
  Result<void> result;
  const auto note = [&](Result<void> one) { result = result ? std::move(one) : std::move(result); };
  for (const Node& node : nodes) {
    if (node.init_pid > 0) {
      note(end_process(node.init_pid, SIGTERM));
    }
  }
  if (const pid_t holder = read_pid_file(directory + "/hold.pid"); holder > 0) {
    note(end_process(holder, SIGKILL));
  }
  end_orphans(directory);
  if (result) {
    std::error_code failed;
    fs::remove_all(directory, failed);
    if (failed) {
      return fail(Errc::kSystem, "remove {}: {}", directory, failed.message());
    }
    fs::remove(fs::path(directory).parent_path(), failed);  // only when it is empty
  }
  return result;
}

}  // namespace

Result<void> down(const std::string& cluster) {
  KEVRE_TRY(describe(cluster));
  KEVRE_ASSIGN(const UniqueFd lock, lock_directory(directory_of(cluster), kStartTimeoutMs));
  return remove_cluster(cluster);
}

}  // namespace kevre::cluster::local
