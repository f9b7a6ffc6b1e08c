#include "transport/verbs/probe.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <infiniband/verbs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <rdma/rdma_cma.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

namespace kevre::transport::verbs {
namespace {

constexpr const char* kCmDevice = "/dev/infiniband/rdma_cm";
constexpr unsigned kCapIpcLock = 14;

bool may_lock_anything() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("CapEff:")) {
      return ((std::strtoull(line.c_str() + 7, nullptr, 16) >> kCapIpcLock) & 1) != 0;
    }
  }
  return false;
}

struct ContextCloser {
  void operator()(ibv_context* context) const { ibv_close_device(context); }
};
struct ChannelDestroyer {
  void operator()(rdma_event_channel* channel) const { rdma_destroy_event_channel(channel); }
};
struct IdDestroyer {
  void operator()(rdma_cm_id* id) const { rdma_destroy_id(id); }
};

Device ask(ibv_device* device) {
  Device found;
  found.name = ibv_get_device_name(device);
  const std::unique_ptr<ibv_context, ContextCloser> context(ibv_open_device(device));
  if (context == nullptr) {
    found.why_not = fmt::format(
        "device {} cannot be opened ({}): give this user access to /dev/infiniband/uverbs* (group rdma)",
        found.name, std::strerror(errno));
    return found;
  }
  ibv_device_attr_ex attributes{};
  if (const int failed = ibv_query_device_ex(context.get(), nullptr, &attributes); failed != 0) {
    found.why_not = fmt::format("device {} does not answer: {}", found.name, std::strerror(failed));
    return found;
  }
  found.atomics = attributes.orig_attr.atomic_cap != IBV_ATOMIC_NONE;
  found.on_demand_paging = (attributes.odp_caps.general_caps & IBV_ODP_SUPPORT) != 0;
  found.reads_in_flight =
      std::min(attributes.orig_attr.max_qp_rd_atom, attributes.orig_attr.max_qp_init_rd_atom);
  ibv_port_state best = IBV_PORT_NOP;
  for (uint8_t number = 1; number <= attributes.orig_attr.phys_port_cnt; ++number) {
    ibv_port_attr port{};
    if (ibv_query_port(context.get(), number, &port) == 0 && port.state >= best) {
      best = port.state;
      found.link_layer = port.link_layer == IBV_LINK_LAYER_ETHERNET ? "ethernet" : "infiniband";
    }
  }
  found.state = ibv_port_state_str(best);
  const size_t word = found.state.find("PORT_");
  found.state = word == 0 ? found.state.substr(5) : found.state;
  std::transform(found.state.begin(), found.state.end(), found.state.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (best != IBV_PORT_ACTIVE) {
    found.why_not = fmt::format("no port of device {} is active but {}: check cable and link (rdma link)",
                                found.name, found.state);
  } else if (attributes.orig_attr.max_srq <= 0) {
    found.why_not = fmt::format("device {} has no shared receive queues", found.name);
  }
  return found;
}

// Which device stands behind each IPv4 address of this machine: rdma_cm knows when it is bound.
void add_addresses(std::vector<Device>* devices) {
  const std::unique_ptr<rdma_event_channel, ChannelDestroyer> channel(rdma_create_event_channel());
  ifaddrs* list = nullptr;
  if (channel == nullptr || ::getifaddrs(&list) != 0) {
    return;
  }
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(list, &::freeifaddrs);
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_netmask == nullptr || i->ifa_addr->sa_family != AF_INET ||
        (i->ifa_flags & IFF_UP) == 0) {
      continue;
    }
    rdma_cm_id* made = nullptr;
    if (rdma_create_id(channel.get(), &made, nullptr, RDMA_PS_TCP) != 0) {
      continue;
    }
    const std::unique_ptr<rdma_cm_id, IdDestroyer> id(made);
    sockaddr_in address{};
    sockaddr_in mask{};
    std::memcpy(&address, i->ifa_addr, sizeof address);
    std::memcpy(&mask, i->ifa_netmask, sizeof mask);
    address.sin_port = 0;
    if (rdma_bind_addr(made, reinterpret_cast<sockaddr*>(&address)) != 0 || made->verbs == nullptr) {
      continue;
    }
    const std::string name = ibv_get_device_name(made->verbs->device);
    for (Device& device : *devices) {
      if (device.name == name) {
        const Subnet subnet{ntohl(address.sin_addr.s_addr),
                            static_cast<uint8_t>(std::popcount(mask.sin_addr.s_addr))};
        device.ports.push_back({subnet, i->ifa_name, made->port_num});
      }
    }
  }
}

bool kernel_has_devices() {
  std::error_code ignored;
  const std::filesystem::directory_iterator devices("/sys/class/infiniband", ignored);
  return !ignored && devices != std::filesystem::directory_iterator();
}

std::string why_none(const std::vector<Device>& devices) {
  if (devices.empty()) {
    if (kernel_has_devices()) {
      return "the kernel has an RDMA device but no library drives it: apt-get install ibverbs-providers";
    }
    return ::access("/sys/class/infiniband", F_OK) != 0
               ? "no RDMA device: the kernel has no RDMA driver loaded (modprobe mlx5_ib or what the adapter "
                 "needs; without one: modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0)"
               : "no RDMA device here (rdma link; without an adapter: rdma link add rxe0 type rxe netdev "
                 "eth0)";
  }
  std::string all;
  for (const Device& device : devices) {
    if (device.usable()) {
      return "";
    }
    all += (all.empty() ? "" : "; ") + device.why_not;
  }
  return all;
}

}  // namespace

bool Subnet::contains(uint32_t other) const {
  const uint32_t mask = prefix == 0 ? 0 : ~uint32_t{0} << (32 - prefix);
  return ((address ^ other) & mask) == 0;
}

std::string Subnet::text() const {
  return fmt::format("{}.{}.{}.{}/{}", address >> 24, (address >> 16) & 255, (address >> 8) & 255,
                     address & 255, prefix);
}

Memlock memlock() {
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  return {limit.rlim_cur, limit.rlim_cur == RLIM_INFINITY || may_lock_anything()};
}

Probe probe() {
  Probe result;
  result.memlock = memlock();
  int count = 0;
  ibv_device** list = ibv_get_device_list(&count);
  for (int i = 0; list != nullptr && i < count; ++i) {
    result.devices.push_back(ask(list[i]));
  }
  if (list != nullptr) {
    ibv_free_device_list(list);
  }
  if (!result.devices.empty()) {
    if (::access(kCmDevice, R_OK | W_OK) != 0) {
      result.why_not = errno == ENOENT ? fmt::format("{} does not exist: modprobe rdma_ucm", kCmDevice)
                                       : fmt::format("no access to {}: chmod 666 {}, or be in its group",
                                                     kCmDevice, kCmDevice);
      return result;
    }
    add_addresses(&result.devices);
  }
  for (Device& device : result.devices) {
    if (device.usable() && device.ports.empty()) {
      device.why_not =
          fmt::format("no IPv4 address on the interface of device {}: ip address add", device.name);
    }
  }
  result.why_not = why_none(result.devices);
  if (result.usable() && !result.memlock.unlimited && result.memlock.limit_bytes < kMemlockBytesMin) {
    result.why_not = fmt::format(
        "the memlock limit of {} KiB is too small for RDMA: ulimit -l unlimited, or LimitMEMLOCK=infinity in "
        "the service",
        result.memlock.limit_bytes / 1024);
  }
  return result;
}

Result<Choice> choose(const Probe& probe, std::string_view bind_address) {
  if (!probe.usable()) {
    return fail(Errc::kUnsupported, "transport verbs: {}; or use --transport ucx (or auto)", probe.why_not);
  }
  in_addr wanted{};
  if (!bind_address.empty() && ::inet_pton(AF_INET, std::string(bind_address).c_str(), &wanted) != 1) {
    return fail(Errc::kInvalid, "'{}' is not an IPv4 address", bind_address);
  }
  for (const Device& device : probe.devices) {
    for (const Port& port : device.ports) {
      if (device.usable() && (bind_address.empty() || port.subnet.address == ntohl(wanted.s_addr))) {
        return Choice{&device, &port};
      }
    }
  }
  return fail(Errc::kNotFound, "transport verbs: no RDMA device stands behind the address {} (see rdma link)",
              bind_address);
}

}  // namespace kevre::transport::verbs
