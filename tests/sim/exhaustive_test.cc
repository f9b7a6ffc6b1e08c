// All interleavings of small configurations: 2 nodes, 1 page, 3 operations each, every combination of reads
// and writes; and 3 nodes with one-sided reads. Depth first over the choices, each path replayed from the start; a state that was seen
// (World::digest) is not entered again, so the whole graph is covered. One assumption keeps it finite: a
// holding time does not end before the program that it is meant for has run (otherwise two nodes may take the
// page from each other for ever, with nobody to blame). The seeded schedules do not assume it.
#include <gtest/gtest.h>

#include <unordered_map>

#include "tests/sim/world.h"

namespace kevre::sim {
namespace {

constexpr uint32_t kOps = 3;

enum class Fault : uint8_t { kNone, kLeave, kCrashAllArrives, kCrashNothingArrives };

using Bug = dsm::Directory::Options::Bug;
using Programs = std::vector<std::vector<Op>>;  // one for each node

class Explorer {
 public:
  Explorer(WorldOptions options, Programs programs, Fault fault)
      : options_(options), programs_(std::move(programs)), fault_(fault) {}

  // Schedules from the state that `path_` leads to; 0 after a failure.
  double explore() {
    World world = replay();
    if (world.failed()) {
      failure_ = world.failure();
      return 0;
    }
    const auto [seen, fresh] = states_.try_emplace(world.digest(), 0);
    if (!fresh) {
      return seen->second;
    }
    const uint64_t digest = seen->first;
    fetched_ += world.stats().fetched;
    fetched_by_home_ += world.stats().fetched_by_home;
    double schedules = 0;
    bool end = true;
    for (uint32_t i = 0; i < world.choices() && failure_.empty(); ++i) {
      if (!world.runs_soon(i)) {
        end = false;
        schedules += step(i);
      }
    }
    if (fault_ != Fault::kNone && !fault_done() && failure_.empty()) {
      end = false;
      schedules += step(kFaultStep);
    }
    if (end && failure_.empty()) {
      world.check_rest();
      failure_ = world.failure();
      schedules = 1;
    }
    states_[digest] = schedules;
    return schedules;
  }

  size_t states() const { return states_.size(); }
  const std::string& failure() const { return failure_; }
  uint64_t fetched() const { return fetched_; }
  uint64_t fetched_by_home() const { return fetched_by_home_; }

 private:
  static constexpr uint32_t kFaultStep = ~0u;

  bool fault_done() const { return std::find(path_.begin(), path_.end(), kFaultStep) != path_.end(); }

  double step(uint32_t choice) {
    path_.push_back(choice);
    const double schedules = explore();
    path_.pop_back();
    return schedules;
  }

  World replay() const {
    World world(options_);
    while (world.choices() != 0) {
      world.apply(world.choice(0));  // both nodes see the first view
    }
    for (uint32_t node = 0; node < programs_.size(); ++node) {
      std::vector<World::Task> tasks;
      for (const Op op : programs_[node]) {
        tasks.push_back({op, 0, 0});
      }
      world.add_program(node, tasks);
    }
    for (const uint32_t choice : path_) {
      if (choice != kFaultStep) {
        world.apply(world.choice(choice));
      } else if (fault_ == Fault::kLeave) {
        world.leave(1);
      } else {
        world.crash(1, [&](size_t sent) { return fault_ == Fault::kCrashAllArrives ? sent : 0; });
      }
    }
    return world;
  }

  WorldOptions options_;
  Programs programs_;
  Fault fault_;
  std::vector<uint32_t> path_;
  std::unordered_map<uint64_t, double> states_;
  std::string failure_;
  uint64_t fetched_ = 0, fetched_by_home_ = 0;
};

void explore_all(Fault fault, uint32_t stride) {
  size_t states = 0;
  double schedules = 0;
  for (uint32_t reads = 0; reads < (1u << (2 * kOps)); reads += stride) {
    Programs programs(2);
    for (uint32_t i = 0; i < 2 * kOps; ++i) {
      programs[i / kOps].push_back((reads >> i & 1) != 0 ? Op::kRead : Op::kAdd);
    }
    Explorer explorer({.nodes = 2, .pages = 1}, programs, fault);
    schedules += explorer.explore();
    states += explorer.states();
    ASSERT_EQ(explorer.failure(), "") << "operations " << reads;
  }
  printf("%zu states, %.6g schedules\n", states, schedules);
  EXPECT_GT(states, 1000u);
}

TEST(Exhaustive, TwoNodesOnePageThreeOperationsEachAgreeInEveryOrder) {
  explore_all(Fault::kNone, 1);
}

TEST(Exhaustive, ANodeThatLeavesAtAnyMomentTakesNothingAlong) {
  explore_all(Fault::kLeave, 9);
}

TEST(Exhaustive, ANodeThatDiesAtAnyMomentLeavesNoStalePage) {
  explore_all(Fault::kCrashAllArrives, 9);
  explore_all(Fault::kCrashNothingArrives, 9);
}

// One-sided reads: 3 nodes, everyone but the home tries to fetch first. `of_home`, `of_one`, `of_other`: what the programs
// of the home and of the two others do.
Explorer fetching(std::vector<Op> of_home, std::vector<Op> of_one, std::vector<Op> of_other,
                  Fault fault = Fault::kNone, Bug bug = Bug::kNone) {
  const WorldOptions options{
      .nodes = 3, .pages = 1, .one_sided = true, .fetch_unseen = true, .bug = bug};
  World world(options);
  while (world.choices() != 0) {
    world.apply(world.choice(0));
  }
  const uint32_t home = world.home_of(0);
  Programs programs(3);
  programs[home] = std::move(of_home);
  programs[(home + 1) % 3] = std::move(of_one);
  programs[(home + 2) % 3] = std::move(of_other);
  return Explorer(options, programs, fault);
}

void explore_fetches(Explorer explorer) {
  const double schedules = explorer.explore();
  EXPECT_EQ(explorer.failure(), "");
  printf("%zu states, %.6g schedules, %lu pages fetched from the home, %lu by it\n", explorer.states(), schedules,
         explorer.fetched(), explorer.fetched_by_home());
  EXPECT_GT(explorer.fetched() + explorer.fetched_by_home(), 50u);
}

TEST(Exhaustive, TheHomeWritesWhileTwoOthersFetch) {
  explore_fetches(fetching({Op::kAdd, Op::kAdd}, {Op::kRead}, {Op::kRead}));
}

TEST(Exhaustive, OneThatFetchedWrites) {
  explore_fetches(fetching({Op::kAdd}, {Op::kRead}, {Op::kRead, Op::kAdd}));
}

TEST(Exhaustive, TheHomeFetchesFromASharerAndTheOtherWrites) {
  explore_fetches(fetching({Op::kRead}, {Op::kAdd}, {Op::kRead, Op::kAdd}));
}

TEST(Exhaustive, ANodeIsLostWhileItFetchesOrIsFetchedFrom) {
  explore_fetches(fetching({Op::kAdd}, {Op::kRead}, {Op::kRead}, Fault::kCrashAllArrives));
}

TEST(Exhaustive, EveryBugOfOneSidedReadsShowsInSomeOrder) {
  for (const Bug bug : {Bug::kNoDrain, Bug::kNoteAfterRead, Bug::kSpoiledFetchInstalled, Bug::kForgetNote}) {
    Explorer explorer = fetching({Op::kAdd}, {Op::kRead}, {Op::kRead, Op::kAdd}, Fault::kNone, bug);
    explorer.explore();
    EXPECT_NE(explorer.failure(), "") << static_cast<int>(bug);
    printf("%zu states: %s\n", explorer.states(), explorer.failure().c_str());
  }
}

}  // namespace
}  // namespace kevre::sim
