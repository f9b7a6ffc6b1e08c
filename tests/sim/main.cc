// kevre_sim: runs seeded schedules of the page directory, or replays one.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <map>

#include "tests/sim/sim.h"

int main(int argc, char** argv) {
  using Bug = kevre::dsm::Directory::Options::Bug;
  uint64_t seed = 1, count = 1;
  unsigned threads = 1;
  kevre::sim::Settings settings;
  CLI::App app("seeded schedules of the page directory");
  app.add_option("--seed", seed, "first seed");
  app.add_option("--count", count, "how many");
  app.add_option("--threads", threads, "threads")->check(CLI::Range(1u, 64u));
  app.add_flag("--trace", settings.trace, "one line for each transition (with one seed)");
  const std::map<std::string, Bug> bugs{{"none", Bug::kNone},
                                        {"drop-invalidation-ack", Bug::kDropInvalidationAck},
                                        {"ack-before-drop", Bug::kAckBeforeDrop},
                                        {"grant-before-acks", Bug::kGrantBeforeAcks},
                                        {"forget-sharer", Bug::kForgetSharer},
                                        {"drop-late-grant", Bug::kDropLateGrant},
                                        {"no-drain", Bug::kNoDrain},
                                        {"note-after-read", Bug::kNoteAfterRead},
                                        {"spoiled-fetch-installed", Bug::kSpoiledFetchInstalled},
                                        {"open-after-upgrade", Bug::kOpenAfterUpgrade},
                                        {"forget-note", Bug::kForgetNote}};
  app.add_option("--bug", settings.bug, "a bug put in on purpose")->transform(CLI::CheckedTransformer(bugs));
  CLI11_PARSE(app, argc, argv);
  if (count == 1) {
    const kevre::sim::Outcome outcome = kevre::sim::run_seed(seed, settings);
    for (const std::string& line : outcome.trace) {
      fmt::print("{}\n", line);
    }
    fmt::print("seed {}: {}\n", seed, outcome.failure.empty() ? "held" : "FAILED: " + outcome.failure);
    return outcome.failure.empty() ? 0 : 1;
  }
  const auto start = std::chrono::steady_clock::now();
  const kevre::sim::Totals totals = kevre::sim::run_seeds(seed, count, threads, settings);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print("{}\n{:.1f} s, {:.0f} schedules/s\n", kevre::sim::describe(totals), seconds,
             static_cast<double>(totals.seeds) / seconds);
  return totals.failed_seed ? 1 : 0;
}
