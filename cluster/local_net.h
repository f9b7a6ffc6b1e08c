// The network of a local cluster, made with iproute2's `ip -batch`. Threads: any; blocking for some milliseconds.
// Tested through tests/tools/local_cluster_test.py.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace kevre::cluster::local {

std::string node_address(uint32_t index);  // 10.77.0.INDEX

// In the network namespace of process `holder`: a bridge, and one veth pair to the namespace of each init.
Result<void> join_by_bridge(pid_t holder, const std::vector<pid_t>& inits);
// In this process's network namespace: lo, eth0 with node_address(index).
Result<void> configure_node_network(uint32_t index);

}  // namespace kevre::cluster::local
