#include "cluster/spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace kevre::cluster {

namespace {

enum class Stage : int { kNone, kIdentity, kFolder, kOutputFile, kDescriptors, kExec };

// Everything that the child needs, made before, because it runs in our memory and may not allocate.
struct Plan {
  const LaunchRequest* request = nullptr;
  Descriptors descriptors;
  std::vector<std::string> candidates;  // paths to try, in order
  std::vector<char*> argv, shell_argv, env;
  bool change_identity = false;
  // The child's answer.
  volatile Stage stage = Stage::kNone;
  volatile int error = 0;
};

std::vector<std::string> find_candidates(const LaunchRequest& request) {
  const std::string& name = request.argv[0];
  if (name.empty() || name.find('/') != std::string::npos) {
    return {name};
  }
  std::string_view path = "/usr/local/bin:/usr/bin:/bin";
  for (const std::string& variable : request.env) {
    if (variable.starts_with("PATH=")) {
      path = std::string_view(variable).substr(5);
    }
  }
  std::vector<std::string> candidates;
  for (size_t start = 0; start <= path.size();) {
    const size_t end = std::min(path.find(':', start), path.size());
    const std::string_view folder = path.substr(start, end - start);
    candidates.push_back(folder.empty() ? name : std::string(folder) + "/" + name);
    start = end + 1;
  }
  return candidates;
}

Plan make_plan(const LaunchRequest& request, const Descriptors& descriptors) {
  Plan plan;
  plan.request = &request;
  plan.descriptors = descriptors;
  plan.candidates = find_candidates(request);
  for (const std::string& argument : request.argv) {
    plan.argv.push_back(const_cast<char*>(argument.c_str()));
  }
  plan.argv.push_back(nullptr);
  plan.shell_argv = {const_cast<char*>("sh"), nullptr};  // the script's path goes second
  plan.shell_argv.insert(plan.shell_argv.end(), plan.argv.begin() + 1, plan.argv.end());
  for (const std::string& variable : request.env) {
    plan.env.push_back(const_cast<char*>(variable.c_str()));
  }
  plan.env.push_back(nullptr);
  plan.change_identity = ::geteuid() == 0;
  return plan;
}

// Below: only system calls, in the child. Raw ones for the identity, because the library's would change the
// threads of the parent too.
bool take_identity(const LaunchRequest& r) {
  return ::syscall(SYS_setgroups, r.groups.size(), r.groups.data()) == 0 &&
         ::syscall(SYS_setresgid, r.gid, r.gid, r.gid) == 0 &&
         ::syscall(SYS_setresuid, r.uid, r.uid, r.uid) == 0;
}

bool place_descriptors(const Plan& plan) {
  int fds[3] = {plan.descriptors.input, plan.descriptors.output, plan.descriptors.error};
  // First out of the way of 0, 1, 2, then there.
  for (int& fd : fds) {
    fd = ::fcntl(fd, F_DUPFD, 3);
    if (fd < 0) {
      return false;
    }
  }
  for (int i = 0; i < 3; ++i) {
    if (::dup2(fds[i], i) < 0) {
      return false;
    }
  }
  return ::syscall(SYS_close_range, 3u, ~0u, 0u) == 0;
}

int try_exec(Plan& plan) {
  int error = ENOENT;
  for (const std::string& path : plan.candidates) {
    ::execve(path.c_str(), plan.argv.data(), plan.env.data());
    if (errno == ENOEXEC) {  // a script without "#!": the shell's, as every shell does it
      plan.shell_argv[1] = const_cast<char*>(path.c_str());
      ::execve("/bin/sh", plan.shell_argv.data(), plan.env.data());
      return ENOEXEC;
    }
    if (errno != ENOENT && errno != ENOTDIR) {
      error = errno;
      if (errno != EACCES) {
        return error;
      }
    }
  }
  return error;
}

[[noreturn]] void stop_child(Plan& plan, Stage stage, int error) {
  plan.stage = stage;
  plan.error = error;
  ::_exit(127);
}

[[noreturn]] void run_child(Plan& plan) {
  const LaunchRequest& r = *plan.request;
  struct sigaction normal {};
  normal.sa_handler = SIG_DFL;
  for (int s = 1; s <= 64; ++s) {
    ::sigaction(s, &normal, nullptr);
  }
  ::setsid();
  if (plan.descriptors.terminal) {
    ::ioctl(plan.descriptors.input, TIOCSCTTY, 0);
  }
  ::umask(r.umask);
  if (plan.change_identity && !take_identity(r)) {
    stop_child(plan, Stage::kIdentity, errno);
  }
  if (!r.cwd.empty() && ::chdir(r.cwd.c_str()) != 0) {
    stop_child(plan, Stage::kFolder, errno);
  }
  if (plan.descriptors.input < 0) {
    plan.descriptors.input = ::open("/dev/null", O_RDONLY);
  }
  if (plan.descriptors.output < 0) {
    const char* file = r.output_file.empty() ? "/dev/null" : r.output_file.c_str();
    plan.descriptors.output = ::open(file, O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (plan.descriptors.output < 0) {
      stop_child(plan, Stage::kOutputFile, errno);
    }
    plan.descriptors.error = plan.descriptors.output;
  }
  if (!place_descriptors(plan)) {
    stop_child(plan, Stage::kDescriptors, errno);
  }
  // Only now: before, the daemon's descriptors were in the way.
  if (rlimit files{}; r.open_files != 0 && ::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = r.open_files;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  stop_child(plan, Stage::kExec, try_exec(plan));
}

ExitStatus explain(const Plan& plan) {
  const LaunchRequest& r = *plan.request;
  const std::string why = std::strerror(plan.error);
  ExitStatus status;
  status.kind = ExitStatus::Kind::kFailed;
  status.code = 1;
  switch (plan.stage) {
    case Stage::kExec:
      status.code = plan.error == ENOENT ? 127 : 126;
      status.text = plan.error == ENOENT && r.argv[0].find('/') == std::string::npos
                        ? fmt::format("{}: command not found", r.argv[0])
                        : fmt::format("{}: {}", r.argv[0], why);
      break;
    case Stage::kFolder:
      status.text =
          fmt::format("working directory {}: {} on this node; change to one that every node has", r.cwd, why);
      break;
    case Stage::kIdentity:
      status.text = fmt::format("becoming user {}: {}", r.uid, why);
      break;
    case Stage::kOutputFile:
      status.text = fmt::format("output file {}: {}", r.output_file, why);
      break;
    case Stage::kDescriptors:
    case Stage::kNone:
      status.text = fmt::format("starting {}: {}", r.argv[0], why);
      break;
  }
  return status;
}

}  // namespace

SpawnResult spawn(const LaunchRequest& request, const Descriptors& descriptors) {
  Plan plan = make_plan(request, descriptors);
  // No handler of ours may run in the child, which shares our memory.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  const pid_t pid = ::vfork();
#pragma GCC diagnostic pop
  if (pid == 0) {
    run_child(plan);
  }
  const int fork_error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  SpawnResult result;
  if (pid < 0) {
    plan.error = fork_error;
    result.failed = explain(plan);
    return result;
  }
  if (plan.stage != Stage::kNone) {
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    result.failed = explain(plan);
    return result;
  }
  result.started = true;
  result.program.pid = pid;
  result.program.pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  return result;
}

}  // namespace kevre::cluster
