// Pid 1 of a node of a local cluster: makes the node's mounts and addresses, starts kevred, reaps orphans. When kevred
// ends, everything else on the node ends too: a node without its daemon is a lost node. Restarts nothing. On `plain` nodes the same without namespaces: it is a subreaper instead
// of pid 1, and ends its descendants one by one.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/fd.h"
#include "base/log.h"
#include "cluster/local.h"
#include "cluster/local_net.h"
#include "cluster/pid_range.h"

namespace kevre::cluster::local {
namespace {

Result<void> make_mounts() {
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return fail_errno("make mounts private");
  }
  if (::mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) {
    return fail_errno("mount /proc");
  }
  // /sys shows the network devices of the namespace it was mounted in; UCX reads it.
  if (::mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) {
    return fail_errno("mount /sys");
  }
  if (::mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777") != 0) {
    return fail_errno("mount /dev/shm");
  }
  return {};
}

Result<void> prepare(const InitOptions& options) {
  if (options.plain) {
    if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) {
      return fail_errno("become a subreaper");
    }
    return {};
  }
  KEVRE_TRY(make_mounts());
  if (::sethostname(options.node.data(), options.node.size()) != 0) {
    return fail_errno("set the host name");
  }
  KEVRE_TRY(PidRange::divide(options.index, options.nodes).enter());
  return {};
}

// The first byte says that the veth pair is there; end of file: up() died, so this node has no purpose.
bool wait_for_go(int fd) {
  char byte = 0;
  ssize_t got = 0;
  do {
    got = ::read(fd, &byte, 1);
  } while (got < 0 && errno == EINTR);
  return got == 1;
}

// `note`: what the node does without, for people; empty: nothing.
Result<void> make_network(const InitOptions& options, std::string* note) {
  if (options.plain) {
    return {};
  }
  KEVRE_TRY(configure_node_network(options.index));
  if (options.soft_roce.empty()) {
    return {};
  }
  const Result<void> made = add_soft_roce(options.node, options.index);
  if (!made && options.soft_roce == "must") {
    return fail(made.error().code, "{}; or use --transport ucx", made.error().text);
  }
  *note = made ? "" : made.error().text;
  return {};
}

pid_t start_daemon(const InitOptions& options, const std::string& note) {
  const pid_t child = ::fork();
  if (child != 0) {
    return child;
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::setsid();
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const UniqueFd log(::open(options.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  ::dup2(null.get(), STDIN_FILENO);
  ::dup2(null.get(), STDOUT_FILENO);
  ::dup2(log ? log.get() : null.get(), STDERR_FILENO);
  ::fcntl(options.ready_fd, F_SETFD, 0);
  ::setenv("UCX_HANDLE_ERRORS", "none", 0);  // UCX would catch the daemon's fatal signals and print for seconds
  std::vector<char*> arguments;
  for (const std::string& word : options.daemon) {
    arguments.push_back(const_cast<char*>(word.c_str()));
  }
  std::string option = "--note";
  std::string text = note;
  if (!note.empty()) {
    arguments.insert(arguments.end(), {option.data(), text.data()});
  }
  arguments.push_back(nullptr);
  ::execv(arguments[0], arguments.data());
  ::dprintf(STDERR_FILENO, "cannot start %s: %s\n", arguments[0], std::strerror(errno));
  ::_exit(127);
}

pid_t parent_of(const std::string& pid) {
  std::ifstream file("/proc/" + pid + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t end = text.rfind(')');
  int parent = -1;
  char state = 0;
  return end != std::string::npos && std::sscanf(text.c_str() + end + 1, " %c %d", &state, &parent) == 2 ? parent : -1;
}

// Plain nodes: orphans come to this process (subreaper), so killing children until there are none ends every descendant.
void kill_children() {
  const std::string self = std::to_string(::getpid());
  for (;;) {
    bool any = false;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
      const std::string pid = entry.path().filename().string();
      if (std::isdigit(static_cast<unsigned char>(pid[0])) != 0 && std::to_string(parent_of(pid)) == self) {
        any = true;
        ::kill(std::atoi(pid.c_str()), SIGKILL);
      }
    }
    if (!any) {
      return;
    }
    ::waitpid(-1, nullptr, 0);
  }
}

}  // namespace

int node_init_main(const InitOptions& options) {
  if (const Result<void> ready = prepare(options); !ready) {
    ::dprintf(options.ready_fd, "%s: %s\n", options.node.c_str(), ready.error().text.c_str());
    return 1;
  }
  sigset_t handled;
  sigemptyset(&handled);
  for (const int number : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) {
    sigaddset(&handled, number);
  }
  ::sigprocmask(SIG_BLOCK, &handled, nullptr);
  ::dprintf(options.ready_fd, "made\n");
  if (!wait_for_go(options.go_fd)) {
    return 1;
  }
  std::string note;
  if (const Result<void> up = make_network(options, &note); !up) {
    ::dprintf(options.ready_fd, "%s: %s\n", options.node.c_str(), up.error().text.c_str());
    return 1;
  }
  const pid_t daemon = start_daemon(options, note);
  ::close(options.ready_fd);  // only the daemon has it now: its end is seen by up()
  for (;;) {
    int number = 0;
    if (::sigwait(&handled, &number) != 0) {
      continue;
    }
    if (number != SIGCHLD) {
      ::kill(daemon, SIGTERM);
      if (options.plain) {
        kill_children();
      }
      return 0;  // pid 1 of the namespace: the kernel ends the rest
    }
    for (pid_t ended = 0; (ended = ::waitpid(-1, nullptr, WNOHANG)) > 0;) {
      if (ended == daemon) {
        // The others declare this node lost: its programs end with it, so that none runs on with pages that it may
        // no longer have.
        if (options.plain) {
          kill_children();
          return 1;
        }
        // The node's network stays until `down`, as that of a machine would: its kernel answers the others' probes at once
        // that nobody listens there. Without an answer they could not tell this death from a partition, and half of a
        // cluster would give up.
        ::kill(-1, SIGKILL);
      }
    }
  }
}

}  // namespace kevre::cluster::local
