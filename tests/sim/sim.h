// Seeded schedules: a seed decides the cluster, the programs, the order of everything, and what goes wrong
// and when. The same seed gives the same schedule on every machine. Threads: any; every run is its own world.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/world.h"

namespace kevre::sim {

struct Settings {
  dsm::Directory::Options::Bug bug = dsm::Directory::Options::Bug::kNone;
  bool trace = false;
};

struct Outcome {
  std::string failure;  // empty: everything held, and all came to rest
  Stats stats;
  std::vector<std::string> trace;
};

Outcome run_seed(uint64_t seed, const Settings& settings);

struct Totals {
  uint64_t seeds = 0, with_crash = 0, with_leave = 0, with_join = 0, with_overlap = 0, with_lost = 0,
           with_untouched_lost = 0, with_late_grant = 0, with_destroy = 0;
  Stats sum;
  std::optional<uint64_t> failed_seed;  // the smallest
  std::string failure;
};

// Seeds [first, first + count) on `threads` threads; stops early after a failure.
Totals run_seeds(uint64_t first, uint64_t count, unsigned threads, const Settings& settings);
std::string describe(const Totals& totals);

}  // namespace kevre::sim
