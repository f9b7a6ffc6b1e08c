// A local cluster: N nodes on this machine, for trying, testing and measuring.
//
// As root each node has its own network, pid, mount, IPC and UTS namespaces. Its pid 1 is node_init_main() (kevred
// --init); the bridge that joins the nodes lives in a network namespace of its own
// (kevred --hold), so the machine's own network is never touched. Without root, or with `plain`, nodes are plain processes
// on 127.0.0.1 and pids are not disjoint.
//
// Files: DIRECTORY/{key,kevred.path} and per node DIRECTORY/nK/{control.sock,node.sock,log,init.pid}; DIRECTORY is
// /run/kevre/NAME for root, else $XDG_RUNTIME_DIR/kevre/NAME or /tmp/kevre-UID/NAME. Nothing else is left on the machine,
// and down() removes all of it, also after a crash of any part or an `up` that failed half-way.
// Threads: any; blocking, with deadlines. Tested in tests/tools/local_cluster_test.py from outside.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace kevre::cluster::local {

struct Options {
  std::string name;
  int nodes = 0;
  bool plain = false;
  std::string kevred;                          // path of the daemon
  // auto | ucx | verbs, given to the daemons. verbs: each node gets a Soft-RoCE device, or up() fails; auto: it gets one
  // where the machine has Soft-RoCE loaded, else `kevre info` says why not.
  std::string transport = "auto";
  std::vector<std::string> daemon_arguments;   // added to each daemon's command line
  std::function<void(const std::string&)> progress;  // one short line each; may be empty
  int stop_fd = -1;  // readable: give up and leave nothing behind
};

struct Node {
  std::string name;
  std::string directory;
  std::string control_socket;
  std::string node_socket;
  pid_t init_pid = -1;  // as this process's pid namespace numbers it; -1 when gone
};

std::string directory_of(const std::string& cluster);

// A name is letters, digits, '-', '_' and '.', at most 63, else kInvalid everywhere. `down` waits for an `up` or `down` of the
// same name to end.
// kExists when a cluster of this name is up (or left over: `down` removes it). Any other failure has been rolled back.
// `missing`: what the machine lacked for full nodes (then they are plain processes); empty otherwise.
struct UpResult {
  std::vector<Node> nodes;
  std::string missing;
};
Result<UpResult> up(const Options& options);
// kNotFound when there is none.
Result<void> down(const std::string& cluster);
Result<std::vector<Node>> describe(const std::string& cluster);

// What kevred runs for `--init` and `--hold`; see local_init.cc. They return the exit status.
struct InitOptions {
  std::string node;                  // host name of the node
  uint32_t index = 0, nodes = 0;
  bool plain = false;
  std::string soft_roce;             // "must", "try" or empty: a device on eth0
  int ready_fd = -1, go_fd = -1;     // pipes from and to up()
  std::vector<std::string> daemon;   // command line of the daemon
  std::string log;
};
int node_init_main(const InitOptions& options);

}  // namespace kevre::cluster::local
