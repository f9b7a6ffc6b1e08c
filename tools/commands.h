// The commands of `kevre`, one function each; tools/kevre.cc maps the command line onto them. Each returns the exit
// status: 0 done, 1 failed (the reason is on stderr, one line), 2 usage. Threads: main. Tested in tests/tools/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace kevre::tools {

struct Target {
  std::string cluster;  // the local cluster's name
};

// One line on stderr; returns 1.
int complain(const Error& error);

struct UpOptions {
  int nodes = 0;
  std::string transport = "auto";
  bool plain = false;     // plain processes on loopback, no namespaces
  std::string ucx_tls;
  int64_t spin_us = -1;   // -1: the default
  bool quiet = false;     // no progress, no closing line
};
int cluster_up(const Target& target, const UpOptions& options);
int cluster_down(const Target& target);
int cluster_status(const Target& target, bool json);
int nodes_list(const Target& target, bool json);

struct RunOptions {
  std::string node;  // empty: the node where the command runs, or the first
  int copies = 0;    // -n: spread over the nodes in turn; 0: one program on `node`
  std::vector<std::string> command;
};
int run(const Target& target, const RunOptions& options);

int info(const Target& target, bool json);
int doctor(bool json);

struct BenchOptions {
  bool json = false;
  bool quick = false;  // fewer rounds, for tests of the command itself
  std::string transport = "auto";  // all that are here
  uint64_t iterations = 0;         // of each measurement; 0: the command's own number
};
int bench_fault(const BenchOptions& options);
int bench_transport(const BenchOptions& options);

}  // namespace kevre::tools
