#include "cluster/local_net.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "base/fd.h"

namespace kevre::cluster::local {
namespace {

// Runs `ip -batch -` on `script`, in the network namespace `ns` when it is a descriptor.
Result<void> run_ip(int ns, const std::string& script) {
  int input[2], output[2];
  if (::pipe2(input, O_CLOEXEC) != 0) {
    return fail_errno("pipe2");
  }
  UniqueFd script_read(input[0]), script_write(input[1]);
  if (::pipe2(output, O_CLOEXEC) != 0) {
    return fail_errno("pipe2");
  }
  UniqueFd text_read(output[0]), text_write(output[1]);
  const pid_t child = ::fork();
  if (child < 0) {
    return fail_errno("fork");
  }
  if (child == 0) {
    if (ns >= 0 && ::setns(ns, CLONE_NEWNET) != 0) {
      ::_exit(126);
    }
    ::dup2(script_read.get(), STDIN_FILENO);
    ::dup2(text_write.get(), STDOUT_FILENO);
    ::dup2(text_write.get(), STDERR_FILENO);
    for (const char* path : {"/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"}) {
      ::execl(path, "ip", "-batch", "-", nullptr);
    }
    ::_exit(127);
  }
  script_read.reset();
  text_write.reset();
  const bool written = ::write(script_write.get(), script.data(), script.size()) == static_cast<ssize_t>(script.size());
  script_write.reset();
  std::string text;
  std::array<char, 1024> buffer;
  for (ssize_t got = 0; (got = ::read(text_read.get(), buffer.data(), buffer.size())) > 0;) {
    text.append(buffer.data(), static_cast<size_t>(got));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    return fail(Errc::kUnsupported, "the ip command is missing: apt-get install iproute2");
  }
  if (!written || status != 0) {
    return fail(Errc::kSystem, "ip failed: {}", text.substr(0, text.find('\n')));
  }
  return {};
}

}  // namespace

std::string node_address(uint32_t index) { return fmt::format("10.77.0.{}", index); }

Result<void> join_by_bridge(pid_t holder, const std::vector<pid_t>& inits) {
  const UniqueFd ns(::open(fmt::format("/proc/{}/ns/net", holder).c_str(), O_RDONLY | O_CLOEXEC));
  if (!ns) {
    return fail_errno("open the bridge's network namespace");
  }
  std::string script = "link add kevre0 type bridge\nlink set kevre0 up\n";
  for (size_t i = 0; i < inits.size(); ++i) {
    script += fmt::format("link add k{0} type veth peer name eth0 netns {1}\nlink set k{0} master kevre0\nlink set k{0} up\n",
                          i + 1, inits[i]);
  }
  return run_ip(ns.get(), script);
}

Result<void> configure_node_network(uint32_t index) {
  return run_ip(-1, fmt::format("link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n", node_address(index)));
}

}  // namespace kevre::cluster::local
