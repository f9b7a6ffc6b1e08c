// What the commands `kevre bench ...` share: rows of ours beside the reference, how they are printed, and what bench_pair
// (bench/) says. Threads: one owner. Tested in tests/tools/bench_test.py.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "tools/commands.h"

namespace kevre::tools {

struct Sample {
  double median = 0, p99 = 0;
  uint64_t n = 0;
};

// Medians of rounds, so that one slow round of a shared machine does not decide.
struct Rounds {
  std::vector<double> medians, p99s;
  uint64_t n = 0;
  void add(const nlohmann::json& one, double scale);  // {"median", "p99", "n"}
  Sample sample() const { return {middle(medians), middle(p99s), n}; }
  static double middle(std::vector<double> values);
};

struct Row {
  std::string name, unit, reference;
  Sample ours, raw;
  double target = 0;       // of `ratio`; 0: none
  bool bandwidth = false;  // larger is better: ratio = raw / ours
  std::string note = "";   // for people
  double ratio() const { return bandwidth ? raw.median / ours.median : ours.median / raw.median; }
};

void show_progress(size_t done, size_t all, const std::string& what);  // on a terminal only; done == all: takes it away

void report(const std::string& bench, const std::string& transport, const std::vector<Row>& rows, bool json);

// Measures each setting (it has `name` and `transport`) and reports the rows; the command's exit status.
template <class Setting, class Measure>
int bench(const std::string& name, const std::vector<Setting>& settings, const BenchOptions& options, Measure measure) {
  std::vector<Row> rows;
  for (size_t i = 0; i < settings.size(); ++i) {
    show_progress(i, settings.size(), settings[i].name);
    if (const Result<void> measured = measure(settings[i], options, rows); !measured) {
      return complain(measured.error());
    }
  }
  show_progress(1, 1, "");
  report(name, settings.back().transport, rows, options.json);
  return 0;
}

std::string own_path(const char* sibling);  // of a program beside this one
std::vector<int> allowed_cpus();
// Whether this machine offers verbs: kUnsupported with the remedy where it does not.
Result<void> check_verbs();

// What bench_pair measured in several runs, by case: "round trip", waiting, bytes.
struct PairCase {
  std::string name, waiting;
  size_t bytes = 0;
  auto operator<=>(const PairCase&) const = default;
};
struct PairResults {
  std::map<PairCase, Rounds> times;                   // ns
  std::map<PairCase, std::vector<double>> bandwidth;  // MB/s
  std::string about;
  Result<void> add(const std::string& line);
};

}  // namespace kevre::tools
