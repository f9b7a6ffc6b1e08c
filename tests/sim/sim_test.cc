// The simulator finds bugs: each one put into the directory on purpose must show within a bounded number of
// seeds. And it reaches what it is meant to reach: the figures of a run are not those of a quiet one.
#include "tests/sim/sim.h"

#include <gtest/gtest.h>

namespace kevre::sim {
namespace {

using Bug = dsm::Directory::Options::Bug;

void expect_found(Bug bug, uint64_t seeds) {
  const Totals totals = run_seeds(1, seeds, 1, {.bug = bug, .trace = false});
  ASSERT_TRUE(totals.failed_seed.has_value()) << "not found in " << seeds << " schedules";
  // The seed replays the failure, with a trace that ends in it.
  const Outcome again = run_seed(*totals.failed_seed, {.bug = bug, .trace = true});
  EXPECT_EQ(again.failure, totals.failure);
  EXPECT_FALSE(again.trace.empty());
  printf("seed %lu: %s\n", static_cast<unsigned long>(*totals.failed_seed), totals.failure.c_str());
}

TEST(SimulatorFinds, AnInvalidationAcknowledgementThatIsDropped) {
  expect_found(Bug::kDropInvalidationAck, 200);
}
TEST(SimulatorFinds, AnAcknowledgementBeforeTheCopyIsDropped) {
  expect_found(Bug::kAckBeforeDrop, 200);
}
TEST(SimulatorFinds, AWriteGrantedBeforeAllAcknowledgements) {
  expect_found(Bug::kGrantBeforeAcks, 200);
}
TEST(SimulatorFinds, ASharerThatTheHomeForgot) {
  expect_found(Bug::kForgetSharer, 200);
}
TEST(SimulatorFinds, AGrantThatTheChangeOfViewThrewAway) {
  expect_found(Bug::kDropLateGrant, 2000);
}
TEST(SimulatorFinds, AWriteThatDoesNotWaitForNotesThatHadArrived) {
  expect_found(Bug::kNoDrain, 5000);
}
TEST(SimulatorFinds, ANoteBehindItsRead) {
  expect_found(Bug::kNoteAfterRead, 5000);
}
TEST(SimulatorFinds, ANoteThatTheHomeForgot) {
  expect_found(Bug::kForgetNote, 1000);
}
TEST(SimulatorFinds, ASpoiledFetchThatIsInstalled) {
  expect_found(Bug::kSpoiledFetchInstalled, 5000);
}
TEST(SimulatorFinds, APageThatStaysPublishedWhenItBecomesWritable) {
  expect_found(Bug::kOpenAfterUpgrade, 1000);
}

TEST(Simulator, TheSameSeedGivesTheSameSchedule) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    const Outcome one = run_seed(seed, {.trace = true}), two = run_seed(seed, {.trace = true});
    EXPECT_EQ(one.failure, "");
    EXPECT_EQ(one.trace, two.trace);
  }
}

TEST(Simulator, SchedulesReachTheHardCases) {
  const Totals totals = run_seeds(1, 3000, 1, {});
  EXPECT_FALSE(totals.failed_seed.has_value()) << describe(totals);
  EXPECT_GT(totals.with_crash, 900u);
  EXPECT_GT(totals.with_leave, 600u);
  EXPECT_GT(totals.with_join, 600u);
  EXPECT_GT(totals.with_overlap, 900u);
  EXPECT_GT(totals.with_lost, 200u);
  EXPECT_GT(totals.with_untouched_lost, 200u);
  EXPECT_GT(totals.with_late_grant, 90u);
  EXPECT_GT(totals.with_destroy, 20u);
  EXPECT_GT(totals.sum.fetched, 80u);
  EXPECT_GT(totals.sum.fetched_by_home, 40u);
  EXPECT_GT(totals.sum.waited_closes, 40u);
}

}  // namespace
}  // namespace kevre::sim
