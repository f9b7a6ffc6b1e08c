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
#include "transport/verbs/probe.h"

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

// The command in "cause (command)" or "cause: command".
std::string remedy_of(const std::string& why) {
  const size_t open = why.find('('), close = why.rfind(')');
  if (open != std::string::npos && close != std::string::npos && close > open) {
    return why.substr(open + 1, close - open - 1);
  }
  const size_t colon = why.rfind(": ");
  return colon == std::string::npos ? why : why.substr(colon + 2);
}

// Connections are made through the kernel's rdma_cm device, registrations through uverbs.
Finding rdma_connections(const transport::verbs::Probe& found) {
  const char* manager = "/dev/infiniband/rdma_cm";
  if (::access(manager, F_OK) != 0) {
    return {State::kLimited, "RDMA connections", fmt::format("{} does not exist", manager),
            found.devices.empty() ? "needed with a device only: modprobe rdma_ucm" : "modprobe rdma_ucm"};
  }
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/infiniband", ignored)) {
    const std::string path = entry.path().string();
    const bool needed = path == manager || entry.path().filename().string().starts_with("uverbs");
    if (needed && ::access(path.c_str(), R_OK | W_OK) != 0) {
      return {State::kLimited, "RDMA connections", fmt::format("no permission on {}", path),
              fmt::format("chmod 666 {}, or be in its group (usermod -aG rdma USER)", path)};
    }
  }
  return {State::kGood, "RDMA connections", manager, ""};
}

// What RDMA needs, one finding for each thing, so that each has the command that mends it. Nothing of it is needed for
// kevre to work: what is missing is a note.
std::vector<Finding> rdma() {
  const transport::verbs::Probe found = transport::verbs::probe();
  const std::string instead = "not needed: tcp and shared memory are used";
  std::vector<Finding> findings;
  if (found.devices.empty()) {
    findings.push_back({State::kLimited, "RDMA device", "none", instead + "; " + remedy_of(found.why_not)});
  }
  for (const transport::verbs::Device& device : found.devices) {
    std::string text = fmt::format("{}, {}, {}", device.name, device.link_layer, device.state);
    for (const transport::verbs::Port& port : device.ports) {
      text += fmt::format(", {} on {}", port.subnet.text(), port.interface);
    }
    text += fmt::format(", atomics {}, {} reads in flight", device.atomics ? "yes" : "no", device.reads_in_flight);
    findings.push_back({device.usable() ? State::kGood : State::kLimited, "RDMA device", text, device.why_not});
  }
  findings.push_back(rdma_connections(found));
  const auto& lock = found.memlock;
  const bool enough = lock.unlimited || lock.limit_bytes >= transport::verbs::kMemlockBytesMin;
  findings.push_back({enough ? State::kGood : State::kLimited, "locked memory",
                      lock.unlimited ? "no limit" : fmt::format("limit {} KiB", lock.limit_bytes >> 10),
                      enough ? ""
                             : "for RDMA: ulimit -l unlimited; for good: a line '* - memlock unlimited' in "
                               "/etc/security/limits.conf, or LimitMEMLOCK=infinity in the service"});
  if (!found.usable() && !found.devices.empty()) {
    findings.push_back({State::kLimited, "RDMA", found.why_not, instead});
  } else if (found.usable()) {
    findings.push_back({State::kGood, "RDMA", "usable: verbs is taken where the peer has a device on the same subnet", ""});
  }
  return findings;
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
  std::vector<Finding> findings{kernel(),  userfaultfd(),   huge_pages(), namespaces(),
                                ip_tool(), shared_memory(), open_files()};
  for (Finding& finding : rdma()) {
    findings.push_back(std::move(finding));
  }
  return findings;
}

}  // namespace kevre::tools
