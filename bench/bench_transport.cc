// bench_transport: the round trip through kevre's transport beside that of bare UCX, in one run on one
// machine. Two processes, 32 bytes there and n back, over tcp on loopback and over shared memory, spinning
// and sleeping. Prints one line per case; exit 1 when something failed. Usage: bench_transport [rounds]
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "base/clock.h"
#include "base/event_loop.h"
#include "base/log.h"
#include "bench/raw_ucx.h"
#include "transport/transport.h"

namespace {

using namespace kevre;  // NOLINT: a small program
using transport::Service;
using transport::Transport;

constexpr int kClientCpu = 0;
constexpr int kServerCpu = 1;

struct Case {
  size_t bytes;
  bool spinning;
};

struct Ask {
  uint64_t reply_bytes = 0;
  uint64_t sleep = 0;
  uint64_t stop = 0;
  uint64_t pad = 0;
};

pid_t fork_child(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::_exit(body() ? 0 : 1);
  }
  return child;
}

bool reap(pid_t child) {
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

class Side : public transport::Handler {
 public:
  Result<void> open(uint16_t id, const std::string& tls, int socket) {
    transport::Options options;
    options.self = NodeId(id);
    options.kind = "ucx";
    options.ucx_tls = tls;
    options.bind_address = "127.0.0.1";
    options.cluster_tag = 7;
    KEVRE_ASSIGN(transport, transport::create(options));
    transport->set_handler(Service::kBench, this);
    KEVRE_ASSIGN(loop, EventLoop::create());
    KEVRE_TRY(loop->add_poller(transport.get()));
    const transport::Address mine = transport->local_address();
    std::array<std::byte, transport::kAddressBytesMax> theirs;
    if (::send(socket, mine.data(), mine.size(), 0) < 0) {
      return fail_errno("send");
    }
    const ssize_t got = ::recv(socket, theirs.data(), theirs.size(), 0);
    if (got <= 0) {
      return fail_errno("recv");
    }
    peer = NodeId(id == 1 ? uint16_t{2} : uint16_t{1});
    return transport->connect(peer, std::span(theirs).first(static_cast<size_t>(got)));
  }
  void on_message(NodeId from, std::span<const std::byte> header,
                  std::span<const std::byte> payload) override {
    if (header.size() != sizeof(Ask)) {
      return;
    }
    std::memcpy(&ask, header.data(), sizeof ask);
    ++arrived;
    arrived_bytes += payload.size();
    if (from == NodeId(1)) {  // we serve
      data.resize(std::max<size_t>(data.size(), ask.reply_bytes));
      if (auto sent = transport->send(from, Service::kBench, header, std::span(data).first(ask.reply_bytes));
          !sent) {
        std::fprintf(stderr, "bench_transport: %s\n", sent.error().text.c_str());
      }
    }
  }
  void on_peer_lost(NodeId, const Error&) override { lost = true; }
  void turn(bool spinning) {
    if (spinning) {
      transport->progress();
    } else {
      loop->turn(kSecond);
    }
  }

  std::unique_ptr<Transport> transport;
  std::unique_ptr<EventLoop> loop;
  NodeId peer;
  Ask ask;
  uint64_t arrived = 0, arrived_bytes = 0;
  bool lost = false;
  std::vector<std::byte> data;
};

bool serve(const std::string& tls, int socket) {
  const bench::OnCpu on_cpu(kServerCpu);
  Side side;
  if (auto opened = side.open(2, tls, socket); !opened) {
    std::fprintf(stderr, "bench_transport: %s\n", opened.error().text.c_str());
    return false;
  }
  while (side.ask.stop == 0 && !side.lost) {
    side.turn(side.ask.sleep == 0);
  }
  return true;
}

Result<std::vector<Histogram>> ours(const std::string& tls, const std::vector<Case>& cases, uint32_t rounds) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0) {
    return fail_errno("socketpair");
  }
  const UniqueFd mine(pair[0]);
  UniqueFd theirs(pair[1]);
  const pid_t child = fork_child([&] { return serve(tls, theirs.get()); });
  theirs.reset();
  const bench::OnCpu on_cpu(kClientCpu);
  Side side;
  KEVRE_TRY(side.open(1, tls, mine.get()));
  std::vector<Histogram> results;
  const auto round = [&](const Ask& ask, bool spinning) -> Result<void> {
    const uint64_t before = side.arrived;
    KEVRE_TRY(side.transport->send(side.peer, Service::kBench, std::as_bytes(std::span(&ask, 1)),
                                   std::span<const std::byte>()));
    while (side.arrived == before && !side.lost) {
      side.turn(spinning);
    }
    return {};
  };
  for (const Case& one : cases) {
    Histogram histogram;
    Ask ask;
    ask.reply_bytes = one.bytes;
    ask.sleep = one.spinning ? 0 : 1;
    for (uint32_t i = 0; i < rounds + 200; ++i) {
      const Nanos start = now_ns();
      KEVRE_TRY(round(ask, one.spinning));
      if (i >= 200) {
        histogram.record(now_ns() - start);
      }
    }
    results.push_back(histogram);
  }
  Ask stop;
  stop.stop = 1;
  KEVRE_TRY(round(stop, true));
  if (!reap(child)) {
    return fail(Errc::kPeerLost, "the serving process failed");
  }
  return results;
}

Result<std::vector<bench::RawResult>> raw(const std::string& tls, const std::vector<bench::RawWork>& works) {
  bench::RawOptions options;
  options.socket_path = fmt::format("/tmp/kevre-bench-{}.sock", ::getpid());
  options.tls = tls;
  options.bind_address = "127.0.0.1";
  const pid_t child = fork_child([&] {
    options.cpu = kServerCpu;
    const auto served = bench::raw_server(options);
    if (!served) {
      std::fprintf(stderr, "bench_transport: %s\n", served.error().text.c_str());
    }
    return served.has_value();
  });
  options.cpu = kClientCpu;
  auto results = bench::raw_client(options, works);
  if (!results) {
    ::kill(child, SIGKILL);
  }
  if (!reap(child) && results) {
    return fail(Errc::kPeerLost, "the raw server failed");
  }
  return results;
}

Result<void> run(uint32_t rounds) {
  const std::vector<Case> cases = {{8, true},  {4096, true},  {65536, true},
                                   {8, false}, {4096, false}, {65536, false}};
  std::printf("%-5s %-9s %7s  %10s %10s  %10s %10s  %6s\n", "via", "waiting", "bytes", "raw us", "raw p99",
              "kevre us", "kevre p99", "ratio");
  for (const std::string tls : {"tcp", "posix"}) {
    std::vector<bench::RawWork> works;
    for (const Case& one : cases) {
      works.push_back({one.bytes, rounds, 200, 0, one.spinning});
    }
    works.push_back({65536, rounds * 4, 100, 64, true});
    works.push_back({size_t{1} << 20, rounds / 2, 20, 16, true});
    KEVRE_ASSIGN(const auto bare, raw(tls, works));
    KEVRE_ASSIGN(const auto mine, ours(tls, cases, rounds));
    for (size_t i = 0; i < cases.size(); ++i) {
      const auto us = [](uint64_t nanos) { return static_cast<double>(nanos) / 1000; };
      std::printf("%-5s %-9s %7zu  %10.2f %10.2f  %10.2f %10.2f  %6.2f\n", tls == "tcp" ? "tcp" : "shm",
                  cases[i].spinning ? "spinning" : "sleeping", cases[i].bytes, us(bare[i].median_ns()),
                  us(bare[i].p99_ns()), us(mine[i].percentile_ns(0.5)), us(mine[i].percentile_ns(0.99)),
                  us(mine[i].percentile_ns(0.5)) / us(bare[i].median_ns()));
    }
    for (size_t i = cases.size(); i < bare.size(); ++i) {
      std::printf("%-5s streaming %7zu  %10.0f MB/s raw, window %u\n", tls == "tcp" ? "tcp" : "shm",
                  bare[i].work.bytes, bare[i].bytes_per_second / 1e6, bare[i].work.window);
    }
  }
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  log_start("bench_transport");
  const uint32_t rounds = argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 2000;
  if (const auto done = run(std::max(rounds, 10u)); !done) {
    std::fprintf(stderr, "bench_transport: %s\n", done.error().text.c_str());
    return 1;
  }
  return 0;
}
