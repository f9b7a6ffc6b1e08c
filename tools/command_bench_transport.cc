// `kevre bench transport`: kevre's transport beside the bare library, between two processes on this machine: round trips of
// messages, one-sided reads and fetch-and-add where there are some, sleeping and spinning. Each process on a CPU of its own
// where there are two. Bare and kevre alternate, so that both see the same machine. docs/bench.md tells how to read it.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "tools/bench_parts.h"
#include "tools/commands.h"
#include "tools/piped_program.h"

namespace kevre::tools {
namespace {

constexpr int kTimeoutMs = 300'000;
constexpr double kMicro = 1000;

struct Setting {
  std::string name, transport, tls;
};

// One run of two processes; `side`: raw or kevre.
Result<void> run_pair(const Setting& setting, const std::string& side, uint64_t iterations, PairResults& results) {
  const std::vector<int> cpus = allowed_cpus();
  const std::string meeting = fmt::format("/tmp/kevre-bench-{}.sock", ::getpid());
  const auto command = [&](const char* role, size_t place) {
    // One CPU: two spinners on it would measure the scheduler.
    const std::string cpu = cpus.empty() ? "-1" : std::to_string(cpus[place % cpus.size()]);
    std::vector<std::string> words{own_path("bench_pair"), side, role, meeting, setting.transport, setting.tls,
                                   std::to_string(iterations), cpu, "all"};
    if (cpus.size() < 2) {
      words.emplace_back("sleep");
    }
    return words;
  };
  KEVRE_ASSIGN(PipedProgram server, PipedProgram::start(command("server", 1)));
  KEVRE_ASSIGN(PipedProgram client, PipedProgram::start(command("client", 0)));
  const Result<std::string> text = client.read_line(kTimeoutMs);
  std::error_code ignored;
  if (!text) {
    std::filesystem::remove(meeting, ignored);
    return fail(text.error().code, "{}, {}: the measuring process gave up (its reason is above)", setting.name, side);
  }
  KEVRE_TRY(results.add(*text));
  KEVRE_TRY(server.finish(kTimeoutMs));
  std::filesystem::remove(meeting, ignored);
  return {};
}

std::string size_name(size_t bytes) { return bytes < 1024 ? fmt::format("{} B", bytes) : fmt::format("{} KiB", bytes / 1024); }

Sample in_micros(const Sample& nanos) { return {nanos.median / kMicro, nanos.p99 / kMicro, nanos.n}; }

Result<void> measure(const Setting& setting, const BenchOptions& options, std::vector<Row>& rows) {
  const int rounds = options.quick ? 1 : 3;
  const uint64_t iterations = options.iterations > 0 ? options.iterations : (options.quick ? 200 : 2000);
  PairResults raw, ours;
  for (int round = 0; round < rounds; ++round) {
    KEVRE_TRY(run_pair(setting, "raw", iterations, raw));
    KEVRE_TRY(run_pair(setting, "kevre", iterations, ours));
  }
  const auto name = [&](const PairCase& one) {
    return fmt::format("{}, {}: {} {}", setting.name, one.waiting, one.name, size_name(one.bytes));
  };
  for (const auto& [one, times] : raw.times) {
    if (const auto mine = ours.times.find(one); mine != ours.times.end()) {
      rows.push_back({name(one), "us", raw.about, in_micros(mine->second.sample()), in_micros(times.sample())});
    }
  }
  for (const auto& [one, values] : raw.bandwidth) {
    if (const auto mine = ours.bandwidth.find(one); mine != ours.bandwidth.end()) {
      const Sample a{Rounds::middle(mine->second), 0, mine->second.size()}, b{Rounds::middle(values), 0, values.size()};
      rows.push_back({name(one), "MB/s", raw.about, a, b, 0, true});
    }
  }
  return {};
}

}  // namespace

int bench_transport(const BenchOptions& options) {
  std::vector<Setting> settings;
  const Result<void> verbs = options.transport == "ucx" ? fail(Errc::kUnsupported, "not asked for") : check_verbs();
  if (options.transport == "verbs" && !verbs) {
    return complain(verbs.error());
  }
  if (options.transport != "verbs") {
    settings = {{"tcp", "ucx", "tcp"}, {"shm", "ucx", "posix"}};
  }
  if (verbs) {
    settings.push_back({"verbs", "verbs", "-"});
  }
  return bench("transport", settings, options, measure);
}

}  // namespace kevre::tools
