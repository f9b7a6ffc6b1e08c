#include "cluster/local_net.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>

#include "base/clock.h"
#include "base/fd.h"

namespace kevre::cluster::local {
namespace {

constexpr int kAddressesLookedAt = 16;
constexpr Nanos kAddressWithin = 5 * kSecond;
constexpr int kAddressRetryUs = 5'000;
constexpr Nanos kRunningWithin = 10 * kSecond;
constexpr int kRunningRetryUs = 500;

using Words = std::vector<std::string>;

[[noreturn]] void exec_tool(const Words& words) {
  std::vector<char*> arguments;
  for (const std::string& word : words) {
    arguments.push_back(const_cast<char*>(word.c_str()));
  }
  arguments.push_back(nullptr);
  for (const char* folder : {"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"}) {
    ::execv((folder + words[0]).c_str(), arguments.data());
  }
  ::_exit(127);
}

// Runs a tool of iproute2 with `input`, in the network namespace `ns` when it is a descriptor.
Result<void> run_tool(int ns, const Words& words, const std::string& input) {
  int in[2], out[2];
  if (::pipe2(in, O_CLOEXEC) != 0) {
    return fail_errno("pipe2");
  }
  UniqueFd input_read(in[0]), input_write(in[1]);
  if (::pipe2(out, O_CLOEXEC) != 0) {
    return fail_errno("pipe2");
  }
  UniqueFd text_read(out[0]), text_write(out[1]);
  const pid_t child = ::fork();
  if (child < 0) {
    return fail_errno("fork");
  }
  if (child == 0) {
    if (ns >= 0 && ::setns(ns, CLONE_NEWNET) != 0) {
      ::_exit(126);
    }
    ::dup2(input_read.get(), STDIN_FILENO);
    ::dup2(text_write.get(), STDOUT_FILENO);
    ::dup2(text_write.get(), STDERR_FILENO);
    exec_tool(words);
  }
  input_read.reset();
  text_write.reset();
  const bool written = ::write(input_write.get(), input.data(), input.size()) == static_cast<ssize_t>(input.size());
  input_write.reset();
  std::string text;
  std::array<char, 1024> buffer;
  for (ssize_t got = 0; (got = ::read(text_read.get(), buffer.data(), buffer.size())) > 0;) {
    text.append(buffer.data(), static_cast<size_t>(got));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    return fail(Errc::kUnsupported, "the {} command is missing: apt-get install iproute2", words[0]);
  }
  if (!written || status != 0) {
    return fail(Errc::kSystem, "{} failed: {}", words[0], text.substr(0, text.find('\n')));
  }
  return {};
}

Result<void> run_ip(int ns, const std::string& script) { return run_tool(ns, {"ip", "-batch", "-"}, script); }

// Until Linux 7 Soft-RoCE makes devices in every namespace but listens (UDP 4791) in the first one only.
bool soft_roce_listens() {
  std::ifstream sockets("/proc/net/udp");
  for (std::string line; std::getline(sockets, line);) {
    if (line.find(":12B7 ") != std::string::npos) {
      return true;
    }
  }
  return false;
}

// The kernel enters the address into the device's table some time after both are there.
bool has_address(const std::string& device, uint32_t index) {
  const std::string wanted = fmt::format("ffff:0a4d:{:04x}", index);
  for (int i = 0; i < kAddressesLookedAt; ++i) {
    std::ifstream file(fmt::format("/sys/class/infiniband/{}/ports/1/gids/{}", device, i));
    std::string text;
    if (std::getline(file, text) && text.ends_with(wanted)) {
      return true;
    }
  }
  return false;
}

// The kernel says that an interface runs some time after both of its ends are up; on a busy machine that takes a while. UCX
// leaves out what does not run when a daemon starts, for good, and then reaches nobody.
Result<void> wait_until_running(const char* interface) {
  const UniqueFd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!any) {
    return fail_errno("socket");
  }
  ifreq request{};
  std::strncpy(request.ifr_name, interface, sizeof request.ifr_name - 1);
  for (const Nanos deadline = now_ns() + kRunningWithin;; ::usleep(kRunningRetryUs)) {
    if (::ioctl(any.get(), SIOCGIFFLAGS, &request) != 0) {
      return fail_errno("the state of {}", interface);
    }
    if ((request.ifr_flags & IFF_RUNNING) != 0) {
      return {};
    }
    if (now_ns() > deadline) {
      return fail(Errc::kTimedOut, "{} is up but does not run: see ip link, dmesg", interface);
    }
  }
}

}  // namespace

std::string node_address(uint32_t index) { return fmt::format("10.77.0.{}", index); }

Result<void> join_by_bridge(pid_t holder, const std::vector<pid_t>& inits, uint32_t mtu) {
  const UniqueFd ns(::open(fmt::format("/proc/{}/ns/net", holder).c_str(), O_RDONLY | O_CLOEXEC));
  if (!ns) {
    return fail_errno("open the bridge's network namespace");
  }
  const std::string size = mtu == 0 ? "" : fmt::format("mtu {} ", mtu);
  std::string script = fmt::format("link add kevre0 {}type bridge\nlink set kevre0 up\n", size);
  for (size_t i = 0; i < inits.size(); ++i) {
    script += fmt::format("link add k{0} {2}type veth peer name eth0 {2}netns {1}\nlink set k{0} master kevre0\nlink set k{0} up\n",
                          i + 1, inits[i], size);
  }
  return run_ip(ns.get(), script);
}

Result<void> configure_node_network(uint32_t index) {
  KEVRE_TRY(run_ip(-1, fmt::format("link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n", node_address(index))));
  return wait_until_running("eth0");
}

bool soft_roce_loaded() { return ::access("/sys/module/rdma_rxe", F_OK) == 0; }

Result<void> add_soft_roce(const std::string& node, uint32_t index) {
  // All devices of a machine share one set of names; the namespace's number makes this one its own.
  struct stat ns {};
  if (::stat("/proc/self/ns/net", &ns) != 0) {
    return fail_errno("/proc/self/ns/net");
  }
  const std::string device = fmt::format("kevre-{}-{}", node, ns.st_ino);
  if (const Result<void> made = run_tool(-1, {"rdma", "link", "add", device, "type", "rxe", "netdev", "eth0"}, ""); !made) {
    return fail(Errc::kUnsupported, "no RDMA device by Soft-RoCE ({}): modprobe rdma_rxe; Linux 7 or later serves network namespaces",
                made.error().text);
  }
  const auto give_up = [&](std::string_view why) {
    (void)run_tool(-1, {"rdma", "link", "delete", device}, "");
    return fail(Errc::kUnsupported, "no RDMA device by Soft-RoCE: {}", why);
  };
  if (!soft_roce_listens()) {
    return give_up("this kernel's rdma_rxe serves the machine's first network namespace only: boot Linux 7 or later");
  }
  for (const Nanos deadline = now_ns() + kAddressWithin; !has_address(device, index); ::usleep(kAddressRetryUs)) {
    if (now_ns() > deadline) {
      return give_up("the device did not take the address of eth0: see rdma link, dmesg");
    }
  }
  return {};
}

}  // namespace kevre::cluster::local
