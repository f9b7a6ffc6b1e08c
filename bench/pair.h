// A measurement between two processes, the same for every way to carry it (Side: bare UCX, bare verbs, kevre's transport):
// a piece of work, its result, how the two find each other, and where they run. They meet at a UNIX socket path (which is
// good across network namespaces as long as both see the file) and exchange addresses there. The client says what to do.
//
// Messages: 32 bytes there, `bytes` back (the shape of a page fault); with a window: messages of `bytes` one way, at most
// `window` unanswered. Reads: one-sided, one after the other, or `window` under way. Both sides spin or sleep, as the work
// says. Owns nothing between calls. Threads: one per call; blocks until the client is done. Tested by `kevre bench
// transport` (tests/tools/bench_test.py).
#pragma once

#include <sched.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/histogram.h"
#include "base/ids.h"
#include "base/result.h"

namespace kevre::bench {

struct Options {
  std::string socket_path;          // the server makes it and takes it away
  std::string tls = "tcp";          // ucx: as UCX_TLS
  std::string bind_address;         // IPv4 address of the interface or RDMA device to use; empty: the library chooses
  int cpu = -1;                     // where the caller's thread runs meanwhile; -1: as it is
  Nanos patience = 10'000'000'000;  // for the other side to appear, and for an answer
};

enum class Verb : uint8_t { kMessage, kRead, kFetchAdd };

struct Work {
  size_t bytes = 4096;
  uint32_t rounds = 2000;
  uint32_t warm_up = 200;
  uint32_t window = 0;   // 0: one at a time; else streaming with that many under way
  bool spinning = true;  // false: both sides sleep
  Verb verb = Verb::kMessage;
};
inline constexpr size_t kBytesMax = 65536;  // of one piece of work over verbs and over kevre
inline constexpr uint32_t kWindowMax = 16;

struct Measured {
  Work work;
  Histogram round_trip;         // of each round; empty when streaming
  double bytes_per_second = 0;  // streaming: payload that arrived
  uint64_t median_ns() const { return round_trip.percentile_ns(0.5); }
  uint64_t p99_ns() const { return round_trip.percentile_ns(0.99); }
};

// In front of every message; work numbers of the client travel in it.
struct Head {
  uint64_t reply_bytes = 0;
  uint32_t sleep = 0;  // how the server waits from now on
  uint32_t stop = 0;
  uint64_t want_reply = 1;
  uint64_t serial = 0;
};
static_assert(sizeof(Head) == 32);

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

// One end of a pair. Made over the meeting's socket; what arrives is answered inside wait().
class Side {
 public:
  virtual ~Side() = default;
  virtual Result<void> request(const Head& head, size_t bytes) = 0;  // `head` and so many bytes beside it
  // Progress; when there was nothing to do and `sleeping`, sleeps until there is, at most a second.
  virtual Result<void> wait(bool sleeping) = 0;
  virtual bool can(Verb verb) const { return verb == Verb::kMessage; }
  virtual Result<void> start(Verb verb, size_t bytes, uint32_t slot);  // one-sided; `slot` below kWindowMax
  virtual std::string about() const = 0;                               // "ucx tcp", "verbs rc"

  uint64_t replies = 0;   // to request()
  uint64_t finished = 0;  // of start()
  Head last_request;      // the server's
};

// Until the client says stop. kPeerLost when it went away.
Result<void> serve(Side& side, int socket);
// Does every piece of work in turn, and says stop. What the side cannot do is left out.
Result<std::vector<Measured>> drive(Side& side, const std::vector<Work>& works, Nanos patience);

Result<UniqueFd> accept_client(const Options& options);
Result<UniqueFd> reach_server(const Options& options);
bool gone(int socket);  // the process at the other end ended

// A block of bytes over the meeting's socket.
Result<void> give(int socket, const void* data, size_t bytes);
Result<std::vector<std::byte>> take(int socket, size_t bytes_max);

}  // namespace kevre::bench
