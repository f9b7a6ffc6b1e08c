#include "tools/doctor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "dsm/pager.h"

namespace kevre::tools {
namespace {

using State = Finding::State;

class NoSink : public dsm::Pager::Sink {
  void on_fault(const dsm::Pager::Fault&) override {}
  void on_fork(dsm::MmId, dsm::MmId, int) override {}
  void on_unmapped(dsm::MmId, uint64_t, uint64_t) override {}
};

Finding kernel() {
  utsname name{};
  ::uname(&name);
  int major = 0, minor = 0;
  std::sscanf(name.release, "%d.%d", &major, &minor);
  if (major > 6 || (major == 6 && minor >= 1)) {
    return {State::kGood, "kernel", fmt::format("Linux {}", name.release), ""};
  }
  return {State::kMissing, "kernel", fmt::format("Linux {}", name.release), "boot Linux 6.1 or later (Debian 12 has it)"};
}

Finding userfaultfd() {
  NoSink sink;
  const auto pager = dsm::Pager::create(&sink);
  if (!pager) {
    return {State::kMissing, "userfaultfd", pager.error().text,
            "run kevred as root, or: chmod 666 /dev/userfaultfd"};
  }
  const dsm::Pager::Features& has = (*pager)->features();
  if (!has.minor) {
    return {State::kLimited, "userfaultfd", "works, without CONTINUE in write-protect mode", "Linux 6.4 or later is faster"};
  }
  return {State::kGood, "userfaultfd", fmt::format("MISSING, WP, MINOR{}", has.poison ? ", POISON" : ""), ""};
}

Finding namespaces() {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(::unshare(CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS) == 0 ? 0 : errno);
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child || status != 0) {
    return {State::kLimited, "namespaces",
            fmt::format("not permitted ({})", WIFEXITED(status) ? std::strerror(WEXITSTATUS(status)) : "no process"),
            "run as root: without it a local cluster's nodes are plain processes on 127.0.0.1"};
  }
  return {State::kGood, "namespaces", "network, pid, mount, IPC, UTS", ""};
}

Finding ip_tool() {
  for (const char* path : {"/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"}) {
    if (::access(path, X_OK) == 0) {
      return {State::kGood, "iproute2", path, ""};
    }
  }
  return {State::kLimited, "iproute2", "no ip command", "apt-get install iproute2 (for local clusters)"};
}

Finding rdma() {
  std::string names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/class/infiniband", ignored)) {
    names += (names.empty() ? "" : ", ") + entry.path().filename().string();
  }
  if (names.empty()) {
    return {State::kLimited, "RDMA device", "none", "not needed: tcp and shared memory are used"};
  }
  return {State::kLimited, "RDMA device", names, "this version reaches it only through UCX"};
}

Finding huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t open = text.find('['), close = text.find(']');
  const std::string chosen = close == std::string::npos ? "unknown" : text.substr(open + 1, close - open - 1);
  if (chosen == "always" || chosen == "force" || chosen == "within_size") {
    return {State::kMissing, "huge pages in shared memory", chosen,
            "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled"};
  }
  return {State::kGood, "huge pages in shared memory", chosen, ""};
}

Finding shared_memory() {
  struct statvfs about {};
  if (::statvfs("/dev/shm", &about) != 0) {
    return {State::kLimited, "/dev/shm", std::strerror(errno), "mount -t tmpfs tmpfs /dev/shm"};
  }
  const uint64_t free_mib = about.f_bavail * about.f_frsize >> 20;
  if (free_mib < 64) {
    return {State::kLimited, "/dev/shm", fmt::format("{} MiB free", free_mib), "mount -o remount,size=50% /dev/shm"};
  }
  return {State::kGood, "/dev/shm", fmt::format("{} MiB free", free_mib), ""};
}

Finding open_files() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < 1024) {
    return {State::kLimited, "open files", fmt::format("limit {}", limit.rlim_cur), "ulimit -n 4096"};
  }
  return {State::kGood, "open files", fmt::format("limit {}", limit.rlim_cur), ""};
}

}  // namespace

Result<void> check_userfaultfd() {
  NoSink sink;
  KEVRE_TRY(dsm::Pager::create(&sink));
  return {};
}

std::vector<Finding> examine() {
  return {kernel(), userfaultfd(), huge_pages(), namespaces(), ip_tool(), shared_memory(), open_files(), rdma()};
}

}  // namespace kevre::tools
