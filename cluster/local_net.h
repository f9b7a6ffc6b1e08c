// The network of a local cluster, made with iproute2's `ip -batch` and `rdma`. Threads: any; blocking for some milliseconds.
// Tested through tests/tools/local_cluster_test.py, the RDMA devices in tests/rdma/ (they need a kernel that has them).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace kevre::cluster::local {

std::string node_address(uint32_t index);  // 10.77.0.INDEX

// In the network namespace of process `holder`: a bridge, and one veth pair to the namespace of each init. `mtu` 0: the
// kernel's choice.
Result<void> join_by_bridge(pid_t holder, const std::vector<pid_t>& inits, uint32_t mtu);
// In this process's network namespace: lo, eth0 with node_address(index).
Result<void> configure_node_network(uint32_t index);

// Soft-RoCE: an RDMA device made of a network interface, so that nodes without hardware speak verbs. It goes with the
// namespace of the interface. The bytes of an Ethernet frame that carries an RDMA packet of 4 KiB:
inline constexpr uint32_t kRdmaMtu = 4200;
bool soft_roce_loaded();  // the kernel's module is there
// A device on eth0 of this process's network namespace, usable when it returns. kUnsupported with cause and remedy when
// this kernel cannot; nothing is left then.
Result<void> add_soft_roce(const std::string& node, uint32_t index);

}  // namespace kevre::cluster::local
