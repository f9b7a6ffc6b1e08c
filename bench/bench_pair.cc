// bench_pair raw|kevre server|client SOCKET TRANSPORT TLS ROUNDS CPU all|page [sleep|spin]: one of the two processes of `kevre bench
// transport`, and the raw side of `kevre bench fault`, one process on each node. TRANSPORT: ucx or verbs; TLS: as UCX_TLS,
// "-": any; CPU: -1: as it is; page: only what a page fault is held against; sleep or spin: only those. The client prints one JSON line: {"about": "...", "cases":
// [{"case", "waiting", "bytes", "n", "median", "p99" in ns, or "mb_per_s"}]}.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "bench/kevre_side.h"
#include "bench/local_fault.h"
#include "bench/raw_ucx.h"
#include "bench/raw_verbs.h"
#include "transport/verbs/probe.h"

namespace {

using namespace kevre;         // NOLINT: a small program
using namespace kevre::bench;  // NOLINT

struct Arguments {
  bool raw = false, server = false, page = false;
  std::string transport, only;
  uint32_t rounds = 0;
  Options options;
};

Result<std::unique_ptr<Side>> open(const Arguments& a, int socket) {
  if (!a.raw) {
    return kevre_side(a.options, a.transport, socket, a.server);
  }
  return a.transport == "verbs" ? verbs_side(a.options, socket, a.server) : ucx_side(a.options, socket);
}

std::vector<Work> works(const Arguments& a) {
  std::vector<Work> all;
  for (const bool spinning : {false, true}) {
    if (a.only == (spinning ? "sleep" : "spin")) {
      continue;
    }
    const uint32_t warm = std::max(a.rounds / 10, 10u);
    if (a.page) {
      const Verb verb = a.transport == "verbs" ? Verb::kRead : Verb::kMessage;
      all.push_back({4096, a.rounds, warm, 0, spinning, verb});
      all.push_back({65536, a.rounds, warm, verb == Verb::kRead ? 8u : 16u, spinning, verb});
      continue;
    }
    for (const size_t bytes : {size_t{8}, size_t{4096}, size_t{65536}}) {
      all.push_back({bytes, a.rounds, warm, 0, spinning, Verb::kMessage});
    }
    for (const size_t bytes : {size_t{4096}, size_t{65536}}) {
      all.push_back({bytes, a.rounds, warm, 0, spinning, Verb::kRead});
    }
    all.push_back({8, a.rounds, warm, 0, spinning, Verb::kFetchAdd});
    all.push_back({65536, a.rounds, warm, 16, spinning, Verb::kMessage});
    all.push_back({4096, a.rounds, warm, 8, spinning, Verb::kRead});
    all.push_back({65536, a.rounds, warm, 8, spinning, Verb::kRead});
  }
  return all;
}

std::string name_of(const Work& work) {
  switch (work.verb) {
    case Verb::kMessage: return work.window == 0 ? "round trip" : "message stream";
    case Verb::kRead: return work.window == 0 ? "one-sided read" : "one-sided read stream";
    case Verb::kFetchAdd: return "fetch-and-add";
  }
  return "";
}

std::string times(const std::string& name, bool spinning, size_t bytes, const Histogram& h) {
  return fmt::format(R"({{"case": "{}", "waiting": "{}", "bytes": {}, "n": {}, "median": {}, "p99": {}}})", name,
                     spinning ? "spinning" : "sleeping", bytes, h.count(), h.percentile_ns(0.5), h.percentile_ns(0.99));
}

Result<void> run_client(const Arguments& a, Side& side) {
  KEVRE_ASSIGN(const std::vector<Measured> results, drive(side, works(a), a.options.patience));
  std::string cases;
  for (const Measured& one : results) {
    const std::string name = name_of(one.work);
    cases += cases.empty() ? "" : ", ";
    cases += one.work.window == 0
                 ? times(name, one.work.spinning, one.work.bytes, one.round_trip)
                 : fmt::format(R"({{"case": "{}", "waiting": "{}", "bytes": {}, "n": {}, "mb_per_s": {:.1f}}})", name,
                               one.work.spinning ? "spinning" : "sleeping", one.work.bytes, one.work.rounds,
                               one.bytes_per_second / 1e6);
  }
  if (a.raw) {  // the floor below a fault, where this process runs
    for (const bool spinning : {false, true}) {
      if (a.only != (spinning ? "sleep" : "spin")) {
        if (const auto faults = local_faults(a.rounds, spinning); faults) {
          cases += ", " + times("local fault", spinning, 4096, *faults);
        }
      }
    }
  }
  fmt::print("{{\"about\": \"{}\", \"cases\": [{}]}}\n", side.about(), cases);
  return {};
}

Result<void> run(Arguments& a) {
  const OnCpu on_cpu(a.options.cpu);
  const transport::verbs::Probe found = a.transport == "verbs" ? transport::verbs::probe() : transport::verbs::Probe{};
  if (a.transport == "verbs") {
    KEVRE_ASSIGN(const auto chosen, transport::verbs::choose(found, ""));
    const std::string text = chosen.port->subnet.text();
    a.options.bind_address = text.substr(0, text.find('/'));
  }
  KEVRE_ASSIGN(const UniqueFd socket, a.server ? accept_client(a.options) : reach_server(a.options));
  KEVRE_ASSIGN(const std::unique_ptr<Side> side, open(a, socket.get()));
  return a.server ? serve(*side, socket.get()) : run_client(a, *side);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 9) {
    return 2;
  }
  log_start("bench_pair");
  const std::vector<std::string> words(argv + 1, argv + argc);
  Arguments a;
  a.raw = words[0] == "raw";
  a.server = words[1] == "server";
  a.options.socket_path = words[2];
  a.transport = words[3];
  a.options.tls = words[4] == "-" ? "" : words[4];
  a.rounds = std::max(static_cast<uint32_t>(std::strtoul(words[5].c_str(), nullptr, 10)), 1u);
  a.options.cpu = std::atoi(words[6].c_str());
  a.page = words[7] == "page";
  a.only = words.size() > 8 ? words[8] : "";
  a.options.patience = 60 * kSecond;
  if (const auto done = run(a); !done) {
    std::fprintf(stderr, "bench_pair: %s\n", done.error().text.c_str());
    return 1;
  }
  return 0;
}
