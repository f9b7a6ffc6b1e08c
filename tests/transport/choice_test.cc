// The choice of a backend for each peer: the address codec and the choosing function without any device, and the transport
// that composes backends over two simulated networks, one of which stands for RDMA.
#include "transport/choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "base/event_loop.h"
#include "tests/transport/backends.h"
#include "transport/sim/sim_network.h"

namespace kevre::transport::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t ip(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return a << 24 | b << 16 | c << 8 | d; }
constexpr NodeId kOne{1};
constexpr NodeId kTwo{2};
constexpr NodeId kThree{3};

NodeAddress with_verbs(uint32_t address, uint8_t prefix, uint64_t place = 1) {
  return {place, VerbsState::kUsable, {{address, prefix}}, {{Kind::kVerbs, pattern(20, 1)}, {Kind::kUcx, pattern(90, 2)}}};
}
NodeAddress without_verbs(VerbsState state) { return {9, state, {}, {{Kind::kUcx, pattern(90, 2)}}}; }
NodeAddress verbs_only(uint32_t address) { return {1, VerbsState::kUsable, {{address, 24}}, {{Kind::kVerbs, pattern(20, 1)}}}; }

// Both ends', which must be the same.
std::optional<Kind> chosen(const NodeAddress& a, const NodeAddress& b) {
  const Choice here = choose(a, b), there = choose(b, a);
  EXPECT_EQ(here.kind, there.kind);
  EXPECT_EQ(here.why.empty(), here.kind == Kind::kVerbs);
  return here.kind;
}

TEST(ChoiceAddress, WhatIsEncodedIsDecodedUnchanged) {
  const NodeAddress address{0x1234'5678'9abc'def0u,
                            VerbsState::kUsable,
                            {{ip(10, 0, 0, 5), 24}, {ip(10, 1, 0, 5), 16}, {0, 0}},
                            {{Kind::kVerbs, pattern(24, 1)}, {Kind::kUcx, pattern(300, 2)}}};
  const auto decoded = decode_address(encode_address(address));
  ASSERT_TRUE(decoded.has_value()) << decoded.error().text;
  EXPECT_EQ(*decoded, address);
}

TEST(ChoiceAddress, EveryTruncationAndEveryExtraByteIsRefused) {
  Address bytes = encode_address(with_verbs(ip(10, 0, 0, 5), 24));
  for (size_t length = 0; length < bytes.size(); ++length) {
    const auto decoded = decode_address(std::span(bytes).first(length));
    ASSERT_FALSE(decoded.has_value()) << length;
    EXPECT_EQ(decoded.error().code, Errc::kCorrupt);
  }
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(decode_address(bytes).has_value());
}

TEST(ChoiceAddress, ANodeThatContradictsItselfIsRefused) {
  NodeAddress address = without_verbs(VerbsState::kUsable);  // and yet no address to reach it by
  EXPECT_FALSE(decode_address(encode_address(address)).has_value());
  address = with_verbs(ip(10, 0, 0, 5), 24);
  address.verbs = VerbsState::kNoDevice;
  EXPECT_FALSE(decode_address(encode_address(address)).has_value());
  address = without_verbs(VerbsState::kNoDevice);
  address.backends.push_back(address.backends[0]);
  EXPECT_FALSE(decode_address(encode_address(address)).has_value()) << "two addresses of one kind";
  address.backends.clear();
  EXPECT_FALSE(decode_address(encode_address(address)).has_value());
  address = with_verbs(ip(10, 0, 0, 5), 33);
  EXPECT_FALSE(decode_address(encode_address(address)).has_value());
}

TEST(Choice, VerbsWhereBothHaveADeviceOnOneSubnet) {
  EXPECT_EQ(chosen(with_verbs(ip(10, 0, 0, 5), 24, 1), with_verbs(ip(10, 0, 0, 6), 24, 2)), Kind::kVerbs);
  EXPECT_EQ(chosen(with_verbs(ip(10, 0, 0, 5), 24, 1), with_verbs(ip(10, 0, 0, 5), 24, 1)), Kind::kVerbs)
      << "two nodes on one machine";
}

TEST(Choice, UcxWhereTheSubnetsDifferAndBothAreNamed) {
  const NodeAddress here = with_verbs(ip(10, 0, 0, 5), 24, 1), there = with_verbs(ip(10, 1, 0, 5), 24, 2);
  EXPECT_EQ(chosen(here, there), Kind::kUcx);
  EXPECT_THAT(choose(here, there).why, HasSubstr("different subnets: 10.0.0.0/24 here, 10.1.0.0/24 there"));
}

TEST(Choice, TheNarrowerPrefixDecides) {
  EXPECT_EQ(chosen(with_verbs(ip(10, 0, 0, 5), 8, 1), with_verbs(ip(10, 1, 0, 5), 24, 2)), Kind::kUcx);
  EXPECT_EQ(chosen(with_verbs(ip(10, 1, 0, 6), 8, 1), with_verbs(ip(10, 1, 0, 5), 24, 2)), Kind::kVerbs);
}

TEST(Choice, EqualAndLoopbackAddressesOfTwoMachinesAreNoSharedSubnet) {
  EXPECT_EQ(chosen(with_verbs(ip(10, 0, 0, 5), 24, 1), with_verbs(ip(10, 0, 0, 5), 24, 2)), Kind::kUcx);
  EXPECT_EQ(chosen(with_verbs(ip(127, 0, 0, 1), 8, 1), with_verbs(ip(127, 0, 0, 2), 8, 2)), Kind::kUcx);
  EXPECT_EQ(chosen(with_verbs(ip(127, 0, 0, 1), 8, 1), with_verbs(ip(127, 0, 0, 1), 8, 1)), Kind::kVerbs);
}

TEST(Choice, OneOfSeveralSubnetsIsEnough) {
  NodeAddress here = with_verbs(ip(10, 0, 0, 5), 24, 1);
  here.subnets.push_back({ip(10, 7, 0, 5), 24});
  EXPECT_EQ(chosen(here, with_verbs(ip(10, 7, 0, 9), 24, 2)), Kind::kVerbs);
}

TEST(Choice, TheReasonNamesTheEndThatLacksTheDevice) {
  const NodeAddress verbs = with_verbs(ip(10, 0, 0, 5), 24);
  const NodeAddress none = without_verbs(VerbsState::kNoDevice);
  EXPECT_EQ(chosen(verbs, none), Kind::kUcx);
  EXPECT_EQ(chosen(none, none), Kind::kUcx);
  EXPECT_THAT(choose(none, verbs).why, HasSubstr("this node has no RDMA device"));
  EXPECT_THAT(choose(verbs, none).why, HasSubstr("the peer has no RDMA device"));
  EXPECT_THAT(choose(verbs, without_verbs(VerbsState::kUnusable)).why, HasSubstr("cannot be used"));
  EXPECT_THAT(choose(verbs, without_verbs(VerbsState::kNotWanted)).why, HasSubstr("--transport ucx at the peer"));
  EXPECT_THAT(choose(without_verbs(VerbsState::kNotWanted), verbs).why, HasSubstr("--transport ucx at this node"));
  EXPECT_EQ(choose(without_verbs(VerbsState::kUnusable), verbs, "rxe0: raise the limit").why, "this node: rxe0: raise the limit");
}

TEST(Choice, AForcedEndIsFollowedOrThereIsNothingInCommon) {
  const NodeAddress forced = verbs_only(ip(10, 0, 0, 5));
  EXPECT_EQ(chosen(forced, with_verbs(ip(10, 0, 0, 6), 24)), Kind::kVerbs);
  EXPECT_EQ(chosen(forced, without_verbs(VerbsState::kNoDevice)), std::nullopt);
  EXPECT_EQ(chosen(forced, with_verbs(ip(10, 1, 0, 6), 24)), std::nullopt);
}

// Nodes over two simulated networks: "verbs" has one-sided operations, "ucx" has not.
class Composed : public ::testing::Test {
 protected:
  struct Node {
    std::unique_ptr<Recorder> recorder = std::make_unique<Recorder>();  // outlives the transport
    std::unique_ptr<Transport> transport;
  };

  void add(uint16_t id, bool verbs, bool ucx) {
    Options options;
    options.self = NodeId(id);
    std::vector<ChoiceTransport::Part> parts;
    NodeAddress facts{1, verbs ? VerbsState::kUsable : VerbsState::kNoDevice, {}, {}};
    if (ucx) {
      parts.push_back({Kind::kUcx, std::move(*ucx_.create(options))});
    }
    if (verbs) {
      facts.subnets = {{ip(10, 0, 0, id), 24}};
      parts.push_back({Kind::kVerbs, std::move(*verbs_.create(options))});
    }
    Node node;
    node.transport = std::move(*ChoiceTransport::create(std::move(parts), facts, ""));
    node.transport->set_handler(Service::kTest, node.recorder.get());
    nodes_[NodeId(id)] = std::move(node);
  }
  void join(NodeId a, NodeId b) {
    ASSERT_TRUE(at(a).connect(b, at(b).local_address()).has_value());
    ASSERT_TRUE(at(b).connect(a, at(a).local_address()).has_value());
  }
  Transport& at(NodeId id) { return *nodes_[id].transport; }
  Recorder& got(NodeId id) { return *nodes_[id].recorder; }
  bool until(const std::function<bool()>& condition) {
    for (int i = 0; i < 10'000 && !condition(); ++i) {
      verbs_.advance();
      ucx_.advance();
      for (auto& [id, node] : nodes_) {
        if (node.transport) {
          node.transport->progress();
        }
      }
    }
    return condition();
  }

  sim::SimNetwork verbs_{sim::SimOptions{.capabilities = {true, true, true, "rc"}}};
  sim::SimNetwork ucx_{sim::SimOptions{.capabilities = {false, false, false, "tcp"}}};
  std::map<NodeId, Node> nodes_;
};

TEST_F(Composed, EachPeerIsServedByTheBestThatBothEndsHave) {
  add(1, true, true);
  add(2, true, true);
  add(3, false, true);
  join(kOne, kTwo);
  join(kOne, kThree);
  join(kTwo, kThree);
  EXPECT_EQ(at(kOne).capabilities(kTwo).backend, "verbs");
  EXPECT_EQ(at(kOne).capabilities(kTwo).via, "rc");
  EXPECT_EQ(at(kOne).capabilities(kTwo).why, "");
  EXPECT_TRUE(at(kOne).capabilities(kTwo).read);
  EXPECT_EQ(at(kOne).capabilities(kThree).backend, "ucx");
  EXPECT_THAT(std::string(at(kOne).capabilities(kThree).why), HasSubstr("the peer has no RDMA device"));
  EXPECT_THAT(std::string(at(kThree).capabilities(kOne).why), HasSubstr("this node has no RDMA device"));
  EXPECT_EQ(at(kOne).name(), "verbs, ucx");
  EXPECT_EQ(at(kThree).name(), "ucx");
  for (const NodeId from : {kOne, kTwo, kThree}) {
    for (const NodeId to : {kOne, kTwo, kThree}) {
      if (from != to) {
        Buffer buffer = at(from).buffer(1000);
        std::memset(buffer.bytes().data(), from.value, buffer.size());
        ASSERT_TRUE(at(from).send(to, Service::kTest, as_bytes("h"), std::move(buffer)).has_value());
        ASSERT_TRUE(at(from).send(to, Service::kTest, as_bytes("h"), as_bytes("span")).has_value());
      }
    }
  }
  ASSERT_TRUE(until([&] {
    return got(kOne).messages.size() == 4 && got(kTwo).messages.size() == 4 && got(kThree).messages.size() == 4;
  }));
  for (const Message& message : got(kThree).messages) {
    EXPECT_TRUE(message.payload.size() == 4 || message.payload[999] == static_cast<std::byte>(message.from.value));
  }
  EXPECT_EQ(at(kOne).counters().messages_sent, 4u);
  EXPECT_EQ(at(kOne).counters().messages_received, 4u);
}

TEST_F(Composed, OneSidedOperationsGoToThePeersBackend) {
  add(1, true, true);
  add(2, true, true);
  add(3, false, true);
  join(kOne, kTwo);
  join(kOne, kThree);
  std::vector<std::byte> memory = pattern(64, 5), copy(64);
  const auto key = at(kTwo).register_region(memory);
  ASSERT_TRUE(key.has_value());
  bool done = false;
  ASSERT_TRUE(at(kOne).read(kTwo, {&*key, 0}, copy, [&](const Result<uint64_t>& value) { done = value.has_value(); }).has_value());
  ASSERT_TRUE(until([&] { return done; }));
  EXPECT_EQ(copy, memory);
  EXPECT_EQ(at(kOne).counters().one_sided_reads, 1u);
  EXPECT_EQ(at(kOne).read(kThree, {&*key, 0}, copy, nullptr).error().code, Errc::kUnsupported);
  EXPECT_EQ(at(kOne).read(NodeId(7), {&*key, 0}, copy, nullptr).error().code, Errc::kPeerLost);
}

TEST_F(Composed, APeerThatIsLostIsReportedOnceWhicheverBackendSeesIt) {
  add(1, true, true);
  add(2, true, true);
  add(3, false, true);
  join(kOne, kTwo);
  join(kOne, kThree);
  verbs_.cut(kOne, kTwo);
  ucx_.cut(kOne, kThree);
  ASSERT_TRUE(until([&] { return got(kOne).lost.size() >= 2 && !got(kTwo).lost.empty() && !got(kThree).lost.empty(); }));
  until([] { return false; });
  EXPECT_EQ(got(kOne).lost.size(), 2u);
  EXPECT_EQ(got(kTwo).lost.size(), 1u);
  EXPECT_EQ(at(kOne).send(kTwo, Service::kTest, {}, as_bytes("x")).error().code, Errc::kPeerLost);
  join(kOne, kTwo);
  ASSERT_TRUE(at(kOne).send(kTwo, Service::kTest, {}, as_bytes("x")).has_value());
  EXPECT_TRUE(until([&] { return got(kTwo).messages.size() == 1; }));
}

TEST_F(Composed, APeerThatComesBackWithOtherDevicesIsReachedByTheOtherBackend) {
  add(1, true, true);
  add(2, true, true);
  join(kOne, kTwo);
  nodes_[kTwo].transport.reset();
  add(2, false, true);
  join(kOne, kTwo);
  EXPECT_EQ(at(kOne).capabilities(kTwo).backend, "ucx");
  ASSERT_TRUE(at(kOne).send(kTwo, Service::kTest, {}, as_bytes("x")).has_value());
  EXPECT_TRUE(until([&] { return got(kTwo).messages.size() == 1; }));
  EXPECT_EQ(at(kOne).connect(kTwo, at(kTwo).local_address()).error().code, Errc::kExists);
}

TEST_F(Composed, NothingInCommonIsSaidWithItsRemedyBeforeAndAtConnecting) {
  add(1, true, false);  // --transport verbs
  add(2, false, true);
  const auto asked = at(kTwo).can_reach(at(kOne).local_address());
  ASSERT_FALSE(asked.has_value());
  EXPECT_EQ(asked.error().code, Errc::kUnsupported);
  EXPECT_THAT(asked.error().text, HasSubstr("this node has no RDMA device"));
  EXPECT_THAT(asked.error().text, HasSubstr("--transport auto"));
  const auto connected = at(kOne).connect(kTwo, at(kTwo).local_address());
  ASSERT_FALSE(connected.has_value());
  EXPECT_THAT(connected.error().text, HasSubstr("this node takes verbs only, and the peer has no RDMA device"));
  EXPECT_EQ(at(kOne).capabilities(kTwo).backend, "");
}

TEST_F(Composed, ASleepingLoopIsWokenByEitherBackend) {
  add(1, true, true);
  add(2, true, true);
  add(3, false, true);
  join(kOne, kTwo);
  join(kOne, kThree);
  auto loop = EventLoop::create();
  ASSERT_TRUE(loop.has_value());
  ASSERT_TRUE((*loop)->add_poller(&at(kOne)).has_value());
  for (const NodeId from : {kTwo, kThree, kTwo, kThree}) {
    while ((*loop)->turn(0) > 0) {
    }
    const size_t before = got(kOne).messages.size();
    ASSERT_TRUE(at(from).send(kOne, Service::kTest, {}, as_bytes("wake up")).has_value());
    while (verbs_.advance() || ucx_.advance()) {
    }
    const Nanos start = now_ns();
    while (got(kOne).messages.size() == before && now_ns() < start + 5 * kSecond) {
      (*loop)->turn(10 * kSecond);  // without the wake-up it would sleep past the deadline
    }
    EXPECT_EQ(got(kOne).messages.size(), before + 1);
    EXPECT_LT(now_ns() - start, 5 * kSecond);
  }
  (*loop)->remove_poller(&at(kOne));
}

}  // namespace
}  // namespace kevre::transport::testing
