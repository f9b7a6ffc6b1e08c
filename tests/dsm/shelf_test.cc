#include "dsm/shelf.h"

#include <gtest/gtest.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "base/random.h"
#include "dsm/fetcher.h"

namespace kevre::dsm {
namespace {

constexpr SegmentId kSegment{uint64_t{1} << 32 | 5};

std::vector<std::byte> page_of(uint64_t value) {
  std::vector<std::byte> bytes(kPageBytes);
  for (size_t at = 0; at < bytes.size(); at += sizeof value) {
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }
  return bytes;
}

class ShelfTest : public ::testing::Test {
 protected:
  std::span<std::byte> slot(uint64_t page, SegmentId segment = kSegment) {
    return shelf_->memory().subspan(Shelf::offset_of(segment, page, shelf_->groups()), Shelf::kSlotBytes);
  }
  bool readable(uint64_t page, SegmentId segment = kSegment) {
    return !Shelf::decode(segment, page, slot(page, segment)).empty();
  }
  std::unique_ptr<Shelf> shelf_ = Shelf::create(4 * Shelf::kGroupBytes).value();
};

TEST_F(ShelfTest, AnOpenPageIsReadAndAClosedOneIsNot) {
  const auto bytes = page_of(7);
  EXPECT_FALSE(readable(3));
  shelf_->open(kSegment, 3, bytes);
  EXPECT_TRUE(shelf_->is_open(kSegment, 3));
  const auto got = Shelf::decode(kSegment, 3, slot(3));
  ASSERT_EQ(got.size(), kPageBytes);
  EXPECT_TRUE(std::equal(got.begin(), got.end(), bytes.begin()));
  EXPECT_FALSE(readable(4));
  shelf_->close(kSegment, 3);
  EXPECT_FALSE(readable(3));
  EXPECT_FALSE(shelf_->is_open(kSegment, 3));
}

TEST_F(ShelfTest, AWindowLiesTogetherAndAnotherOneMayEvictIt) {
  EXPECT_EQ(Shelf::offset_of(kSegment, 65, 4), Shelf::offset_of(kSegment, 64, 4) + Shelf::kSlotBytes);
  const uint64_t other = 4 * Shelf::kGroupPages + 3;  // 4 groups: this window lies where that of page 3 does
  ASSERT_EQ(Shelf::offset_of(kSegment, other, 4), Shelf::offset_of(kSegment, 3, 4));
  shelf_->open(kSegment, 3, page_of(1));
  shelf_->open(kSegment, other, page_of(2));
  EXPECT_FALSE(readable(3));
  EXPECT_TRUE(readable(other));
  shelf_->close(kSegment, 3);  // it is not there: nothing happens
  EXPECT_TRUE(readable(other));
}

TEST_F(ShelfTest, ASegmentIsClosedWithAllItsPages) {
  const SegmentId other{uint64_t{1} << 32 | 6};
  for (uint64_t page = 0; page < 100; ++page) {
    shelf_->open(kSegment, page, page_of(page));
  }
  const uint64_t elsewhere = 2 * Shelf::kGroupPages;
  shelf_->open(other, elsewhere, page_of(1));
  shelf_->close_segment(kSegment);
  for (uint64_t page = 0; page < 100; ++page) {
    EXPECT_FALSE(readable(page));
  }
  EXPECT_TRUE(readable(elsewhere, other));
}

TEST_F(ShelfTest, NoByteOfASlotMayDiffer) {
  shelf_->open(kSegment, 9, page_of(1234567));
  const std::span<const std::byte> open = slot(9);
  std::vector<std::byte> got(open.begin(), open.end());
  Random random(1);
  for (int i = 0; i < 20'000; ++i) {
    // The last bytes of the header say nothing.
    const size_t at = i < 40 ? static_cast<size_t>(i) : Shelf::kHeaderBytes + random.below(kPageBytes);
    const std::byte flip{static_cast<unsigned char>(1u << random.below(8))};
    got[at] ^= flip;
    ASSERT_TRUE(Shelf::decode(kSegment, 9, got).empty()) << "byte " << at;
    got[at] ^= flip;
  }
  EXPECT_FALSE(Shelf::decode(kSegment, 9, got).empty());
  EXPECT_TRUE(Shelf::decode(kSegment, 10, got).empty());
  EXPECT_TRUE(Shelf::decode(SegmentId{1}, 9, got).empty());
}

TEST_F(ShelfTest, RandomBytesAndMixturesOfTwoOpeningsAreNoPage) {
  Random random(2);
  std::vector<std::byte> one(Shelf::kSlotBytes), two(Shelf::kSlotBytes), mixed;
  for (int i = 0; i < 2'000; ++i) {
    shelf_->open(kSegment, 9, page_of(random.next()));
    std::copy(slot(9).begin(), slot(9).end(), one.begin());
    shelf_->open(kSegment, 9, page_of(random.next()));
    std::copy(slot(9).begin(), slot(9).end(), two.begin());
    mixed = one;
    const size_t from = 8 * random.between(3, Shelf::kSlotBytes / 8 - 1), to = random.between(from + 8, Shelf::kSlotBytes);
    std::copy(two.begin() + static_cast<std::ptrdiff_t>(from), two.begin() + static_cast<std::ptrdiff_t>(to),
              mixed.begin() + static_cast<std::ptrdiff_t>(from));
    const bool touches = from < 40 || to > Shelf::kHeaderBytes;  // more than the spare bytes of the header
    ASSERT_EQ(Shelf::decode(kSegment, 9, mixed).empty(), touches) << from << " to " << to;
    for (std::byte& byte : mixed) {
      byte = static_cast<std::byte>(random.next());
    }
    ASSERT_TRUE(Shelf::decode(kSegment, 9, mixed).empty());
    ASSERT_TRUE(Shelf::decode(kSegment, 9, std::span(mixed).first(random.below(Shelf::kSlotBytes))).empty());
  }
}

TEST(ShelfMessage, WhatIsSentIsReadAndAnythingElseRefused) {
  ShelfMessage m;
  m.key_bytes = 8;
  m.groups = 4;
  m.key[7] = std::byte{1};
  const auto decoded = [](const ShelfMessage& one, size_t payload = 0) {
    return decode_shelf(std::as_bytes(std::span(&one, 1)), payload).has_value();
  };
  EXPECT_TRUE(decoded(m));
  EXPECT_FALSE(decoded(m, 1));
  EXPECT_FALSE(decode_shelf(std::as_bytes(std::span(&m, 1)).first(79), 0).has_value());
  for (const auto& spoil : std::vector<void (*)(ShelfMessage&)>{
           [](ShelfMessage& one) { one.magic = 1; }, [](ShelfMessage& one) { one.version = 2; },
           [](ShelfMessage& one) { one.key_bytes = 0; }, [](ShelfMessage& one) { one.key_bytes = 65; },
           [](ShelfMessage& one) { one.groups = 0; }, [](ShelfMessage& one) { one.groups = Shelf::kGroupsMax + 1; },
           [](ShelfMessage& one) { one.reserved = 1; }, [](ShelfMessage& one) { one.key[8] = std::byte{1}; }}) {
    ShelfMessage other = m;
    spoil(other);
    EXPECT_FALSE(decoded(other));
  }
}

// The reader is the kernel, which copies as a device does: it takes no part in this program's order.
TEST_F(ShelfTest, AReaderMeanwhileGetsAWholePageThatWasOpenWhenItBegan) {
  constexpr uint64_t kOpenings = 30'000;
  std::atomic<uint64_t> closed{0}, written{0};
  const std::span<std::byte> at = slot(5);
  std::thread writer([&] {
    for (uint64_t i = 1; i <= kOpenings; ++i) {
      shelf_->open(kSegment, 5, page_of(i));
      if (i % 16 == 0) {
        std::this_thread::yield();
      }
      shelf_->close(kSegment, 5);
      closed = i;
    }
    written = 1;
  });
  std::vector<std::byte> got(Shelf::kSlotBytes);
  uint64_t valid = 0, reads = 0, wrong = 0, late = 0;
  bool denied = false;
  while (written == 0 && !denied) {
    const uint64_t before = closed;
    const iovec to{got.data(), got.size()}, from{at.data(), at.size()};
    denied = ::process_vm_readv(::getpid(), &to, 1, &from, 1, 0) != static_cast<ssize_t>(got.size());
    ++reads;
    const auto page = Shelf::decode(kSegment, 5, got);
    if (denied || page.empty()) {
      continue;
    }
    ++valid;
    uint64_t value = 0;
    std::memcpy(&value, page.data(), sizeof value);
    const auto whole = page_of(value);
    wrong += std::equal(page.begin(), page.end(), whole.begin()) ? 0 : 1;
    late += value > before ? 0 : 1;
  }
  writer.join();
  if (denied) {
    GTEST_SKIP() << "kevre: test skipped: process_vm_readv is not permitted here";
  }
  printf("%lu reads, %lu of them got a page\n", reads, valid);
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(late, 0u) << "had been closed before the read began";
  EXPECT_GT(valid, 0u);
  EXPECT_LT(valid, reads);
}

}  // namespace
}  // namespace kevre::dsm
