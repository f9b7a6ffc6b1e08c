#include "cluster/handshake.h"

#include <gtest/gtest.h>

#include "cluster/messages.h"

namespace kevre::cluster {
namespace {

Bytes bytes_of(std::string_view text) {
  const auto raw = std::as_bytes(std::span(text));
  return Bytes(raw.begin(), raw.end());
}

struct Pair {
  Key key = generate_key();
  Handshake client{Role::kClient, key, random_challenge()};
  Handshake server{Role::kServer, key, random_challenge()};
  void open() {
    ASSERT_TRUE(server.feed(client.prelude()));
    ASSERT_TRUE(client.feed(server.prelude()));
  }
};

TEST(Handshake, FramesOfBothSidesArriveWhole) {
  Pair p;
  p.open();
  const Bytes frame = p.client.seal(FrameType::kHello, bytes_of("hello"));
  for (const std::byte b : frame) {  // byte by byte
    ASSERT_TRUE(p.server.feed(std::span(&b, 1)));
  }
  const auto got = p.server.next();
  ASSERT_TRUE(got && got->has_value());
  EXPECT_EQ((*got)->type, FrameType::kHello);
  EXPECT_EQ((*got)->body, bytes_of("hello"));
  EXPECT_TRUE(p.server.proven());
  ASSERT_TRUE(p.client.feed(p.server.seal(FrameType::kWelcome, {})));
  EXPECT_TRUE(p.client.next()->has_value());
}

TEST(Handshake, AnotherKeyIsDeniedOnBothSides) {
  Pair p;
  Handshake stranger(Role::kClient, generate_key(), random_challenge());
  ASSERT_TRUE(p.server.feed(stranger.prelude()));
  ASSERT_TRUE(stranger.feed(p.server.prelude()));
  ASSERT_TRUE(p.server.feed(stranger.seal(FrameType::kHello, bytes_of("x"))));
  EXPECT_EQ(p.server.next().error().code, Errc::kDenied);
  EXPECT_FALSE(p.server.proven());
  ASSERT_TRUE(stranger.feed(denied_frame()));
  const auto answer = stranger.next();
  EXPECT_EQ(answer.error().code, Errc::kDenied);
  EXPECT_NE(answer.error().text.find("key"), std::string::npos);
}

TEST(Handshake, AChangedByteAnywhereInAFrameIsRefused) {
  Pair base;
  base.open();
  const Bytes frame = base.client.seal(FrameType::kHello, bytes_of("content"));
  for (size_t i = 4; i < frame.size(); ++i) {
    Handshake server = base.server;
    Bytes changed = frame;
    changed[i] ^= std::byte{1};
    ASSERT_TRUE(server.feed(changed));
    EXPECT_FALSE(server.next()) << "byte " << i;
  }
}

TEST(Handshake, AProofCannotBeReplayedReflectedOrRepeated) {
  Pair p;
  p.open();
  const Bytes frame = p.client.seal(FrameType::kHello, bytes_of("x"));
  {  // replayed to the same server on another connection
    Handshake server(Role::kServer, p.key, random_challenge());
    ASSERT_TRUE(server.feed(p.client.prelude()));
    ASSERT_TRUE(server.feed(frame));
    EXPECT_EQ(server.next().error().code, Errc::kDenied);
  }
  {  // reflected to its sender
    ASSERT_TRUE(p.client.feed(frame));
    EXPECT_EQ(p.client.next().error().code, Errc::kDenied);
  }
  {  // repeated on the same connection
    ASSERT_TRUE(p.server.feed(frame));
    ASSERT_TRUE(p.server.next()->has_value());
    ASSERT_TRUE(p.server.feed(frame));
    EXPECT_EQ(p.server.next().error().code, Errc::kDenied);
  }
}

TEST(Handshake, ThePreludeSentBackIsRefused) {
  Pair p;
  EXPECT_EQ(p.client.feed(p.client.prelude()).error().code, Errc::kCorrupt);
}

TEST(Handshake, GarbageIsRefusedAtItsFirstByte) {
  Pair p;
  EXPECT_EQ(p.server.feed(bytes_of("GET / HTTP/1.1\r\n")).error().code, Errc::kCorrupt);
  Handshake other(Role::kServer, p.key, random_challenge());
  EXPECT_EQ(other.feed(bytes_of("X")).error().code, Errc::kCorrupt);
}

TEST(Handshake, AnotherVersionIsNamed) {
  Pair p;
  Bytes prelude = p.client.prelude();
  prelude[8] = std::byte{99};
  const auto fed = p.server.feed(prelude);
  EXPECT_EQ(fed.error().code, Errc::kUnsupported);
  EXPECT_NE(fed.error().text.find("99"), std::string::npos);
}

TEST(Handshake, AnUnprovenPeerCannotMakeTheServerKeepMuch) {
  Pair p;
  p.open();
  ASSERT_TRUE(p.server.feed(Writer().number(uint32_t{1} << 30).take()));
  EXPECT_EQ(p.server.next().error().code, Errc::kCorrupt);
}

TEST(Handshake, BodiesComeBackAndNothingShorterOrLongerDoes) {
  const Hello hello{"n2", "10.0.0.2:7711", "ucx", 5, 9};
  Bytes bytes = encode(hello);
  const auto back = decode_hello(bytes);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->name, "n2");
  EXPECT_EQ(back->pid_last, 9u);
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(decode_hello(std::span(bytes).first(n)));
  }
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(decode_hello(bytes));
  EXPECT_FALSE(decode_hello(encode(Hello{"../n2", "", "", 0, 0})));
  EXPECT_EQ(decode_probe_reply(encode(ProbeReply{NodeId(3), ViewId(4), true}))->view, ViewId(4));
  EXPECT_EQ(decode_refusal(encode(Refusal{Errc::kExists, "why"}))->text, "why");
  EXPECT_EQ(decode_welcome(encode(Welcome{NodeId(2), "n2"}))->id, NodeId(2));
}

TEST(Messages, ComeBackAndNothingShorterDoes) {
  Message m;
  m.type = MessageType::kPromise;
  m.view_id = ViewId(7);
  m.ballot = {3, NodeId(2)};
  m.suspicions = {{NodeId(1), Evidence::kDead}};
  m.has_view = true;
  m.view_ballot = {1, NodeId(1)};
  m.view.id = ViewId(7);
  m.view.newest = NodeId(4);
  m.view.members.push_back({NodeId(2), "n2", "10.0.0.2:1", {std::byte{1}}, 100, 200});
  m.view.lost = {NodeId(1)};
  m.view.left = {NodeId(3)};
  const Bytes bytes = encode(m);
  const auto back = decode_message(bytes);
  ASSERT_TRUE(back) << back.error().text;
  EXPECT_EQ(encode(*back), bytes);
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(decode_message(std::span(bytes).first(n)));
  }
}

TEST(Messages, AViewWithAMemberTwiceIsRefused) {
  View view;
  view.id = ViewId(1);
  view.newest = NodeId(1);
  view.members = {{NodeId(1), "a", "", {}, 0, 0}, {NodeId(1), "b", "", {}, 0, 0}};
  EXPECT_FALSE(decode_view(encode(view)));
}

TEST(Endpoint, IsReadAndWritten) {
  EXPECT_EQ(to_text(*parse_endpoint("10.77.0.1:7711")), "10.77.0.1:7711");
  for (const char* bad :
       {"", "10.0.0.1", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:70000", "host:1", ":1", "10.0.0.1:1x"}) {
    EXPECT_FALSE(parse_endpoint(bad)) << bad;
  }
}

}  // namespace
}  // namespace kevre::cluster
