// Calls between nodes over the simulated transport: answers find their callers, the loss of a node or of the
// seat.
#include "ipc/seat_link.h"

#include <gtest/gtest.h>

#include "transport/sim/sim_network.h"

namespace kevre::ipc {
namespace {

class SeatLinkTest : public ::testing::Test {
 protected:
  struct Seat {
    std::unique_ptr<transport::Transport> transport;
    std::unique_ptr<SeatLink> link;
    std::vector<SegmentId> destroyed;
  };

  void start(uint16_t nodes) {
    for (uint16_t i = 1; i <= nodes; ++i) {
      auto seat = std::make_unique<Seat>();
      transport::Options options;
      options.self = NodeId(i);
      seat->transport = network_.create(options).value();
      seat->link = std::make_unique<SeatLink>(
          NodeId(i), seat->transport.get(), [raw = seat.get()](SegmentId s) { raw->destroyed.push_back(s); });
      seats_.push_back(std::move(seat));
    }
    for (auto& from : seats_) {
      for (auto& to : seats_) {
        if (from != to) {
          ASSERT_TRUE(
              from->transport->connect(to->transport->self(), to->transport->local_address()).has_value());
        }
      }
    }
  }
  // Nodes first..last see the view.
  void view(uint32_t number, uint16_t first, uint16_t last, std::vector<NodeId> lost = {}) {
    for (uint16_t i = first; i <= last; ++i) {
      view_at(i, number, first, last, lost);
    }
  }
  void view_at(uint16_t node, uint32_t number, uint16_t first, uint16_t last, std::vector<NodeId> lost = {}) {
    cluster::View view;
    view.id = ViewId(number);
    view.lost = std::move(lost);
    for (uint16_t i = first; i <= last; ++i) {
      view.members.push_back({});
      view.members.back().id = NodeId(i);
    }
    link(node).on_view(view);
  }
  SeatLink& link(uint16_t node) { return *seats_[node - 1u]->link; }
  void settle() {
    do {
      for (auto& seat : seats_) {
        if (seat->transport) {
          while (seat->transport->progress() > 0) {
          }
        }
      }
    } while (network_.advance());
  }

  struct Pending {
    uint64_t number = 0;
    std::shared_ptr<Answer> answer = std::make_shared<Answer>();
    std::shared_ptr<int> times = std::make_shared<int>(0);
  };
  Pending call(uint16_t node, const Call& call, std::span<const std::byte> payload = {}) {
    Pending pending;
    pending.number = link(node).next_number();
    Call sent = call;
    sent.payload_bytes = static_cast<uint32_t>(payload.size());
    link(node).call(pending.number, {1, node * 1000u, {0, 0, {}}}, sent, payload,
                    [pending](const Answer& answer, std::span<const std::byte>) {
                      *pending.answer = answer;
                      ++*pending.times;
                    });
    return pending;
  }
  int64_t semaphore(uint16_t node) {
    Call get;
    get.op = Op::kSemGet;
    get.size = 1;
    get.flags = 0600;
    const Pending made = call(node, get);
    settle();
    EXPECT_EQ(made.answer->error, 0);
    return made.answer->value;
  }
  Pending semop(uint16_t node, int64_t id, int16_t value, int16_t flags = 0) {
    Call op;
    op.op = Op::kSemOp;
    op.id = static_cast<int32_t>(id);
    op.size = 1;
    const SemOperation operation{0, value, flags};
    return call(node, op, std::as_bytes(std::span(&operation, 1)));
  }

  transport::sim::SimNetwork network_{{}};
  std::vector<std::unique_ptr<Seat>> seats_;
};

TEST_F(SeatLinkTest, ACallOfAnyNodeIsRuledAtTheSeatAndAnsweredOnce) {
  start(3);
  view(1, 1, 3);
  const int64_t id = semaphore(3);
  const Pending waits = semop(2, id, -1);
  settle();
  EXPECT_EQ(*waits.times, 0);
  const Pending posts = semop(3, id, 1);
  settle();
  EXPECT_EQ(*waits.times, 1);
  EXPECT_EQ(waits.answer->error, 0);
  EXPECT_EQ(*posts.times, 1);
  EXPECT_EQ(link(1).calls_remote(), 0u);
  EXPECT_EQ(link(3).calls_remote(), 2u);
}

TEST_F(SeatLinkTest, ACancelAndAGrantThatCrossGiveOneAnswer) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    seats_.clear();
    start(3);
    view(1, 1, 3);
    const int64_t id = semaphore(1);
    const Pending waits = semop(2, id, -1);
    settle();
    if (seed % 2 == 0) {
      semop(3, id, 1);
      link(2).cancel(waits.number, EINTR);
    } else {
      link(2).cancel(waits.number, EINTR);
      semop(3, id, 1);
    }
    settle();
    ASSERT_EQ(*waits.times, 1);
    const Pending rest = semop(1, id, -1, 04000);
    settle();
    // What the waiter did not take is there for somebody else.
    EXPECT_EQ(rest.answer->error, waits.answer->error == EINTR ? 0 : EAGAIN);
  }
}

TEST_F(SeatLinkTest, ALostNodesUndoIsAppliedAndItsWaitersAreForgotten) {
  start(3);
  view(1, 1, 3);
  const int64_t id = semaphore(1);
  semop(3, id, 1, 0x1000);
  settle();
  semop(3, id, -5);
  settle();
  seats_[2]->link.reset();
  seats_[2]->transport.reset();
  view(2, 1, 2, {NodeId(3)});
  settle();
  const Pending zero = semop(2, id, 0, 04000);
  settle();
  EXPECT_EQ(zero.answer->error, 0);
}

TEST_F(SeatLinkTest, WhenTheSeatIsLostSleepersAndOldIdsGetEidrmAndTheNextSeatServes) {
  start(3);
  view(1, 1, 3);
  const int64_t id = semaphore(2);
  const Pending waits = semop(3, id, -1);
  settle();
  seats_[0]->link.reset();
  seats_[0]->transport.reset();
  view(2, 2, 3, {NodeId(1)});
  settle();
  EXPECT_EQ(waits.answer->error, EIDRM);
  EXPECT_EQ(*waits.times, 1);
  const Pending stale = semop(3, id, 1);
  settle();
  EXPECT_EQ(stale.answer->error, EIDRM);
  EXPECT_NE(semaphore(3), id);
  EXPECT_TRUE(link(2).has_seat());
}

TEST_F(SeatLinkTest, ACallThatComesBeforeTheNewSeatSawItsViewWaitsForIt) {
  start(3);
  view(1, 1, 3);
  settle();
  seats_[0]->link.reset();
  seats_[0]->transport.reset();
  view_at(3, 2, 2, 3, {NodeId(1)});
  Call get;
  get.op = Op::kMsgGet;
  get.flags = 0600;
  const Pending made = call(3, get);
  settle();
  EXPECT_EQ(*made.times, 0);
  view_at(2, 2, 2, 3, {NodeId(1)});
  settle();
  EXPECT_EQ(*made.times, 1);
  EXPECT_EQ(made.answer->error, 0);
}

TEST_F(SeatLinkTest, CallsBeforeTheFirstViewAreKept) {
  start(2);
  Call get;
  get.op = Op::kMsgGet;
  get.flags = 0600;
  const Pending first = call(1, get);
  const Pending second = call(2, get);
  view(1, 1, 2);
  settle();
  EXPECT_EQ(*first.times, 1);
  EXPECT_EQ(*second.times, 1);
}

TEST_F(SeatLinkTest, ASegmentIsDestroyedOnEveryNode) {
  start(3);
  view(1, 1, 3);
  Call get;
  get.op = Op::kShmGet;
  get.size = 10;
  get.flags = 0600;
  const Pending made = call(2, get);
  settle();
  Call remove;
  remove.op = Op::kShmCtl;
  remove.id = static_cast<int32_t>(made.answer->value);
  call(3, remove);
  settle();
  for (const auto& seat : seats_) {
    EXPECT_EQ(seat->destroyed.size(), 1u);
  }
}

TEST_F(SeatLinkTest, GarbageIsDropped) {
  start(2);
  view(1, 1, 2);
  settle();
  std::vector<std::byte> noise(sizeof(SeatMessage), std::byte{0x5a});
  link(1).on_message(NodeId(2), noise, {});
  link(1).on_message(NodeId(2), std::span(noise).first(3), noise);
  SeatMessage from_nobody;
  link(1).on_message(NodeId(9), std::as_bytes(std::span(&from_nobody, 1)), {});
  EXPECT_GE(semaphore(2), 0);
}

}  // namespace
}  // namespace kevre::ipc
