#include "tools/bench_parts.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "tools/table.h"
#include "transport/verbs/probe.h"

namespace kevre::tools {

void Rounds::add(const nlohmann::json& one, double scale) {
  medians.push_back(one["median"].get<double>() / scale);
  p99s.push_back(one["p99"].get<double>() / scale);
  n += one["n"].get<uint64_t>();
}

double Rounds::middle(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

namespace {

nlohmann::json to_json(const std::string& bench, const std::string& transport, const std::vector<Row>& rows) {
  auto list = nlohmann::json::array();
  for (const Row& row : rows) {
    list.push_back({{"case", row.name},
                    {"unit", row.unit},
                    {"kevre", {{"median", row.ours.median}, {"p99", row.ours.p99}, {"n", row.ours.n}}},
                    {"reference",
                     {{"name", row.reference}, {"median", row.raw.median}, {"p99", row.raw.p99}, {"n", row.raw.n}}},
                    {"ratio", row.ratio()},
                    {"target", row.target > 0 ? nlohmann::json(row.target) : nlohmann::json()}});
    if (!row.note.empty()) {
      list.back()["note"] = row.note;
    }
  }
  return {{"bench", bench}, {"transport", transport}, {"version", KEVRE_VERSION}, {"rows", list}};
}

void print(const std::vector<Row>& rows) {
  Table table({"case", "unit", "kevre", "p99", "n", "reference", "median", "p99", "ratio", "target", "note"});
  for (const Row& row : rows) {
    table.add({row.name, row.unit, fmt::format("{:.1f}", row.ours.median),
               row.bandwidth ? "" : fmt::format("{:.1f}", row.ours.p99), std::to_string(row.ours.n), row.reference,
               fmt::format("{:.1f}", row.raw.median), row.bandwidth ? "" : fmt::format("{:.1f}", row.raw.p99),
               fmt::format("{:.2f}", row.ratio()), row.target > 0 ? fmt::format("{:.2f}", row.target) : "", row.note});
  }
  table.print(stdout);
}

}  // namespace

void report(const std::string& bench, const std::string& transport, const std::vector<Row>& rows, bool json) {
  if (json) {
    std::printf("%s\n", to_json(bench, transport, rows).dump(2).c_str());
  } else {
    print(rows);
  }
}

void show_progress(size_t done, size_t all, const std::string& what) {
  if (::isatty(STDERR_FILENO) != 1) {
    return;
  }
  if (done == all) {
    std::fprintf(stderr, "\r%40s\r", "");
  } else {
    std::fprintf(stderr, "\r%zu/%zu %-30s", done + 1, all, what.c_str());
  }
}

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

Result<void> check_verbs() {
  const transport::verbs::Probe found = transport::verbs::probe();
  KEVRE_TRY(transport::verbs::choose(found, ""));
  return {};
}

Result<void> PairResults::add(const std::string& line) {
  const nlohmann::json answer = nlohmann::json::parse(line, nullptr, false);
  if (!answer.is_object() || !answer.contains("cases")) {
    return fail(Errc::kCorrupt, "the measuring program answered '{}'", line);
  }
  about = answer["about"].get<std::string>();
  for (const auto& one : answer["cases"]) {
    const PairCase which{one["case"], one["waiting"], one["bytes"]};
    if (one.contains("mb_per_s")) {
      bandwidth[which].push_back(one["mb_per_s"].get<double>());
    } else {
      times[which].add(one, 1);
    }
  }
  return {};
}

}  // namespace kevre::tools
