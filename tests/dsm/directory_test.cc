// Named scenarios of the page directory, message by message. What schedules can do to it all together is
// tests/sim.
#include "dsm/directory.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>

namespace kevre::dsm {
namespace {

using Kind = PageMessage::Kind;
constexpr SegmentId kSegment{7};

// Nodes 1..n in view 1, with channels that the test empties message by message.
class Net {
 public:
  explicit Net(uint16_t nodes, bool one_sided = false) : one_sided_(one_sided) {
    for (uint16_t i = 1; i <= nodes; ++i) {
      add(i);
      members_.push_back(NodeId(i));
    }
    for (uint16_t i = 1; i <= nodes; ++i) {
      view(i, 1, members_, {}, {});
    }
    settle();
    log_.clear();
  }
  void add(uint16_t node) {
    nodes_[node] = std::make_unique<Directory>(Directory::Options{.self = NodeId(node), .one_sided = one_sided_});
  }
  Directory& at(uint16_t node) { return *nodes_.at(node); }
  Access access(uint16_t node, uint64_t page) { return at(node).access(kSegment, page); }

  void view(uint16_t node, uint32_t number, const std::vector<NodeId>& members,
            const std::vector<NodeId>& lost, const std::vector<NodeId>& left) {
    std::vector<Effect> effects;
    at(node).on_view(ViewId(number), members, lost, left, effects);
    execute(node, effects);
  }
  void fault(uint16_t node, uint64_t page, Access want, uint32_t ahead = 0) {
    std::vector<Effect> effects;
    at(node).on_fault(kSegment, page, want, ahead, effects);
    execute(node, effects);
  }
  void hold_over(uint16_t node, uint64_t page) {
    std::vector<Effect> effects;
    at(node).on_hold_over(kSegment, page, effects);
    execute(node, effects);
  }
  // The last kFetch or kClose of the node is answered.
  void fetched(uint16_t node, uint64_t arrived) {
    std::vector<Effect> effects;
    at(node).on_fetched(last(node, Effect::Kind::kFetch).message, arrived, effects);
    execute(node, effects);
  }
  void closed(uint16_t node) { closed(node, last(node, Effect::Kind::kClose).message); }
  void closed(uint16_t node, const PageMessage& message) {
    std::vector<Effect> effects;
    at(node).on_closed(message, effects);
    execute(node, effects);
  }
  void destroy(uint16_t node) {
    std::vector<Effect> effects;
    at(node).on_destroy(kSegment, effects);
    execute(node, effects);
  }
  // The next message of a channel, which must be of this kind.
  PageMessage deliver(uint16_t from, uint16_t to, Kind kind) {
    std::deque<PageMessage>& channel = channels_[{from, to}];
    EXPECT_FALSE(channel.empty()) << from << " to " << to;
    if (channel.empty()) {
      return {};
    }
    const PageMessage m = channel.front();
    channel.pop_front();
    EXPECT_EQ(m.kind, kind);
    inject(from, to, m);
    return m;
  }
  void inject(uint16_t from, uint16_t to, const PageMessage& m) {
    std::vector<Effect> effects;
    at(to).on_message(NodeId(from), m, effects);
    execute(to, effects);
  }
  bool silent(uint16_t from, uint16_t to) { return channels_[{from, to}].empty(); }
  void lose(uint16_t node) {
    nodes_.erase(node);
    for (auto& [ends, channel] : channels_) {
      if (ends.first == node || ends.second == node) {
        channel.clear();
      }
    }
  }
  // Everything is delivered and every holding time ends.
  void settle() {
    for (bool more = true; more;) {
      more = false;
      for (auto& [ends, channel] : channels_) {
        while (!channel.empty() && nodes_.contains(ends.second)) {
          const PageMessage m = channel.front();
          channel.pop_front();
          inject(ends.first, ends.second, m);
          more = true;
        }
      }
      std::vector<std::pair<uint16_t, uint64_t>> held;
      held.swap(held_);
      for (const auto& [node, page] : held) {
        if (nodes_.contains(node)) {
          hold_over(node, page);
          more = true;
        }
      }
    }
  }
  void get(uint16_t node, uint64_t page, Access want) {
    fault(node, page, want);
    settle();
    ASSERT_GE(access(node, page), want);
  }
  bool saw(uint16_t node, Effect::Kind kind) const {
    for (const auto& [at, effect] : log_) {
      if (at == node && effect.kind == kind) {
        return true;
      }
    }
    return false;
  }
  const Effect& last(uint16_t node, Effect::Kind kind) const {
    static const Effect kNothing{};
    for (auto i = log_.rbegin(); i != log_.rend(); ++i) {
      if (i->first == node && i->second.kind == kind) {
        return i->second;
      }
    }
    ADD_FAILURE() << "no such effect";
    return kNothing;
  }
  // A page whose home is this node.
  uint64_t page_of(uint16_t home, SegmentId segment = kSegment) {
    uint64_t page = 0;
    while (nodes_.begin()->second->home_of(segment, page) != NodeId(home)) {
      page += kChunkPages;
    }
    return page;
  }
  void forget_log() { log_.clear(); }

 private:
  bool one_sided_ = false;
  void execute(uint16_t node, const std::vector<Effect>& effects) {
    for (const Effect& effect : effects) {
      log_.emplace_back(node, effect);
      if (effect.kind == Effect::Kind::kSend || effect.kind == Effect::Kind::kSendFrames) {
        channels_[{node, effect.to.value}].push_back(effect.message);
      } else if (effect.kind == Effect::Kind::kFetch && effect.note) {
        channels_[{node, effect.to.value}].push_back(effect.message);
      } else if (effect.kind == Effect::Kind::kStartHold) {
        held_.emplace_back(node, effect.page);
      }
    }
  }
  std::map<uint16_t, std::unique_ptr<Directory>> nodes_;
  std::vector<NodeId> members_;
  std::map<std::pair<uint16_t, uint16_t>, std::deque<PageMessage>> channels_;
  std::vector<std::pair<uint16_t, uint64_t>> held_;
  std::vector<std::pair<uint16_t, Effect>> log_;
};

std::vector<NodeId> ids(std::initializer_list<uint16_t> values) {
  std::vector<NodeId> nodes;
  for (const uint16_t value : values) {
    nodes.push_back(NodeId(value));
  }
  return nodes;
}

TEST(Directory, APageThatNobodyWroteIsGrantedAsZero) {
  Net net(2);
  const uint64_t page = net.page_of(1);
  net.fault(2, page, Access::kRead);
  net.deliver(2, 1, Kind::kReadRequest);
  const PageMessage grant = net.deliver(1, 2, Kind::kGrant);
  EXPECT_TRUE(grant.has(PageMessage::kZero));
  EXPECT_TRUE(net.last(2, Effect::Kind::kInstall).zero);
  EXPECT_EQ(net.access(2, page), Access::kRead);
}

TEST(Directory, AReadOfAPageThatAThirdNodeOwnsTakesThreeHops) {
  Net net(3);
  const uint64_t page = net.page_of(1);
  net.get(2, page, Access::kWrite);
  net.fault(3, page, Access::kRead);
  net.deliver(3, 1, Kind::kReadRequest);
  const PageMessage forward = net.deliver(1, 2, Kind::kForward);
  EXPECT_EQ(forward.requester, NodeId(3));
  EXPECT_EQ(net.last(2, Effect::Kind::kSendFrames).frame, Effect::Frame::kDowngrade);
  const PageMessage grant = net.deliver(2, 3, Kind::kGrant);
  EXPECT_TRUE(grant.has(PageMessage::kFromOwner));
  net.deliver(3, 1, Kind::kDone);
  EXPECT_EQ(net.access(2, page), Access::kRead);
  EXPECT_EQ(net.access(3, page), Access::kRead);
}

TEST(Directory, AnUpgradeThatLosesTheRaceGetsBytesAndNoStaleCopy) {
  Net net(3);
  const uint64_t page = net.page_of(1);
  net.get(2, page, Access::kWrite);
  net.get(3, page, Access::kRead);  // 2 and 3 share now
  net.fault(2, page, Access::kWrite);
  net.fault(3, page, Access::kWrite);
  net.deliver(2, 1, Kind::kWriteRequest);
  const PageMessage late = net.deliver(3, 1, Kind::kWriteRequest);
  EXPECT_TRUE(late.has(PageMessage::kHasCopy));
  net.deliver(1, 3, Kind::kRevoke);
  EXPECT_TRUE(net.saw(3, Effect::Kind::kDrop));
  net.deliver(3, 1, Kind::kRevoked);
  EXPECT_TRUE(net.deliver(1, 2, Kind::kGrant).has(PageMessage::kNoBytes));
  net.deliver(1, 2, Kind::kForward);
  EXPECT_TRUE(net.silent(2, 3)) << "the grant is held";
  net.hold_over(2, page);
  const PageMessage grant = net.deliver(2, 3, Kind::kGrant);
  EXPECT_EQ(payload_pages(grant), 1);
  EXPECT_EQ(net.access(2, page), Access::kNone);
  EXPECT_EQ(net.access(3, page), Access::kWrite);
}

TEST(Directory, AReadThatComesWhileAcknowledgementsAreAwaitedWaitsForTheWriter) {
  Net net(4);
  const uint64_t page = net.page_of(1);
  net.get(2, page, Access::kWrite);
  net.get(3, page, Access::kRead);
  net.fault(2, page, Access::kWrite);
  net.deliver(2, 1, Kind::kWriteRequest);
  net.fault(4, page, Access::kRead);
  net.deliver(4, 1, Kind::kReadRequest);
  EXPECT_TRUE(net.silent(1, 4));
  EXPECT_TRUE(net.silent(1, 2));
  net.deliver(1, 3, Kind::kRevoke);
  net.deliver(3, 1, Kind::kRevoked);
  net.deliver(1, 2, Kind::kGrant);
  net.deliver(1, 2, Kind::kForward);
  net.settle();
  EXPECT_EQ(net.access(2, page), Access::kRead);
  EXPECT_EQ(net.access(3, page), Access::kNone);
  EXPECT_EQ(net.access(4, page), Access::kRead);
}

TEST(Directory, ANodeThatLeavesWithOwnershipInFlightLosesNothing) {
  Net net(3);
  const uint64_t page = net.page_of(1);
  net.get(2, page, Access::kWrite);
  net.fault(3, page, Access::kWrite);
  net.deliver(3, 1, Kind::kWriteRequest);
  net.deliver(1, 2, Kind::kForward);  // the bytes are between 2 and 3
  for (const uint16_t node : std::initializer_list<uint16_t>{3, 1, 2}) {
    net.view(node, 2, ids({1, 3}), {}, ids({2}));
  }
  EXPECT_EQ(net.access(3, page), Access::kNone);
  net.deliver(2, 3, Kind::kGrant);  // an older view's, in front of the flush
  EXPECT_EQ(net.access(3, page), Access::kWrite);
  net.settle();
  EXPECT_EQ(net.last(2, Effect::Kind::kStable).view, ViewId(2));
  net.get(1, page, Access::kRead);
  EXPECT_FALSE(net.saw(1, Effect::Kind::kPoison));
}

TEST(Directory, ANodeThatLeavesHandsOverWhatItWasAskedForInVain) {
  Net net(3);
  const uint64_t page = net.page_of(1);
  net.get(2, page, Access::kWrite);
  net.fault(3, page, Access::kWrite);
  net.deliver(3, 1, Kind::kWriteRequest);
  for (const uint16_t node :
       std::initializer_list<uint16_t>{2, 1, 3}) {  // 2 sees the view before the kForward
    net.view(node, 2, ids({1, 3}), {}, ids({2}));
  }
  net.settle();
  EXPECT_EQ(net.access(2, page), Access::kNone);
  EXPECT_EQ(net.access(3, page), Access::kWrite);
  EXPECT_FALSE(net.saw(3, Effect::Kind::kPoison));
}

TEST(Directory, APageWhoseOwnerDiesDuringAForwardIsLostAndNotZero) {
  Net net(3);
  const uint64_t page = net.page_of(1);
  net.get(2, page, Access::kWrite);
  net.fault(3, page, Access::kRead);
  net.deliver(3, 1, Kind::kReadRequest);
  net.lose(2);
  net.view(1, 2, ids({1, 3}), ids({2}), {});
  net.view(3, 2, ids({1, 3}), ids({2}), {});
  net.settle();
  EXPECT_TRUE(net.saw(3, Effect::Kind::kPoison));
  EXPECT_EQ(net.access(3, page), Access::kNone);
  EXPECT_TRUE(net.at(3).quiescent());
  net.forget_log();
  net.fault(1, page, Access::kWrite);
  net.settle();
  EXPECT_TRUE(net.saw(1, Effect::Kind::kPoison));
}

TEST(Directory, AHomeThatDiesDuringAWriteIsReplacedAndTheWriteGoesOn) {
  Net net(4);
  const uint64_t page = net.page_of(1);
  net.get(2, page, Access::kWrite);
  net.get(3, page, Access::kRead);
  net.get(4, page, Access::kRead);
  net.fault(2, page, Access::kWrite);
  net.deliver(2, 1, Kind::kWriteRequest);
  net.deliver(1, 3, Kind::kRevoke);  // 3 has given up its copy, 4 has not
  net.lose(1);
  for (const uint16_t node : std::initializer_list<uint16_t>{2, 3, 4}) {
    net.view(node, 2, ids({2, 3, 4}), ids({1}), {});
  }
  net.settle();
  EXPECT_EQ(net.access(2, page), Access::kWrite);
  EXPECT_EQ(net.access(4, page), Access::kNone);
  EXPECT_FALSE(net.saw(2, Effect::Kind::kPoison));
}

TEST(Directory, WhatNobodyWroteIsLostWithItsHomeOnlyInSegmentsBornBefore) {
  Net net(3);
  const uint64_t page = net.page_of(1);
  net.lose(1);
  net.view(2, 2, ids({2, 3}), ids({1}), {});
  net.view(3, 2, ids({2, 3}), ids({1}), {});
  net.settle();
  net.fault(2, page, Access::kRead);
  net.settle();
  EXPECT_TRUE(net.saw(2, Effect::Kind::kPoison)) << "node 1 may have written it";
  const SegmentId fresh(uint64_t{2} << 32 | 1);
  for (uint64_t at = 0; at < 20 * kChunkPages; at += kChunkPages) {
    std::vector<Effect> effects;
    net.at(2).on_fault(fresh, at, Access::kRead, 0, effects);
    for (const Effect& effect : effects) {
      EXPECT_NE(effect.kind, Effect::Kind::kPoison);
      if (effect.kind == Effect::Kind::kSend) {
        net.inject(2, effect.to.value, effect.message);
      }
    }
    net.settle();
    EXPECT_EQ(net.at(2).access(fresh, at), Access::kRead);
  }
}

TEST(Directory, AheadGetsInFewMessagesWhatNeedsNoWaiting) {
  Net net(3);
  const uint64_t page = net.page_of(1);
  for (uint64_t i = 0; i < 4; ++i) {
    net.get(1, page + i, Access::kWrite);
  }
  net.get(2, page + 4, Access::kWrite);  // another owner: not fetched ahead
  net.forget_log();
  net.fault(3, page, Access::kRead, 63);
  const PageMessage request = net.deliver(3, 1, Kind::kReadRequest);
  EXPECT_EQ(request.mask, ~uint64_t{0});
  EXPECT_EQ(net.deliver(1, 3, Kind::kGrant).mask, ~uint64_t{0x1f}) << "never written: zeroes";
  EXPECT_EQ(net.deliver(1, 3, Kind::kGrant).mask, uint64_t{0xf}) << "the home's own, in one message";
  EXPECT_TRUE(net.silent(1, 3));
  EXPECT_TRUE(net.silent(1, 2));
  EXPECT_EQ(net.access(3, page + 3), Access::kRead);
  EXPECT_EQ(net.access(3, page + 4), Access::kNone);
  EXPECT_EQ(net.access(3, page + 63), Access::kRead);
}

TEST(Directory, AheadStopsAtTheEndOfTheChunk) {
  Net net(2);
  const uint64_t page = net.page_of(1) + kChunkPages - 3;
  net.fault(2, page, Access::kRead, 63);
  EXPECT_EQ(net.deliver(2, 1, Kind::kReadRequest).mask, uint64_t{7});
}

TEST(Directory, RequestsForADestroyedSegmentAreAnsweredSoThatNobodyHangs) {
  Net net(3);
  const uint64_t page = net.page_of(1);
  net.get(2, page, Access::kWrite);
  net.fault(3, page, Access::kWrite);
  net.deliver(3, 1, Kind::kWriteRequest);
  net.destroy(1);  // with a request at work
  net.settle();
  EXPECT_TRUE(net.saw(3, Effect::Kind::kPoison));
  net.forget_log();
  net.fault(2, page + 1, Access::kRead);
  net.settle();
  EXPECT_TRUE(net.saw(2, Effect::Kind::kPoison));
  for (const uint16_t node : std::initializer_list<uint16_t>{1, 2, 3}) {
    EXPECT_TRUE(net.at(node).quiescent()) << node;
  }
}

TEST(Directory, MessagesThatMakeNoSenseAreCountedAndChangeNothing) {
  Net net(2);
  const uint64_t page = net.page_of(1);
  net.get(2, page, Access::kWrite);
  const uint64_t before = net.at(2).counters().ignored;
  PageMessage m;
  m.segment = kSegment;
  m.page = page;
  m.mask = 1;
  m.view = ViewId(1);
  m.kind = Kind::kGrant;
  m.access = Access::kWrite;
  net.inject(9, 2, m);  // not a member
  m.view = ViewId(5);
  net.inject(1, 2, m);  // a view that does not exist yet
  m.view = ViewId(1);
  m.kind = Kind::kRevoke;
  net.inject(1, 2, m);  // this node may write: nothing to revoke
  m.kind = Kind::kForward;
  m.requester = NodeId(2);
  net.inject(1, 2, m);  // to itself
  EXPECT_EQ(net.at(2).counters().ignored, before + 4);
  EXPECT_EQ(net.access(2, page), Access::kWrite);
}

TEST(Directory, ANodeThatJoinsTakesOverItsShareAndNothingIsLost) {
  Net net(2);
  for (uint64_t chunk = 0; chunk < 16; ++chunk) {
    net.get(1, chunk * kChunkPages, Access::kWrite);
  }
  net.add(3);
  for (const uint16_t node : std::initializer_list<uint16_t>{1, 2, 3}) {
    net.view(node, 2, ids({1, 2, 3}), {}, {});
  }
  net.settle();
  uint64_t moved = 0;
  for (uint64_t chunk = 0; chunk < 16; ++chunk) {
    moved += net.at(1).home_of(kSegment, chunk * kChunkPages) == NodeId(3) ? 1 : 0;
    net.get(3, chunk * kChunkPages, Access::kRead);
    net.get(2, chunk * kChunkPages + 1, Access::kWrite);  // untouched: still zero, whoever is home now
  }
  EXPECT_GT(moved, 0u);
  EXPECT_LT(moved, 16u);
}

// Node 1 is the home and wrote three pages, node 2 has read them, node 3 the first: the others are published.
class OneSided : public ::testing::Test {
 protected:
  void SetUp() override {
    page_ = net_.page_of(1);
    for (uint64_t i = 0; i < 3; ++i) {
      net_.get(1, page_ + i, Access::kWrite);
      net_.get(2, page_ + i, Access::kRead);
    }
    net_.get(3, page_, Access::kRead);
    net_.forget_log();
  }
  Net net_{3, true};
  uint64_t page_ = 0;
};

TEST_F(OneSided, ThePublishedPagesOfAWindowAreFetchedAndTheNoteGoesFirst) {
  net_.fault(3, page_ + 1, Access::kRead, 5);
  const Effect fetch = net_.last(3, Effect::Kind::kFetch);
  EXPECT_EQ(fetch.to, NodeId(1));
  EXPECT_TRUE(fetch.note);
  EXPECT_EQ(fetch.message.mask, 3u);
  net_.fetched(3, 3);
  EXPECT_EQ(net_.access(3, page_ + 1), Access::kRead);
  EXPECT_EQ(net_.access(3, page_ + 2), Access::kRead);
  net_.deliver(3, 1, Kind::kReading);
  EXPECT_TRUE(net_.silent(3, 1) && net_.silent(1, 3));
}

TEST_F(OneSided, WhatDoesNotComeIsAskedFor) {
  net_.fault(3, page_ + 1, Access::kRead, 5);
  net_.fetched(3, 2);
  EXPECT_EQ(net_.access(3, page_ + 2), Access::kRead);
  net_.deliver(3, 1, Kind::kReading);
  EXPECT_EQ(net_.deliver(3, 1, Kind::kReadRequest).mask, 1u);
  net_.settle();
  EXPECT_EQ(net_.access(3, page_ + 1), Access::kRead);
}

TEST_F(OneSided, AWriteWaitsForTheCloseAndRevokesWhoeverWasNotedByThen) {
  net_.fault(3, page_ + 1, Access::kRead);
  net_.fault(2, page_ + 1, Access::kWrite);
  net_.deliver(2, 1, Kind::kWriteRequest);
  EXPECT_TRUE(net_.silent(1, 2) && net_.silent(1, 3)) << "nothing before the page is closed";
  net_.deliver(3, 1, Kind::kReading);
  net_.closed(1);
  net_.deliver(1, 3, Kind::kRevoke);
  net_.deliver(3, 1, Kind::kRevoked);
  EXPECT_EQ(net_.deliver(1, 2, Kind::kGrant).access, Access::kWrite);
  net_.fetched(3, 1);  // spoiled
  EXPECT_EQ(net_.access(3, page_ + 1), Access::kNone);
  net_.settle();
  EXPECT_EQ(net_.access(3, page_ + 1), Access::kRead);
  EXPECT_EQ(net_.access(2, page_ + 1), Access::kRead);
}

TEST_F(OneSided, AWriterThatFetchedGivesItsCopyBackAndGetsTheBytes) {
  net_.fault(3, page_ + 1, Access::kRead);
  net_.fetched(3, 1);
  net_.fault(3, page_ + 1, Access::kWrite);
  net_.deliver(3, 1, Kind::kReading);
  EXPECT_TRUE(net_.deliver(3, 1, Kind::kWriteRequest).has(PageMessage::kHasCopy));
  net_.closed(1);
  net_.settle();
  EXPECT_EQ(net_.access(3, page_ + 1), Access::kWrite);
  EXPECT_EQ(net_.access(1, page_ + 1), Access::kNone);
  EXPECT_EQ(net_.access(2, page_ + 1), Access::kNone);
}

TEST_F(OneSided, ACloseOfAnOlderViewIsLeftAlone) {
  net_.fault(2, page_, Access::kWrite);
  net_.deliver(2, 1, Kind::kWriteRequest);
  const PageMessage old = net_.last(1, Effect::Kind::kClose).message;
  for (uint16_t node = 1; node <= 3; ++node) {
    net_.view(node, 2, ids({1, 2, 3}), {}, {});
  }
  net_.settle();
  net_.closed(1, old);
  net_.settle();
  EXPECT_EQ(net_.access(2, page_), Access::kRead);
  net_.closed(1);
  net_.settle();
  EXPECT_EQ(net_.access(2, page_), Access::kWrite);
  EXPECT_EQ(net_.access(3, page_), Access::kNone);
}

TEST_F(OneSided, AFetchThatEndsAfterAChangeOfViewIsThrownAway) {
  net_.fault(3, page_ + 1, Access::kRead);
  for (uint16_t node = 1; node <= 3; ++node) {
    net_.view(node, 2, ids({1, 2, 3}), {}, {});
  }
  net_.fetched(3, 1);
  EXPECT_EQ(net_.access(3, page_ + 1), Access::kNone);
  net_.settle();
  EXPECT_EQ(net_.access(3, page_ + 1), Access::kRead);
}

TEST(Directory, TheHomeFetchesFromASharerWhatItPublishedForOthers) {
  Net net(3, true);
  const uint64_t page = net.page_of(1);
  for (uint64_t i = 0; i < 3; ++i) {
    net.get(2, page + i, Access::kWrite);
    net.get(3, page + i, Access::kRead);
  }
  net.get(1, page, Access::kRead);
  net.forget_log();
  net.fault(1, page + 1, Access::kRead, 1);
  const Effect fetch = net.last(1, Effect::Kind::kFetch);
  EXPECT_EQ(fetch.to, NodeId(2));
  EXPECT_FALSE(fetch.note);
  EXPECT_EQ(fetch.message.mask, 3u);
  net.fetched(1, 1);
  EXPECT_EQ(net.access(1, page + 1), Access::kRead);
  EXPECT_EQ(net.deliver(1, 2, Kind::kForward).mask, 2u);  // what did not come is sent after all
  net.settle();
  EXPECT_EQ(net.access(1, page + 2), Access::kRead);
  net.get(3, page + 1, Access::kWrite);
  EXPECT_EQ(net.access(1, page + 1), Access::kNone);
}

TEST(Directory, ManySharersBeyondTheFirstSixtyFourAreAllRevoked) {
  constexpr uint16_t kNodes = 150;
  Net net(kNodes);
  const uint64_t page = net.page_of(1);
  for (uint16_t node = 1; node <= kNodes; ++node) {
    net.get(node, page, node == 1 ? Access::kWrite : Access::kRead);
  }
  net.get(140, page, Access::kWrite);
  for (uint16_t node = 1; node <= kNodes; ++node) {
    EXPECT_EQ(net.access(node, page), node == 140 ? Access::kWrite : Access::kNone) << node;
  }
}

}  // namespace
}  // namespace kevre::dsm
