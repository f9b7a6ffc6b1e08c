// `kevre bench fault`: what a page fault served by another node costs an unmodified program, beside the raw UCX round
// trip of the same bytes between the same two places in the same waiting mode. Brings up its own two nodes:
//   tcp      two nodes in network namespaces of their own
//   shm      two nodes as plain processes that may see each other's memory
// each with daemons that spin, and with daemons that sleep. bench/fault_side.c is the program on both sides;
// bench/raw_ucx.h is the raw side. Everything in one run, so that the ratios are of one machine at one time.
//
// Placement: node 1 with all that runs on it (daemon, program, raw process) is bound to one CPU, node 2 to another, in
// every setting. Programs and raw processes are children of the daemon and inherit it. A wake-up across CPUs costs several
// times one on the same CPU, and two spinners on one CPU cost each other whole time slices, so both sides must be placed
// alike. docs/bench.md tells how to read the result.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/clock.h"
#include "cluster/local.h"
#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/piped_program.h"
#include "tools/table.h"

namespace kevre::tools {
namespace {

struct Sample {
  double median = 0, p99 = 0;
  uint64_t n = 0;
};

// Medians of rounds, so that one slow round of a shared machine does not decide.
struct Rounds {
  std::vector<double> medians, p99s;
  uint64_t n = 0;
  void add(const nlohmann::json& one, double scale) {
    medians.push_back(one["median"].get<double>() / scale);
    p99s.push_back(one["p99"].get<double>() / scale);
    n += one["n"].get<uint64_t>();
  }
  static double middle(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0 : values[values.size() / 2];
  }
  Sample sample() const { return {middle(medians), middle(p99s), n}; }
};

struct Row {
  std::string name, unit, reference;
  Sample ours, raw;
  double target = 0;        // of `ratio`; 0: none
  bool bandwidth = false;   // larger is better: ratio = raw / ours
  double ratio() const { return bandwidth ? raw.median / ours.median : ours.median / raw.median; }
};

struct Setting {
  std::string name;      // "tcp, sleeping"
  bool plain = false;    // plain processes instead of namespaces
  std::string tls;
  bool spinning = false;
};

std::string own_path(const char* sibling) {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / sibling).string();
}

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(static_cast<size_t>(cpu), &set)) {
        cpus.push_back(cpu);
      }
    }
  }
  return cpus;
}

Result<void> bind_threads(pid_t pid, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid), error)) {
    if (::sched_setaffinity(std::stoi(task.path().filename()), sizeof set, &set) != 0) {
      return fail_errno("binding the daemon {} to CPU {}", pid, cpu);
    }
  }
  return error ? fail_errno_text(error.value(), fmt::format("the threads of the daemon {}", pid)) : Result<void>{};
}

// A local cluster of two nodes for one setting; down when the object goes.
class TwoNodes {
 public:
  explicit TwoNodes(const Setting& setting) : name_("bench-" + std::to_string(::getpid())) {
    UpOptions up;
    up.nodes = 2;
    up.plain = setting.plain;
    up.ucx_tls = setting.tls;
    up.spin_us = setting.spinning ? 1'000'000 : 0;
    up.quiet = true;
    ok_ = cluster_up({name_}, up) == 0;
  }
  // Node k and everything that it will start: on the k-th CPU that this process may use. One CPU: all on it.
  Result<void> place() const {
    const std::vector<int> cpus = allowed_cpus();
    KEVRE_ASSIGN(const auto nodes, cluster::local::describe(name_));
    for (size_t i = 0; i < nodes.size() && !cpus.empty(); ++i) {
      KEVRE_ASSIGN(ControlClient client, ControlClient::connect(nodes[i].control_socket));
      KEVRE_TRY(bind_threads(client.daemon_pid(), cpus[i % cpus.size()]));
    }
    return {};
  }
  ~TwoNodes() {
    if (ok_) {
      cluster_down({name_});
    }
  }
  TwoNodes(const TwoNodes&) = delete;
  TwoNodes& operator=(const TwoNodes&) = delete;
  bool ok() const { return ok_; }

  Result<PipedProgram> start(const std::string& node, std::vector<std::string> command) const {
    std::vector<std::string> whole{own_path("kevre"), "--cluster", name_, "run", "--on", node, "--"};
    whole.insert(whole.end(), command.begin(), command.end());
    return PipedProgram::start(whole);
  }

 private:
  std::string name_;
  bool ok_ = false;
};

constexpr int kTimeoutMs = 120'000;
constexpr double kMicro = 1000;

Result<nlohmann::json> ask(PipedProgram& program, const std::string& line) {
  KEVRE_ASSIGN(const std::string text, program.ask(line, kTimeoutMs));
  nlohmann::json answer = nlohmann::json::parse(text, nullptr, false);
  if (answer.is_discarded() || answer.contains("error")) {
    return fail(Errc::kCorrupt, "the measuring program answered '{}'", text);
  }
  return answer;
}

struct Faults {
  Rounds read, upgrade, write;
  std::vector<double> bandwidth;  // MB/s of each stream
};

Result<Faults> measure_faults(const TwoNodes& nodes, int rounds, uint64_t pages, uint64_t stream_pages) {
  const std::string side = own_path("fault_side");
  KEVRE_ASSIGN(PipedProgram near, nodes.start("n1", {side, "0x6b01", std::to_string(pages)}));
  KEVRE_ASSIGN(PipedProgram far, nodes.start("n2", {side, "0x6b01", std::to_string(pages)}));
  Faults faults;
  for (int round = 0; round <= rounds; ++round) {
    const std::string seed = std::to_string(round + 1);
    KEVRE_TRY(ask(far, "own"));
    KEVRE_ASSIGN(const nlohmann::json read, ask(near, "read " + seed));
    KEVRE_ASSIGN(const nlohmann::json upgrade, ask(near, "write " + seed));
    KEVRE_TRY(ask(far, "own"));
    KEVRE_ASSIGN(const nlohmann::json write, ask(near, "write " + seed));
    if (round == 0) {
      continue;  // warm-up
    }
    faults.read.add(read, kMicro);
    faults.upgrade.add(upgrade, kMicro);
    faults.write.add(write, kMicro);
  }
  KEVRE_ASSIGN(PipedProgram near_stream, nodes.start("n1", {side, "0x6b02", std::to_string(stream_pages)}));
  KEVRE_ASSIGN(PipedProgram far_stream, nodes.start("n2", {side, "0x6b02", std::to_string(stream_pages)}));
  for (int round = 0; round <= rounds; ++round) {
    KEVRE_TRY(ask(far_stream, "own"));
    KEVRE_ASSIGN(const nlohmann::json stream, ask(near_stream, "stream"));
    if (round > 0) {
      faults.bandwidth.push_back(stream["pages"].get<double>() * 4096 * 1000 / stream["ns"].get<double>());
    }
  }
  return faults;
}

struct Raw {
  Rounds round_trip;
  std::vector<double> bandwidth;
};

// The raw side runs in the same two places as the programs, right before and after them.
Result<void> measure_raw(const TwoNodes& nodes, const Setting& setting, int rounds, Raw& raw) {
  const std::string bench = own_path("bench_raw_ucx");
  const std::string meeting = "/tmp/kevre-bench-" + std::to_string(::getpid()) + ".sock";
  const std::string wait = setting.spinning ? "spin" : "sleep";
  for (int round = 0; round < rounds; ++round) {
    KEVRE_ASSIGN(PipedProgram server, nodes.start("n2", {bench, "server", meeting, setting.tls, wait}));
    KEVRE_ASSIGN(PipedProgram client, nodes.start("n1", {bench, "client", meeting, setting.tls, wait}));
    KEVRE_ASSIGN(const std::string text, client.read_line(kTimeoutMs));
    const nlohmann::json answer = nlohmann::json::parse(text, nullptr, false);
    if (answer.is_discarded() || !answer.contains("round_trip")) {
      return fail(Errc::kCorrupt, "the raw benchmark answered '{}'", text);
    }
    raw.round_trip.add(answer["round_trip"], kMicro);
    raw.bandwidth.push_back(answer["mb_per_s"].get<double>());
    KEVRE_TRY(server.finish(kTimeoutMs));
  }
  std::error_code ignored;
  std::filesystem::remove(meeting, ignored);
  return {};
}

Result<void> measure(const Setting& setting, const BenchOptions& options, std::vector<Row>& rows) {
  const int rounds = options.quick ? 1 : 5;
  const uint64_t pages = options.quick ? 512 : 2048, stream_pages = options.quick ? 4096 : 32768;
  const TwoNodes nodes(setting);
  if (!nodes.ok()) {
    return fail(Errc::kSystem, "no cluster for '{}' (the reason is above)", setting.name);
  }
  KEVRE_TRY(nodes.place());
  Raw raw;
  KEVRE_TRY(measure_raw(nodes, setting, rounds, raw));
  KEVRE_ASSIGN(const Faults faults, measure_faults(nodes, rounds, pages, stream_pages));
  KEVRE_TRY(measure_raw(nodes, setting, rounds, raw));

  const Sample round_trip = raw.round_trip.sample();
  const double target = setting.spinning ? 0 : 1.5;
  const std::string reference = "UCX round trip 4 KiB";
  rows.push_back({setting.name + ": read fault", "us", reference, faults.read.sample(), round_trip, target});
  rows.push_back({setting.name + ": write fault", "us", reference, faults.write.sample(), round_trip, target});
  rows.push_back({setting.name + ": write fault, page shared", "us", reference, faults.upgrade.sample(), round_trip, 0});
  const Sample ours{Rounds::middle(faults.bandwidth), 0, faults.bandwidth.size()};
  const Sample theirs{Rounds::middle(raw.bandwidth), 0, raw.bandwidth.size()};
  rows.push_back({setting.name + ": sequential read", "MB/s", "UCX stream of 64 KiB", ours, theirs, 1.25, true});
  return {};
}

nlohmann::json to_json(const std::vector<Row>& rows) {
  auto list = nlohmann::json::array();
  for (const Row& row : rows) {
    list.push_back({{"case", row.name},
                    {"unit", row.unit},
                    {"kevre", {{"median", row.ours.median}, {"p99", row.ours.p99}, {"n", row.ours.n}}},
                    {"reference",
                     {{"name", row.reference}, {"median", row.raw.median}, {"p99", row.raw.p99}, {"n", row.raw.n}}},
                    {"ratio", row.ratio()},
                    {"target", row.target > 0 ? nlohmann::json(row.target) : nlohmann::json()}});
  }
  return {{"bench", "fault"}, {"transport", "ucx"}, {"version", KEVRE_VERSION}, {"rows", list}};
}

void print(const std::vector<Row>& rows) {
  Table table({"case", "unit", "kevre", "p99", "n", "raw", "p99", "ratio", "target"});
  for (const Row& row : rows) {
    table.add({row.name, row.unit, fmt::format("{:.1f}", row.ours.median),
               row.bandwidth ? "" : fmt::format("{:.1f}", row.ours.p99), std::to_string(row.ours.n),
               fmt::format("{:.1f}", row.raw.median), row.bandwidth ? "" : fmt::format("{:.1f}", row.raw.p99),
               fmt::format("{:.2f}", row.ratio()), row.target > 0 ? fmt::format("{:.2f}", row.target) : ""});
  }
  table.print(stdout);
}

}  // namespace

int bench_fault(const BenchOptions& options) {
  const std::vector<Setting> settings{{"tcp, sleeping", false, "tcp", false},
                                      {"tcp, spinning", false, "tcp", true},
                                      {"shm, sleeping", true, "posix", false},
                                      {"shm, spinning", true, "posix", true}};
  std::vector<Row> rows;
  for (size_t i = 0; i < settings.size(); ++i) {
    if (::isatty(STDERR_FILENO) == 1) {
      std::fprintf(stderr, "\r%zu/%zu %-20s", i + 1, settings.size(), settings[i].name.c_str());
    }
    if (const auto measured = measure(settings[i], options, rows); !measured) {
      return complain(measured.error());
    }
  }
  if (::isatty(STDERR_FILENO) == 1) {
    std::fprintf(stderr, "\r%30s\r", "");
  }
  if (options.json) {
    std::printf("%s\n", to_json(rows).dump(2).c_str());
  } else {
    print(rows);
  }
  return 0;
}

}  // namespace kevre::tools
