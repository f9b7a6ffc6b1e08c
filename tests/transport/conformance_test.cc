// What every transport must do, over every backend; see transport.h for the contract.
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "tests/transport/backends.h"

namespace kevre::transport::testing {
namespace {

constexpr NodeId kOne{1};
constexpr NodeId kTwo{2};
constexpr std::span<const std::byte> kNothing{};

class Conformance : public ::testing::TestWithParam<Backend> {
 protected:
  void start(size_t nodes, bool connect = true, Options options = {}) {
    options.cluster_tag = 0x1234'5678'9abc'def0u;
    cluster_ = GetParam().make(nodes, options);
    recorders_.resize(nodes);
    for (size_t i = 0; i < nodes; ++i) {
      recorders_[i] = std::make_unique<Recorder>();
      cluster_->node(i).set_handler(Service::kTest, recorders_[i].get());
    }
    if (connect) {
      cluster_->connect_all();
    }
  }
  Transport& node(size_t i) { return cluster_->node(i); }
  Recorder& got(size_t i) { return *recorders_[i]; }
  // Sends, making progress while the transport is busy.
  void send(size_t from, NodeId to, std::span<const std::byte> header, std::span<const std::byte> payload) {
    while (true) {
      const auto sent = node(from).send(to, Service::kTest, header, payload);
      if (sent) {
        return;
      }
      ASSERT_EQ(sent.error().code, Errc::kBusy) << sent.error().text;
      cluster_->step();
    }
  }

  // One more transport of the same backend beside the cluster.
  std::unique_ptr<Transport> stranger_of(uint16_t id, Options options) {
    options.self = NodeId(id);
    return cluster_->make_another(options);
  }

  std::vector<std::unique_ptr<Recorder>> recorders_;  // outlive the cluster
  std::unique_ptr<Cluster> cluster_;
};

TEST_P(Conformance, AMessageArrivesWithItsHeaderAndPayload) {
  start(2);
  send(0, kTwo, as_bytes("header"), as_bytes("payload"));
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == 1; }));
  const Message& message = got(1).messages[0];
  EXPECT_EQ(message.from, kOne);
  EXPECT_EQ(std::memcmp(message.header.data(), "header", 6), 0);
  EXPECT_EQ(std::memcmp(message.payload.data(), "payload", 7), 0);
  EXPECT_EQ(node(0).capabilities(kTwo).via, GetParam().via);
}

TEST_P(Conformance, EverySizeArrivesUnchangedAndInOrder) {
  start(2);
  std::vector<size_t> sizes = {0,
                               1,
                               2,
                               3,
                               7,
                               8,
                               63,
                               64,
                               65,
                               4095,
                               4096,
                               4097,
                               7999,
                               8192,
                               8256,
                               8257,
                               16383,
                               65535,
                               65536,
                               65537,
                               131071,
                               131072,
                               131073,
                               262143,
                               1048577,
                               8388607,
                               kPayloadBytesMax - 1,
                               kPayloadBytesMax};
  for (size_t i = 0; i < sizes.size(); ++i) {
    send(0, kTwo, pattern(i % 257, i), pattern(sizes[i], i));
  }
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == sizes.size(); }));
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(got(1).messages[i].header, pattern(i % 257, i)) << i;
    EXPECT_TRUE(got(1).messages[i].payload == pattern(sizes[i], i)) << "size " << sizes[i];
  }
  // The sender may learn after the receiver that the last one arrived.
  EXPECT_TRUE(cluster_->until([&] { return node(0).queued_bytes(kTwo) == 0; }));
}

TEST_P(Conformance, TenThousandMessagesBothWaysAtOnceArriveInOrder) {
  start(2);
  constexpr uint64_t kMessages = 10'000;
  std::array<uint64_t, 2> expected{};
  std::array<uint64_t, 2> wrong{};
  for (size_t side = 0; side < 2; ++side) {
    got(side).keep = false;
    got(side).also = [&, side](NodeId, std::span<const std::byte> header,
                               std::span<const std::byte> payload) {
      uint64_t number = 0;
      std::memcpy(&number, header.data(), sizeof number);
      const auto want = pattern(number * 37 % 5000, number);
      if (number != expected[side] || !std::equal(payload.begin(), payload.end(), want.begin(), want.end())) {
        ++wrong[side];
      }
      ++expected[side];
    };
  }
  std::array<uint64_t, 2> sent{};
  ASSERT_TRUE(cluster_->until([&] {
    for (size_t side = 0; side < 2; ++side) {
      for (int burst = 0; burst < 50 && sent[side] < kMessages; ++burst) {
        const auto payload = pattern(sent[side] * 37 % 5000, sent[side]);
        const auto header = std::as_bytes(std::span(&sent[side], 1));
        if (!node(side).send(side == 0 ? kTwo : kOne, Service::kTest, header, payload)) {
          break;
        }
        ++sent[side];
      }
    }
    return expected[0] == kMessages && expected[1] == kMessages;
  }));
  EXPECT_EQ(wrong[0] + wrong[1], 0u);
  EXPECT_EQ(node(0).counters().messages_sent, kMessages);
  EXPECT_EQ(node(1).counters().messages_received, kMessages);
  EXPECT_EQ(node(0).counters().rejected + node(1).counters().rejected, 0u);
}

TEST_P(Conformance, SmallMessagesNeverOvertakeLargeOnes) {
  start(3);
  constexpr size_t kMessages = 60;
  for (size_t i = 0; i < kMessages; ++i) {
    const auto payload = pattern(i % 3 == 0 ? 700'000 + i : i, i);
    send(0, NodeId(3), std::as_bytes(std::span(&i, 1)), payload);
    send(1, NodeId(3), std::as_bytes(std::span(&i, 1)), payload);
  }
  ASSERT_TRUE(cluster_->until([&] { return got(2).messages.size() == 2 * kMessages; }));
  std::array<size_t, 2> next{};
  for (const Message& message : got(2).messages) {
    size_t number = 0;
    std::memcpy(&number, message.header.data(), sizeof number);
    EXPECT_EQ(number, next[message.from.value - 1u]++);
  }
}

TEST_P(Conformance, AFullQueueAnswersBusyThenSaysThatThereIsRoomAndLosesNothing) {
  Options options;
  options.peer_queue_bytes_max = 1 << 20;
  start(2, true, options);
  got(1).keep = false;
  uint64_t arrived = 0;
  got(1).also = [&](NodeId, auto, auto) { ++arrived; };
  const auto payload = pattern(100'000, 5);
  uint64_t sent = 0;
  for (bool busy = false; !busy;) {  // no progress on the other side: it must fill up
    const auto result = node(0).send(kTwo, Service::kTest, {}, payload);
    busy = !result && result.error().code == Errc::kBusy;
    sent += busy ? 0 : 1;
    ASSERT_LT(sent, 5000u) << "never busy";
  }
  EXPECT_LE(node(0).queued_bytes(kTwo), options.peer_queue_bytes_max);
  EXPECT_TRUE(got(0).writable.empty());
  ASSERT_TRUE(cluster_->until([&] { return !got(0).writable.empty(); }));
  EXPECT_EQ(got(0).writable.front(), kTwo);
  EXPECT_LE(node(0).queued_bytes(kTwo), options.peer_queue_bytes_max / 2);
  ASSERT_TRUE(node(0).send(kTwo, Service::kTest, {}, payload).has_value());
  ASSERT_TRUE(cluster_->until([&] { return arrived == sent + 1; }));
  EXPECT_EQ(got(0).writable.size(), 1u) << "on_writable follows a kBusy, once";
}

TEST_P(Conformance, AMessageLargerThanTheQueueGoesAlone) {
  Options options;
  options.peer_queue_bytes_max = 4096;
  start(2, true, options);
  send(0, kTwo, {}, pattern(1'000'000, 1));
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == 1; }));
  EXPECT_TRUE(got(1).messages[0].payload == pattern(1'000'000, 1));
}

TEST_P(Conformance, APooledBufferIsSentWithoutBeingCopiedByTheCaller) {
  start(2);
  Buffer buffer = node(0).buffer(5000);
  ASSERT_EQ(buffer.size(), 5000u);
  const auto want = pattern(4321, 9);
  std::memcpy(buffer.bytes().data(), want.data(), want.size());
  buffer.shrink(want.size());
  ASSERT_TRUE(node(0).send(kTwo, Service::kTest, as_bytes("h"), std::move(buffer)).has_value());
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == 1; }));
  EXPECT_TRUE(got(1).messages[0].payload == want);
}

TEST_P(Conformance, AHeaderOrPayloadBeyondTheLimitIsRefused) {
  start(2);
  EXPECT_EQ(node(0).send(kTwo, Service::kTest, pattern(kHeaderBytesMax + 1, 1), kNothing).error().code,
            Errc::kInvalid);
  const std::vector<std::byte> huge(kPayloadBytesMax + 1);
  EXPECT_EQ(node(0).send(kTwo, Service::kTest, {}, huge).error().code, Errc::kInvalid);
  send(0, kTwo, pattern(kHeaderBytesMax, 1), {});
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == 1; }));
  EXPECT_EQ(got(1).messages[0].header, pattern(kHeaderBytesMax, 1));
}

TEST_P(Conformance, WhatArrivesBeforeConnectIsHeldAndThenDeliveredInOrder) {
  start(2, false);
  ASSERT_TRUE(node(0).connect(kTwo, node(1).local_address()).has_value());
  for (uint64_t i = 0; i < 100; ++i) {
    send(0, kTwo, std::as_bytes(std::span(&i, 1)), pattern(i * 10, i));
  }
  for (int i = 0; i < 20'000; ++i) {
    cluster_->step();
  }
  EXPECT_TRUE(got(1).messages.empty());
  EXPECT_EQ(node(1).send(kOne, Service::kTest, {}, kNothing).error().code, Errc::kPeerLost);
  ASSERT_TRUE(node(1).connect(kOne, node(0).local_address()).has_value());
  EXPECT_TRUE(got(1).messages.empty()) << "handlers run inside progress() only";
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == 100; }));
  for (uint64_t i = 0; i < 100; ++i) {
    EXPECT_TRUE(got(1).messages[i].payload == pattern(i * 10, i)) << i;
  }
  EXPECT_EQ(node(1).counters().rejected, 0u);
}

TEST_P(Conformance, HeldMessagesAreBoundedAndTheSenderHearsOfIt) {
  start(2, false);
  ASSERT_TRUE(node(0).connect(kTwo, node(1).local_address()).has_value());
  for (uint64_t i = 0; i < 6000; ++i) {
    send(0, kTwo, std::as_bytes(std::span(&i, 1)), {});
    cluster_->step();
  }
  ASSERT_TRUE(cluster_->until([&] { return node(1).counters().rejected > 0; }));
  ASSERT_TRUE(node(1).connect(kOne, node(0).local_address()).has_value());
  send(0, kTwo, {}, {});
  ASSERT_TRUE(cluster_->until([&] { return !got(0).lost.empty(); }));
  EXPECT_TRUE(got(1).messages.empty()) << "never a stream with a hole in it";
}

TEST_P(Conformance, ConnectingTwiceIsRefusedAndSoIsABadAddress) {
  start(2);
  EXPECT_EQ(node(0).connect(kTwo, node(1).local_address()).error().code, Errc::kExists);
  EXPECT_EQ(node(0).connect(kOne, node(0).local_address()).error().code, Errc::kInvalid);
  Address address = node(1).local_address();
  address.back() ^= std::byte{1};
  address.resize(address.size() - 1);
  EXPECT_EQ(node(0).connect(NodeId(9), address).error().code, Errc::kCorrupt);
  EXPECT_EQ(node(0).connect(NodeId(9), {}).error().code, Errc::kCorrupt);
}

TEST_P(Conformance, SendingToNobodyIsAnswered) {
  start(2, false);
  EXPECT_EQ(node(0).send(kTwo, Service::kTest, {}, kNothing).error().code, Errc::kPeerLost);
  node(0).disconnect(kTwo);  // unknown: ignored
}

TEST_P(Conformance, AMessageOfAnotherClusterIsRejected) {
  start(2, false);
  Options stranger;
  stranger.cluster_tag = 1;
  auto other = stranger_of(3, stranger);
  ASSERT_NE(other, nullptr);
  ASSERT_TRUE(node(0).connect(NodeId(3), other->local_address()).has_value());
  ASSERT_TRUE(other->connect(kOne, node(0).local_address()).has_value());
  ASSERT_TRUE(other->send(kOne, Service::kTest, as_bytes("let me in"), kNothing).has_value());
  ASSERT_TRUE(cluster_->until([&] {
    other->progress();
    return node(0).counters().rejected == 1;
  }));
  EXPECT_TRUE(got(0).messages.empty());
}

TEST_P(Conformance, AMessageForAServiceWithoutHandlerIsCountedNotDelivered) {
  start(2);
  ASSERT_TRUE(node(0).send(kTwo, Service::kBench, {}, as_bytes("x")).has_value());
  send(0, kTwo, {}, as_bytes("y"));
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == 1; }));
  EXPECT_EQ(node(1).counters().rejected, 1u);
}

TEST_P(Conformance, OneSidedOperationsAnswerUnsupportedWhereNotCapable) {
  start(2);
  if (node(0).capabilities(kTwo).read) {
    return;  // one_sided_test.cc
  }
  const RegionKey key;
  std::array<std::byte, 8> bytes{};
  const Completion never = [](const Result<uint64_t>&) { FAIL() << "a completion of a refused operation"; };
  EXPECT_EQ(node(0).read(kTwo, {&key, 0}, bytes, never).error().code, Errc::kUnsupported);
  EXPECT_EQ(node(0).write(kTwo, bytes, {&key, 0}, never).error().code, Errc::kUnsupported);
  EXPECT_EQ(node(0).fetch_add(kTwo, {&key, 0}, 1, never).error().code, Errc::kUnsupported);
  EXPECT_EQ(node(0).compare_swap(kTwo, {&key, 0}, 1, 2, never).error().code, Errc::kUnsupported);
}

TEST_P(Conformance, ADisconnectIsSeenByTheOtherSideOnceAndNotByUs) {
  start(2);
  send(0, kTwo, {}, as_bytes("a"));
  send(1, kOne, {}, as_bytes("b"));
  ASSERT_TRUE(cluster_->until([&] { return got(0).messages.size() == 1 && got(1).messages.size() == 1; }));
  node(0).disconnect(kTwo);
  EXPECT_EQ(node(0).send(kTwo, Service::kTest, {}, kNothing).error().code, Errc::kPeerLost);
  ASSERT_TRUE(cluster_->until([&] { return !got(1).lost.empty(); }));
  EXPECT_EQ(got(1).lost[0].first, kOne);
  for (int i = 0; i < 2000; ++i) {
    cluster_->step();
  }
  EXPECT_EQ(got(1).lost.size(), 1u);
  EXPECT_TRUE(got(0).lost.empty());
  EXPECT_EQ(node(1).send(kOne, Service::kTest, {}, kNothing).error().code, Errc::kPeerLost);
}

TEST_P(Conformance, APeerThatConnectsAgainStartsAfresh) {
  start(2);
  for (uint64_t round = 0; round < 5; ++round) {
    const size_t before0 = got(0).messages.size();
    const size_t before1 = got(1).messages.size();
    for (int i = 0; i < 3; ++i) {
      send(0, kTwo, {}, pattern(10'000, round));
      send(1, kOne, {}, pattern(10'000, round));
    }
    ASSERT_TRUE(cluster_->until([&] {
      return got(0).messages.size() == before0 + 3 && got(1).messages.size() == before1 + 3;
    })) << "round "
        << round;
    EXPECT_TRUE(got(0).messages.back().payload == pattern(10'000, round));
    const size_t lost = got(1).lost.size();
    node(0).disconnect(kTwo);
    ASSERT_TRUE(cluster_->until([&] { return got(1).lost.size() == lost + 1; }));
    ASSERT_TRUE(node(0).connect(kTwo, node(1).local_address()).has_value());
    ASSERT_TRUE(node(1).connect(kOne, node(0).local_address()).has_value());
  }
  EXPECT_TRUE(got(0).lost.empty());
}

TEST_P(Conformance, ATransportThatStopsIsLostToItsPeers) {
  start(3);
  for (size_t i = 0; i < 3; ++i) {
    for (size_t k = 0; k < 3; ++k) {
      if (i != k) {
        send(i, NodeId(static_cast<uint16_t>(k + 1)), {}, pattern(100, i));
      }
    }
  }
  ASSERT_TRUE(cluster_->until([&] {
    return got(0).messages.size() == 2 && got(1).messages.size() == 2 && got(2).messages.size() == 2;
  }));
  cluster_->stop(2);
  ASSERT_TRUE(cluster_->until([&] { return !got(0).lost.empty() && !got(1).lost.empty(); }));
  EXPECT_EQ(got(0).lost[0].first, NodeId(3));
  send(0, kTwo, {}, as_bytes("still here"));
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == 3; }));
}

TEST_P(Conformance, HandlersMaySendConnectAndDisconnect) {
  start(2);
  got(1).also = [&](NodeId from, auto, std::span<const std::byte> payload) {
    if (payload.size() == 1) {
      EXPECT_TRUE(node(1).send(from, Service::kTest, {}, as_bytes("reply")).has_value());
    } else {
      node(1).disconnect(from);
      EXPECT_TRUE(node(1).connect(from, node(0).local_address()).has_value());
      EXPECT_TRUE(node(1).send(from, Service::kTest, {}, as_bytes("again")).has_value());
    }
  };
  send(0, kTwo, {}, as_bytes("x"));
  ASSERT_TRUE(cluster_->until([&] { return got(0).messages.size() == 1; }));
  send(0, kTwo, {}, as_bytes("bye"));
  ASSERT_TRUE(cluster_->until([&] { return !got(0).lost.empty(); }));
  ASSERT_TRUE(node(0).connect(kTwo, node(1).local_address()).has_value());
  ASSERT_TRUE(cluster_->until([&] { return got(0).messages.size() == 2; }));
  EXPECT_EQ(std::memcmp(got(0).messages[1].payload.data(), "again", 5), 0);
}

TEST_P(Conformance, AStoppedTransportReturnsEveryBufferAlsoOfAFullQueue) {
  Options options;
  options.peer_queue_bytes_max = 8 << 20;
  start(2, true, options);
  while (node(0).send(kTwo, Service::kTest, {}, pattern(500'000, 1))) {
  }
  cluster_->stop(0);  // must not hang, nor leak (the dev preset checks)
  ASSERT_TRUE(cluster_->until([&] { return !got(1).lost.empty() || !got(1).messages.empty(); }));
}

TEST_P(Conformance, AnIdleTransportMakesNoWakeUps) {
  start(2);
  send(0, kTwo, {}, pattern(100'000, 1));
  send(1, kOne, {}, pattern(100'000, 1));
  ASSERT_TRUE(cluster_->until([&] { return got(0).messages.size() == 1 && got(1).messages.size() == 1; }));
  auto loop = EventLoop::create();
  ASSERT_TRUE(loop.has_value());
  ASSERT_TRUE((*loop)->add_poller(&node(0)).has_value());
  ASSERT_TRUE((*loop)->add_poller(&node(1)).has_value());
  const Nanos end = now_ns() + 1500 * kMillisecond;
  int turns = 0;
  for (; now_ns() < end; ++turns) {
    (*loop)->turn(end - now_ns());
  }
  // What UCX does once a second (keepalive) and a few turns to calm down; a busy loop would make 100,000s.
  EXPECT_LE(turns, 30);
  (*loop)->remove_poller(&node(0));
  (*loop)->remove_poller(&node(1));
}

TEST_P(Conformance, ASleepingLoopIsWokenByAMessage) {
  start(2);
  auto loop = EventLoop::create();
  ASSERT_TRUE(loop.has_value());
  ASSERT_TRUE((*loop)->add_poller(&node(1)).has_value());
  for (size_t i = 1; i <= 200; ++i) {
    while ((*loop)->turn(0) > 0) {
    }
    send(0, kTwo, {}, pattern(i * 100, i));
    if (GetParam().via == "sim") {
      cluster_->step();
    }
    const Nanos end = now_ns() + 5 * kSecond * cluster_->patience();
    while (got(1).messages.size() < i && now_ns() < end) {
      node(0).progress();
      (*loop)->turn(100 * kMillisecond);
    }
    ASSERT_EQ(got(1).messages.size(), i);
  }
  (*loop)->remove_poller(&node(1));
}

INSTANTIATE_TEST_SUITE_P(Backends, Conformance, ::testing::ValuesIn(backends()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kevre::transport::testing
