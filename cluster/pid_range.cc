#include "cluster/pid_range.h"

#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/clock.h"

namespace kevre::cluster {
namespace {

constexpr const char* kLastPid = "/proc/sys/kernel/ns_last_pid";
constexpr uint32_t kReservedPids = 300;  // the kernel's own, see RESERVED_PIDS
constexpr uint32_t kNamespacePidMax = 4194304;
constexpr uint32_t kPidsPerNode = 65536;
constexpr Nanos kLookEvery = 20 * kMillisecond;

uint32_t read_number(const char* path) {
  const UniqueFd file(::open(path, O_RDONLY | O_CLOEXEC));
  char text[32] = {};
  if (!file || ::read(file.get(), text, sizeof text - 1) <= 0) {
    return 0;
  }
  return static_cast<uint32_t>(std::strtoul(text, nullptr, 10));
}

Result<void> write_number(const char* path, uint32_t value) {
  const UniqueFd file(::open(path, O_WRONLY | O_CLOEXEC));
  const std::string text = std::to_string(value);
  if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return fail_errno("write {} to {}", value, path);
  }
  return {};
}

bool kernel_counts_pids_per_namespace() {
  utsname name{};
  int major = 0, minor = 0;
  return ::uname(&name) == 0 && std::sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
         (major > 6 || (major == 6 && minor >= 14));
}

}  // namespace

PidRange PidRange::divide(uint32_t index, uint32_t nodes) {
  if (kernel_counts_pids_per_namespace() && (nodes + 1) * kPidsPerNode <= kNamespacePidMax) {
    return {index * kPidsPerNode, (index + 1) * kPidsPerNode - 1};
  }
  const uint32_t each = (std::max(read_number("/proc/sys/kernel/pid_max"), 2 * kReservedPids) - kReservedPids) / nodes;
  return {kReservedPids + (index - 1) * each, kReservedPids + index * each - 1};
}

Result<void> PidRange::enter() const {
  if (read_number("/proc/sys/kernel/pid_max") <= last_) {
    // Only a kernel that counts per namespace was given such a range; there this touches this namespace alone.
    KEVRE_TRY(write_number("/proc/sys/kernel/pid_max", kNamespacePidMax));
  }
  return write_number(kLastPid, first_ - 1);
}

void PidRange::guard(EventLoop* loop) const {
  look();
  loop->after(kLookEvery, [range = *this, loop] { range.guard(loop); });
}

void PidRange::look() const {
  const uint32_t margin = std::max<uint32_t>((last_ - first_) / 8, 64);
  const uint32_t last = read_number(kLastPid);
  if (last + margin > last_ || last + 1 < first_) {
    (void)write_number(kLastPid, first_ - 1);  // fails only when the right was taken away: then pids merely repeat
  }
}

}  // namespace kevre::cluster
