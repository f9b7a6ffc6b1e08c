// What the sim backend promises beyond the conformance suite: determinism, faults on command, one-sided
// operations.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/transport/backends.h"
#include "transport/sim/sim_network.h"

namespace kevre::transport::sim {
namespace {

using testing::as_bytes;
using testing::pattern;
using testing::Recorder;

constexpr std::span<const std::byte> kNothing{};

class Sim : public ::testing::Test {
 protected:
  void start(uint64_t seed, size_t nodes, Capabilities capabilities = {false, false, false, "sim"}) {
    nodes_.clear();
    SimOptions options;
    options.seed = seed;
    options.capabilities = capabilities;
    network_ = std::make_unique<SimNetwork>(options);
    recorders_ = std::vector<Recorder>(nodes);
    for (size_t i = 0; i < nodes; ++i) {
      Options mine;
      mine.self = NodeId(static_cast<uint16_t>(i + 1));
      nodes_.push_back(*network_->create(mine));
      nodes_[i]->set_handler(Service::kTest, &recorders_[i]);
    }
    for (auto& a : nodes_) {
      for (auto& b : nodes_) {
        if (a != b) {
          ASSERT_TRUE(a->connect(b->self(), b->local_address()).has_value());
        }
      }
    }
  }
  void step() {
    network_->advance();
    for (auto& node : nodes_) {
      node->progress();
    }
  }
  void settle() {
    while (!network_->idle()) {
      step();
    }
  }

  std::vector<Recorder> recorders_;
  std::unique_ptr<SimNetwork> network_;
  std::vector<std::unique_ptr<Transport>> nodes_;
};

TEST_F(Sim, TheSameSeedGivesTheSameRunAndAnotherSeedAnother) {
  const auto run = [this](uint64_t seed) {
    start(seed, 4);
    std::string order;
    recorders_[3].also = [&](NodeId from, auto, auto) { order += std::to_string(from.value); };
    for (int i = 0; i < 30; ++i) {
      for (size_t node = 0; node < 3; ++node) {
        EXPECT_TRUE(nodes_[node]->send(NodeId(4), Service::kTest, {}, kNothing).has_value());
      }
    }
    settle();
    return order + "@" + std::to_string(network_->now());
  };
  const std::string first = run(5);
  EXPECT_EQ(first, run(5));
  EXPECT_NE(first, run(6));
  EXPECT_EQ(first.find("@"), 90u);
}

TEST_F(Sim, MessagesOfDifferentPeersOvertakeEachOtherAndThoseOfOneNever) {
  start(1, 3);
  for (uint64_t i = 0; i < 50; ++i) {
    for (size_t node = 0; node < 2; ++node) {
      ASSERT_TRUE(nodes_[node]
                      ->send(NodeId(3), Service::kTest, std::as_bytes(std::span(&i, 1)), kNothing)
                      .has_value());
    }
  }
  settle();
  ASSERT_EQ(recorders_[2].messages.size(), 100u);
  std::array<uint64_t, 2> next{};
  bool alternating = true;
  for (size_t i = 0; i < 100; ++i) {
    const auto& message = recorders_[2].messages[i];
    uint64_t number = 0;
    std::memcpy(&number, message.header.data(), sizeof number);
    EXPECT_EQ(number, next[message.from.value - 1u]++);
    alternating = alternating && message.from.value == i % 2 + 1;
  }
  EXPECT_FALSE(alternating);
}

TEST_F(Sim, ACutConnectionLosesATailAndBothEndsAreToldOnce) {
  size_t shortest = 100;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    start(seed, 3);
    for (uint64_t i = 0; i < 20; ++i) {
      ASSERT_TRUE(
          nodes_[0]->send(NodeId(2), Service::kTest, std::as_bytes(std::span(&i, 1)), kNothing).has_value());
    }
    network_->cut(NodeId(1), NodeId(2));
    settle();
    ASSERT_EQ(recorders_[0].lost.size(), 1u);
    ASSERT_EQ(recorders_[1].lost.size(), 1u);
    EXPECT_TRUE(recorders_[2].lost.empty());
    for (uint64_t i = 0; i < recorders_[1].messages.size(); ++i) {
      EXPECT_EQ(std::memcmp(recorders_[1].messages[i].header.data(), &i, sizeof i), 0)
          << "a hole in the middle";
    }
    shortest = std::min(shortest, recorders_[1].messages.size());
  }
  EXPECT_LT(shortest, 20u);
}

TEST_F(Sim, AStalledDirectionFillsUpAndGoesOn) {
  start(3, 2);
  network_->stall(NodeId(1), NodeId(2), true);
  ASSERT_TRUE(nodes_[0]->send(NodeId(2), Service::kTest, {}, as_bytes("later")).has_value());
  ASSERT_TRUE(nodes_[1]->send(NodeId(1), Service::kTest, {}, as_bytes("now")).has_value());
  settle();
  EXPECT_TRUE(recorders_[1].messages.empty());
  EXPECT_EQ(recorders_[0].messages.size(), 1u);
  EXPECT_EQ(nodes_[0]->queued_bytes(NodeId(2)), 5u);
  network_->stall(NodeId(1), NodeId(2), false);
  settle();
  EXPECT_EQ(recorders_[1].messages.size(), 1u);
  EXPECT_EQ(nodes_[0]->queued_bytes(NodeId(2)), 0u);
}

TEST_F(Sim, NothingIsDeliveredBeforeTimeMoves) {
  start(4, 2);
  ASSERT_TRUE(nodes_[0]->send(NodeId(2), Service::kTest, {}, kNothing).has_value());
  EXPECT_EQ(nodes_[1]->progress(), 0);
  EXPECT_TRUE(nodes_[1]->arm());
  network_->advance_by(999);  // below the shortest delay
  EXPECT_EQ(nodes_[1]->progress(), 0);
  network_->advance_by(kSecond);
  EXPECT_FALSE(nodes_[1]->arm());
  EXPECT_EQ(nodes_[1]->progress(), 1);
}

TEST_F(Sim, OneSidedOperationsActOnThePeersMemoryWhereTheNetworkHasThem) {
  start(7, 2, {true, true, true, "sim"});
  std::array<uint64_t, 4> memory{10, 20, 30, 40};
  const RegionKey key = *nodes_[1]->register_region(std::as_writable_bytes(std::span(memory)));
  std::vector<uint64_t> values;
  const Completion keep = [&](const Result<uint64_t>& value) { values.push_back(value ? *value : 999u); };
  std::array<uint64_t, 2> read{};
  ASSERT_TRUE(
      nodes_[0]->read(NodeId(2), {&key, 8}, std::as_writable_bytes(std::span(read)), keep).has_value());
  const uint64_t new_value = 77;
  ASSERT_TRUE(
      nodes_[0]->write(NodeId(2), std::as_bytes(std::span(&new_value, 1)), {&key, 24}, keep).has_value());
  ASSERT_TRUE(nodes_[0]->fetch_add(NodeId(2), {&key, 0}, 5, keep).has_value());
  ASSERT_TRUE(nodes_[0]->compare_swap(NodeId(2), {&key, 0}, 15, 100, keep).has_value());
  ASSERT_TRUE(nodes_[0]->compare_swap(NodeId(2), {&key, 0}, 15, 200, keep).has_value());
  ASSERT_TRUE(
      nodes_[0]->read(NodeId(2), {&key, 25}, std::as_writable_bytes(std::span(read)), keep).has_value());
  settle();
  EXPECT_EQ(values, (std::vector<uint64_t>{0, 0, 10, 15, 100, 999}));
  EXPECT_EQ(read, (std::array<uint64_t, 2>{20, 30}));
  EXPECT_EQ(memory, (std::array<uint64_t, 4>{100, 20, 30, 77}));
}

TEST(Create, UnknownKindsAndAddressesSayWhatToDo) {
  Options options;
  options.self = NodeId(1);
  options.kind = "pigeon";
  EXPECT_EQ(create(options).error().code, Errc::kInvalid);
  options.kind = "ucx";
  options.bind_address = "203.0.113.77";
  EXPECT_EQ(create(options).error().code, Errc::kNotFound);
  options.bind_address = "nonsense";
  EXPECT_EQ(create(options).error().code, Errc::kInvalid);
  options.bind_address.clear();
  options.self = kNoNode;
  EXPECT_EQ(create(options).error().code, Errc::kInvalid);
}

}  // namespace
}  // namespace kevre::transport::sim
