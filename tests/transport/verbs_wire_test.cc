// Addresses, private data and region keys of the verbs backend survive the way there and back, and damaged
// ones are refused.
#include "transport/verbs/verbs_wire.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace kevre::transport::verbs {
namespace {

TEST(VerbsWire, AnAddressComesBackAsItWentAndNoDamagedOneDoes) {
  const Endpoint endpoint{NodeId(7), 4711, {0x0a010203, 16}};
  const Address address = encode_address(endpoint);
  const auto back = decode_address(address);
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->node, endpoint.node);
  EXPECT_EQ(back->port, endpoint.port);
  EXPECT_EQ(back->subnet, endpoint.subnet);
  for (size_t bit = 0; bit < address.size() * 8; ++bit) {
    Address damaged = address;
    damaged[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_EQ(decode_address(damaged).error().code, Errc::kCorrupt) << bit;
  }
  for (size_t size = 0; size < address.size(); ++size) {
    EXPECT_FALSE(decode_address(std::span(address).first(size)).has_value());
  }
}

TEST(VerbsWire, AHelloSurvivesPaddingAndAShortOrSenselessOneIsRefused) {
  const Hello hello{NodeId(3), NodeId(4), 0x1122334455667788u, 99};
  const auto bytes = encode_hello(hello);
  std::vector<std::byte> padded(bytes.begin(), bytes.end());
  padded.resize(56);
  const auto back = decode_hello(padded);
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->from, hello.from);
  EXPECT_EQ(back->to, hello.to);
  EXPECT_EQ(back->tag, hello.tag);
  EXPECT_EQ(back->from_link, hello.from_link);
  EXPECT_FALSE(decode_hello(std::span(bytes).first(kHelloBytes - 1)));
  EXPECT_FALSE(decode_hello({}));
  EXPECT_FALSE(decode_hello(encode_hello({NodeId(0), NodeId(4), 1, 1})));
  EXPECT_FALSE(decode_hello(encode_hello({NodeId(4), NodeId(4), 1, 1})));
  EXPECT_FALSE(decode_hello(encode_hello({NodeId(3), NodeId(4), 1, 0})));
}

TEST(VerbsWire, AWelcomeIsBounded) {
  const auto back = decode_welcome(encode_welcome({32, 16384}));
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->window, 32);
  EXPECT_EQ(back->chunk_bytes, 16384u);
  EXPECT_FALSE(decode_welcome(encode_welcome({0, 16384})));
  EXPECT_FALSE(decode_welcome(encode_welcome({kWindowMax + 1, 16384})));
  EXPECT_FALSE(decode_welcome({}));
}

TEST(VerbsWire, ARegionKeyGivesAccessWithinItsBoundsOnly) {
  const auto region = decode_region(encode_region({0x10000, 4096, 77, NodeId(2)}));
  ASSERT_TRUE(region.has_value());
  EXPECT_EQ(region->rkey, 77u);
  EXPECT_EQ(region->owner, NodeId(2));
  EXPECT_EQ(within(*region, 0, 4096), 0x10000u);
  EXPECT_EQ(within(*region, 4096, 0), 0x11000u);
  EXPECT_EQ(within(*region, 4089, 8), std::nullopt);
  EXPECT_EQ(within(*region, 4097, 0), std::nullopt);
  EXPECT_EQ(within(*region, ~uint64_t{0}, 2), std::nullopt);
  EXPECT_FALSE(decode_region(RegionKey{}));
  EXPECT_FALSE(decode_region(encode_region({~uint64_t{0} - 10, 4096, 77, NodeId(2)}))) << "wraps around";
}

TEST(VerbsWire, NoiseIsNeverTakenForAnything) {
  Random random(4);
  for (int i = 0; i < 100'000; ++i) {
    std::array<std::byte, 64> noise;
    for (std::byte& byte : noise) {
      byte = static_cast<std::byte>(random.next());
    }
    const size_t size = random.below(noise.size() + 1);
    const auto bytes = std::span(noise).first(size);
    EXPECT_FALSE(decode_address(bytes).has_value());
    EXPECT_FALSE(decode_hello(bytes));
    EXPECT_FALSE(decode_welcome(bytes));
    RegionKey key;
    key.bytes = noise;
    key.size = static_cast<uint16_t>(random.next());
    EXPECT_FALSE(decode_region(key));
  }
}

}  // namespace
}  // namespace kevre::transport::verbs
