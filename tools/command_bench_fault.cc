// `kevre bench fault`: what a page fault served by another node costs an unmodified program, beside the raw transport's round
// trip of the same bytes between the same two places in the same waiting mode. Brings up its own nodes:
//   tcp      two nodes in network namespaces of their own
//   shm      two nodes as plain processes that may see each other's memory
//   verbs    three nodes with an RDMA device each, or plain processes at the machine's; the reference is an RDMA READ of the
//            page and a fault served locally
// each with daemons that spin, and with daemons that sleep. bench/fault_side.c is the program on both sides;
// bench/bench_pair.cc is the raw side. Everything in one run, so that the ratios are of one machine at one time.
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

#include "cluster/local.h"
#include "tools/bench_parts.h"
#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/piped_program.h"

namespace kevre::tools {
namespace {

struct Setting {
  std::string name;        // "tcp, sleeping"
  std::string transport;   // ucx, verbs
  bool plain = false;      // plain processes instead of namespaces
  std::string tls;
  bool spinning = false;
  bool verbs() const { return transport == "verbs"; }
};

constexpr uint64_t kBeyondReadAhead = 67;  // pages; what a daemon fetches ahead is fewer

struct Amount {  // how much is measured
  int rounds = 5;
  uint64_t pages = 2048, stream_pages = 32768;
  uint64_t stride = 1;  // between the pages
  uint64_t raw_rounds = 1000;
};

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

// A local cluster for one setting, of two nodes, or of three where pages are fetched one-sidedly; down when the object goes.
class Nodes {
 public:
  explicit Nodes(const Setting& setting) : name_("bench-" + std::to_string(::getpid())) {
    UpOptions up;
    up.nodes = setting.verbs() ? 3 : 2;
    up.transport = setting.transport;
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
  ~Nodes() {
    if (ok_) {
      cluster_down({name_});
    }
  }
  Nodes(const Nodes&) = delete;
  Nodes& operator=(const Nodes&) = delete;
  bool ok() const { return ok_; }

  // What n1's daemon counted: pages that it fetched one-sidedly.
  Result<uint64_t> fetched() const {
    KEVRE_ASSIGN(const auto nodes, cluster::local::describe(name_));
    KEVRE_ASSIGN(ControlClient client, ControlClient::connect(nodes.at(0).control_socket));
    KEVRE_ASSIGN(const nlohmann::json answer, client.call({{"do", "info"}}));
    return answer.value("counters", nlohmann::json::object()).value("pages_fetched", uint64_t{0});
  }

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
  Rounds read, upgrade, write, clean;
  uint64_t clean_fetched = 0;     // of clean.n: came one-sidedly
  std::vector<double> bandwidth;  // MB/s of each stream
};

constexpr const char* kKey = "0x6b01";
constexpr const char* kStreamKey = "0x6b02";

// Pages that the far node wrote and a third node has read: nobody may write them now.
Result<void> measure_clean(const Nodes& nodes, const Amount& amount, PipedProgram& near, PipedProgram& far, Faults& faults) {
  KEVRE_ASSIGN(PipedProgram third, nodes.start("n3", {own_path("fault_side"), kKey, std::to_string(amount.pages),
                                                      std::to_string(amount.stride)}));
  for (int round = 0; round <= amount.rounds; ++round) {
    KEVRE_TRY(ask(far, "own"));
    KEVRE_TRY(ask(third, "read " + std::to_string(round + 7)));
    KEVRE_ASSIGN(const uint64_t before, nodes.fetched());
    KEVRE_ASSIGN(const nlohmann::json clean, ask(near, "read " + std::to_string(round + 1)));
    KEVRE_ASSIGN(const uint64_t after, nodes.fetched());
    if (round > 0) {
      faults.clean.add(clean, kMicro);
      faults.clean_fetched += after - before;
    }
  }
  return {};
}

Result<void> measure_stream(const Nodes& nodes, const Amount& amount, Faults& faults) {
  const std::vector<std::string> side{own_path("fault_side"), kStreamKey, std::to_string(amount.stream_pages), "1"};
  KEVRE_ASSIGN(PipedProgram near, nodes.start("n1", side));
  KEVRE_ASSIGN(PipedProgram far, nodes.start("n2", side));
  for (int round = 0; round <= amount.rounds; ++round) {
    KEVRE_TRY(ask(far, "own"));
    KEVRE_ASSIGN(const nlohmann::json stream, ask(near, "stream"));
    if (round > 0) {
      faults.bandwidth.push_back(stream["pages"].get<double>() * 4096 * 1000 / stream["ns"].get<double>());
    }
  }
  return {};
}

Result<Faults> measure_faults(const Nodes& nodes, const Setting& setting, const Amount& amount) {
  const std::vector<std::string> side{own_path("fault_side"), kKey, std::to_string(amount.pages),
                                      std::to_string(amount.stride)};
  KEVRE_ASSIGN(PipedProgram near, nodes.start("n1", side));
  KEVRE_ASSIGN(PipedProgram far, nodes.start("n2", side));
  Faults faults;
  for (int round = 0; round <= amount.rounds; ++round) {
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
  if (setting.verbs()) {
    KEVRE_TRY(measure_clean(nodes, amount, near, far, faults));
  }
  KEVRE_TRY(measure_stream(nodes, amount, faults));
  return faults;
}

// The raw side runs in the same two places as the programs, right before and after them.
Result<void> measure_raw(const Nodes& nodes, const Setting& setting, const Amount& amount, PairResults& raw) {
  const std::string meeting = "/tmp/kevre-bench-" + std::to_string(::getpid()) + ".sock";
  const auto side = [&](const char* role) {
    return std::vector<std::string>{own_path("bench_pair"), "raw", role, meeting, setting.transport,
                                    setting.tls.empty() ? "-" : setting.tls, std::to_string(amount.raw_rounds), "-1", "page",
                                    setting.spinning ? "spin" : "sleep"};
  };
  for (int round = 0; round < amount.rounds; ++round) {
    KEVRE_ASSIGN(PipedProgram server, nodes.start("n2", side("server")));
    KEVRE_ASSIGN(PipedProgram client, nodes.start("n1", side("client")));
    KEVRE_ASSIGN(const std::string text, client.read_line(kTimeoutMs));
    KEVRE_TRY(raw.add(text));
    KEVRE_TRY(server.finish(kTimeoutMs));
  }
  std::error_code ignored;
  std::filesystem::remove(meeting, ignored);
  return {};
}

struct Reference {
  std::string name, stream_name;
  Sample fault, stream;
};

Sample in_micros(const Sample& nanos) { return {nanos.median / kMicro, nanos.p99 / kMicro, nanos.n}; }

Result<Reference> reference_of(const Setting& setting, const PairResults& raw) {
  const std::string waiting = setting.spinning ? "spinning" : "sleeping";
  const auto times = [&](const char* name) { return raw.times.find({name, waiting, 4096}); };
  const auto base = times(setting.verbs() ? "one-sided read" : "round trip");
  const auto streams = raw.bandwidth.find({setting.verbs() ? "one-sided read stream" : "message stream", waiting, 65536});
  const auto local = times("local fault");
  if (base == raw.times.end() || streams == raw.bandwidth.end() || (setting.verbs() && local == raw.times.end())) {
    return fail(Errc::kCorrupt, "the raw side measured too little for '{}'", setting.name);
  }
  Reference reference{"UCX round trip 4 KiB", "UCX stream of 64 KiB", in_micros(base->second.sample()),
                      {Rounds::middle(streams->second), 0, streams->second.size()}};
  if (setting.verbs()) {
    const Sample floor = in_micros(local->second.sample());
    reference.name = fmt::format("RDMA READ 4 KiB ({:.1f}) + local fault ({:.1f})", reference.fault.median, floor.median);
    reference.stream_name = "RDMA READ stream of 64 KiB";
    reference.fault.median += floor.median;
    reference.fault.p99 += floor.p99;
  }
  return reference;
}

Amount amount_of(const BenchOptions& options) {
  Amount amount;
  if (options.quick) {
    amount = {1, 512, 4096, 1, 300};
  }
  if (options.iterations > 0) {
    amount.pages = options.iterations;
    amount.stride = options.iterations < 512 ? kBeyondReadAhead : 1;
    amount.stream_pages = std::max<uint64_t>(options.iterations, 64);
    amount.raw_rounds = options.iterations;
    amount.rounds = options.quick ? 1 : 3;
  }
  return amount;
}

Result<void> measure(const Setting& setting, const BenchOptions& options, std::vector<Row>& rows) {
  const Amount amount = amount_of(options);
  const Nodes nodes(setting);
  if (!nodes.ok()) {
    return fail(Errc::kSystem, "no cluster for '{}' (the reason is above)", setting.name);
  }
  KEVRE_TRY(nodes.place());
  PairResults raw;
  KEVRE_TRY(measure_raw(nodes, setting, amount, raw));
  KEVRE_ASSIGN(const Faults faults, measure_faults(nodes, setting, amount));
  KEVRE_TRY(measure_raw(nodes, setting, amount, raw));

  KEVRE_ASSIGN(const Reference reference, reference_of(setting, raw));
  const double target = setting.spinning ? 0 : 1.5;
  const auto add = [&](const char* name, const Rounds& ours, double wanted) {
    rows.push_back({setting.name + ": " + name, "us", reference.name, ours.sample(), reference.fault, wanted});
  };
  add("read fault", faults.read, target);
  if (setting.verbs()) {
    add("read fault, clean page", faults.clean, target);
    rows.back().note = fmt::format("{} of {} pages fetched one-sidedly", faults.clean_fetched, faults.clean.n);
  }
  add("write fault", faults.write, target);
  add("write fault, page shared", faults.upgrade, 0);
  const Sample ours{Rounds::middle(faults.bandwidth), 0, faults.bandwidth.size()};
  rows.push_back({setting.name + ": sequential read", "MB/s", reference.stream_name, ours, reference.stream, 1.25, true});
  return {};
}

// Nodes in namespaces get a Soft-RoCE device each; an adapter serves this namespace only, so its nodes are plain processes.
std::vector<Setting> settings_of(const BenchOptions& options, bool verbs) {
  std::vector<Setting> settings;
  if (options.transport != "verbs") {
    settings = {{"tcp, sleeping", "ucx", false, "tcp", false},
                {"tcp, spinning", "ucx", false, "tcp", true},
                {"shm, sleeping", "ucx", true, "posix", false},
                {"shm, spinning", "ucx", true, "posix", true}};
  }
  if (verbs) {
    const bool plain = ::access("/sys/module/rdma_rxe", F_OK) != 0;
    settings.push_back({"verbs, sleeping", "verbs", plain, "", false});
    if (allowed_cpus().size() > 1) {
      settings.push_back({"verbs, spinning", "verbs", plain, "", true});
    }
  }
  return settings;
}

}  // namespace

int bench_fault(const BenchOptions& options) {
  bool verbs = ::access("/sys/module/rdma_rxe", F_OK) == 0;
  if (options.transport == "verbs" && !verbs) {
    if (const auto usable = check_verbs(); !usable) {
      return complain(usable.error());
    }
    verbs = true;
  }
  const std::vector<Setting> settings = settings_of(options, verbs && options.transport != "ucx");
  return bench("fault", settings, options, measure);
}

}  // namespace kevre::tools
