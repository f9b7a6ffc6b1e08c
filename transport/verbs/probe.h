// What this machine has for RDMA, and what keeps kevre from using it: for the choice of a backend, `kevre
// info` and `kevre doctor`. Asks the kernel each time (a few system calls; milliseconds with a device);
// creates nothing lasting. Without any device, driver or permission it still answers, never aborts. Owns
// nothing. Threads: any. Tested in tests/transport/verbs_probe_test.cc; with a device by the label rdma.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kevre::transport::verbs {

// An IPv4 address of an interface that an RDMA port stands behind, as rdma_cm can bind it.
struct Subnet {
  uint32_t address = 0;  // host byte order
  uint8_t prefix = 0;    // bits of the network, 0..32
  bool contains(uint32_t other) const;
  std::string text() const;  // "10.1.2.3/24"
  friend bool operator==(const Subnet&, const Subnet&) = default;
};

struct Port {
  Subnet subnet;
  std::string interface;  // "eth0"
  uint8_t number = 0;
};

struct Device {
  std::string name;        // "mlx5_0", "rxe0"
  std::string state;       // of its best port: "active", "down", ...
  std::string link_layer;  // "ethernet", "infiniband"
  bool atomics = false;    // 64-bit atomics by the device
  bool on_demand_paging = false;
  int reads_in_flight = 0;  // max_qp_rd_atom
  std::vector<Port> ports;  // addresses to which it can be bound; empty: not usable
  std::string why_not;      // with the remedy; empty: usable
  bool usable() const { return why_not.empty(); }
};

struct Memlock {
  uint64_t limit_bytes = 0;  // RLIMIT_MEMLOCK
  bool unlimited = false;    // no limit, or this process may exceed it (CAP_IPC_LOCK)
};
inline constexpr uint64_t kMemlockBytesMin = uint64_t{4} << 20;  // less and there is no room for two peers

struct Probe {
  std::vector<Device> devices;
  Memlock memlock;
  std::string why_not;  // cause and remedy in one sentence; empty: verbs can be used
  bool usable() const { return why_not.empty(); }
};

Probe probe();
Memlock memlock();

// The port to use: the one with `bind_address` (IPv4, dotted), or the first of the first usable device.
// kUnsupported with Probe::why_not; kNotFound when no device has that address.
struct Choice {
  const Device* device = nullptr;  // within `probe`
  const Port* port = nullptr;
};
Result<Choice> choose(const Probe& probe, std::string_view bind_address);

}  // namespace kevre::transport::verbs
