// All interleavings of a small configuration: 2 nodes, 1 page, 3 operations each, every combination of reads
// and writes. Depth first over the choices, each path replayed from the start; a state that was seen
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

class Explorer {
 public:
  Explorer(uint32_t reads, Fault fault) : reads_(reads), fault_(fault) {}

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
    World world({.nodes = 2, .pages = 1});
    while (world.choices() != 0) {
      world.apply(world.choice(0));  // both nodes see the first view
    }
    for (uint32_t node = 0; node < 2; ++node) {
      std::vector<World::Task> tasks(kOps);
      for (uint32_t i = 0; i < kOps; ++i) {
        tasks[i].op = (reads_ >> (node * kOps + i) & 1) != 0 ? Op::kRead : Op::kAdd;
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

  uint32_t reads_;
  Fault fault_;
  std::vector<uint32_t> path_;
  std::unordered_map<uint64_t, double> states_;
  std::string failure_;
};

void explore_all(Fault fault, uint32_t stride) {
  size_t states = 0;
  double schedules = 0;
  for (uint32_t reads = 0; reads < (1u << (2 * kOps)); reads += stride) {
    Explorer explorer(reads, fault);
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

}  // namespace
}  // namespace kevre::sim
