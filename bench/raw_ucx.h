// The reference for everything that kevre sends: UCP active messages between two processes, without kevre's
// transport. One side calls raw_server(), the other raw_client(); they find each other at a UNIX socket path
// (which is good across network namespaces as long as both see the file) and exchange worker addresses there.
// The client says what to do.
//
// Round trip: 32 bytes there, `bytes` back (the shape of a page fault). Streaming: messages of `bytes` one
// way, at most `window` unanswered. Both sides spin, or sleep in epoll on UCX's event descriptor, as RawWork
// says. Owns nothing between calls. Threads: one per call; blocks until the client is done. Tested by
// bench_transport (bench/bench_transport.cc) and by `kevre bench`.
#pragma once

#include <sched.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/histogram.h"
#include "base/ids.h"
#include "base/result.h"

namespace kevre::bench {

struct RawOptions {
  std::string socket_path;          // the server makes it and takes it away
  std::string tls = "tcp";          // as UCX_TLS
  std::string bind_address;         // IPv4 address of the interface to use; empty: UCX chooses
  int cpu = -1;                     // where the caller's thread runs meanwhile; -1: as it is
  Nanos patience = 10'000'000'000;  // for the other side to appear
};

struct RawWork {
  size_t bytes = 4096;
  uint32_t rounds = 2000;
  uint32_t warm_up = 200;
  uint32_t window = 0;   // 0: round trips; else streaming with that many messages under way
  bool spinning = true;  // false: both sides sleep in epoll
};

struct RawResult {
  RawWork work;
  Histogram round_trip;         // of each round; empty when streaming
  double bytes_per_second = 0;  // streaming: payload that arrived; round trips: bytes / median
  uint64_t median_ns() const { return round_trip.percentile_ns(0.5); }
  uint64_t p99_ns() const { return round_trip.percentile_ns(0.99); }
};

// Binds the calling thread to one CPU and, when it ends, back to what it had. Both sides of a comparison must
// be placed alike: a wake-up across CPUs costs several times one on the same CPU.
class OnCpu {
 public:
  explicit OnCpu(int cpu);
  ~OnCpu();
  OnCpu(const OnCpu&) = delete;
  OnCpu& operator=(const OnCpu&) = delete;

 private:
  cpu_set_t before_;
  bool bound_ = false;
};

// Serves one client until it is done.
Result<void> raw_server(const RawOptions& options);
// Does every piece of work in turn, over one connection.
Result<std::vector<RawResult>> raw_client(const RawOptions& options, const std::vector<RawWork>& works);

}  // namespace kevre::bench
