// Credits and reassembly of the verbs backend, which need no device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>

#include "base/random.h"
#include "tests/transport/backends.h"
#include "transport/verbs/flow.h"

namespace kevre::transport::verbs {
namespace {

using testing::pattern;

constexpr uint64_t kTag = 0x1234;
constexpr NodeId kSender{1};
constexpr NodeId kSelf{2};

std::vector<std::byte> message(size_t header_bytes, size_t payload_bytes, uint64_t seed,
                               uint64_t tag = kTag) {
  WireHeader wire;
  wire.from = kSender;
  wire.to = kSelf;
  wire.tag = tag;
  wire.from_link = 7;
  wire.header_bytes = static_cast<uint16_t>(header_bytes);
  wire.payload_bytes = static_cast<uint32_t>(payload_bytes);
  std::vector<std::byte> bytes(kWireHeaderBytes);
  encode_wire_header(wire, bytes.data());
  const auto body = pattern(header_bytes + payload_bytes, seed);
  bytes.insert(bytes.end(), body.begin(), body.end());
  return bytes;
}

std::vector<std::span<const std::byte>> chunks_of(std::span<const std::byte> bytes) {
  std::vector<std::span<const std::byte>> chunks;
  for (size_t at = 0; at < bytes.size(); at += kChunkBytes) {
    chunks.push_back(bytes.subspan(at, std::min(kChunkBytes, bytes.size() - at)));
  }
  return chunks;
}

TEST(VerbsFlow, ChunksOfEverySizeBecomeTheirMessagesAgain) {
  BufferPool pool;
  Assembly assembly(&pool, kTag, kSelf);
  for (const size_t header : {size_t{0}, size_t{1}, kHeaderBytesMax}) {
    for (const size_t payload : {size_t{0}, size_t{1}, kChunkBytes - kWireHeaderBytes - 1,
                                 kChunkBytes - kWireHeaderBytes, kChunkBytes - kWireHeaderBytes + 1,
                                 2 * kChunkBytes - kWireHeaderBytes, size_t{100'000}, size_t{1'000'003}}) {
      const auto bytes = message(header, payload, payload + header);
      const auto chunks = chunks_of(bytes);
      for (size_t i = 0; i < chunks.size(); ++i) {
        ASSERT_EQ(assembly.add(chunks[i]),
                  i + 1 == chunks.size() ? Assembly::Step::kMessage : Assembly::Step::kMore);
      }
      EXPECT_EQ(assembly.header().payload_bytes, payload);
      const auto body = std::span<const std::byte>(bytes).subspan(kWireHeaderBytes);
      EXPECT_TRUE(std::ranges::equal(assembly.service_header(), body.first(header)));
      EXPECT_TRUE(std::ranges::equal(assembly.payload(), body.subspan(header)));
    }
  }
}

TEST(VerbsFlow, AChunkOfTheWrongLengthIsBadAtEveryPlaceOfAMessage) {
  const auto bytes = message(16, 3 * kChunkBytes, 1);
  const auto chunks = chunks_of(bytes);
  for (size_t wrong = 0; wrong < chunks.size(); ++wrong) {
    for (const size_t length : {size_t{0}, size_t{1}, chunks[wrong].size() - 1}) {
      BufferPool pool;
      Assembly assembly(&pool, kTag, kSelf);
      for (size_t i = 0; i < wrong; ++i) {
        ASSERT_EQ(assembly.add(chunks[i]), Assembly::Step::kMore);
      }
      EXPECT_EQ(assembly.add(chunks[wrong].first(length)), Assembly::Step::kBad) << wrong << " " << length;
    }
  }
  BufferPool pool;
  Assembly assembly(&pool, kTag, kSelf);
  auto longer = message(0, 100, 1);
  longer.push_back(std::byte{0});
  EXPECT_EQ(assembly.add(longer), Assembly::Step::kBad);
}

TEST(VerbsFlow, AStrangerCannotMakeUsKeepMemory) {
  BufferPool pool;
  Assembly assembly(&pool, kTag, kSelf);
  const auto bytes = message(0, kPayloadBytesMax, 1, kTag + 1);
  EXPECT_EQ(assembly.add(std::span(bytes).first(kChunkBytes)), Assembly::Step::kBad);
  EXPECT_EQ(pool.allocations(), 0u);
}

TEST(VerbsFlow, NoiseNeverCrashesAndIsNeverAMessage) {
  Random random(5);
  BufferPool pool;
  for (int i = 0; i < 20'000; ++i) {
    Assembly assembly(&pool, kTag, kSelf);
    auto bytes = message(random.below(kHeaderBytesMax + 1), random.below(3 * kChunkBytes), 1);
    const size_t bit = random.below(kWireHeaderBytes * 8);
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    for (const auto chunk : chunks_of(bytes)) {
      if (assembly.add(chunk) == Assembly::Step::kBad) {
        break;
      }
    }
    auto noise = pattern(random.below(200), random.next());
    Assembly other(&pool, kTag, kSelf);
    EXPECT_EQ(other.add(noise), Assembly::Step::kBad);
  }
}

// Random turns of both ends: nothing is lost, the window is never exceeded and never stands still.
TEST(VerbsFlow, CreditsNeverRunDryNorOver) {
  for (const uint32_t size : {1u, 2u, 3u, 4u, 5u, 32u, 1024u}) {
    Random random(size);
    SendWindow sender;
    sender.open(size);
    ReceiveWindow receiver(size);
    std::deque<uint32_t> credits;
    uint64_t on_the_way = 0, unfreed = 0, arrived = 0;
    size_t credits_max = 0;
    for (uint64_t sent = 0; arrived < 100'000;) {
      switch (random.below(4)) {
        case 0:
          if (sender.may_send()) {
            sender.count_sent();
            ++sent;
            ++on_the_way;
          }
          break;
        case 1:
          if (on_the_way > 0) {
            --on_the_way;
            ++arrived;
            ++unfreed;
            ASSERT_TRUE(receiver.count_arrived());
          }
          break;
        case 2:
          if (unfreed > 0) {
            --unfreed;
            receiver.count_freed();
            if (const auto total = receiver.to_tell()) {
              credits.push_back(*total);
            }
          }
          break;
        default:
          if (!credits.empty()) {
            ASSERT_TRUE(sender.freed(credits.front()));
            credits.pop_front();
          }
          break;
      }
      ASSERT_LE(on_the_way + unfreed, size);
      credits_max = std::max(credits_max, credits.size());
      ASSERT_TRUE(sender.may_send() || on_the_way + unfreed > 0 || !credits.empty()) << "stands still";
    }
    EXPECT_LE(credits_max, 3u) << "more credit messages than the sender has room for";
  }
}

TEST(VerbsFlow, ASenderThatTakesMoreThanItWasGivenIsSeen) {
  ReceiveWindow receiver(4);
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(receiver.count_arrived());
  }
  EXPECT_FALSE(receiver.count_arrived());
}

TEST(VerbsFlow, CreditsForWhatWasNeverSentAreSeen) {
  SendWindow sender;
  sender.open(4);
  sender.count_sent();
  EXPECT_FALSE(sender.freed(2));
  EXPECT_TRUE(sender.freed(1));
  EXPECT_FALSE(sender.freed(0)) << "goes backwards";
  EXPECT_TRUE(sender.freed(1)) << "nothing new";
}

}  // namespace
}  // namespace kevre::transport::verbs
