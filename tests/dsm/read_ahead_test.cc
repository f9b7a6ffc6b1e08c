#include "dsm/read_ahead.h"

#include <gtest/gtest.h>

#include <set>

namespace kevre::dsm {
namespace {

constexpr MmId kMm{1};
constexpr SegmentId kSegment{1};

// A reader that goes through `pages` pages and faults on what nobody asked for and on the first page of each
// window that was asked for ahead of it. Returns the requests made.
int read_through(ReadAhead* read_ahead, uint64_t pages) {
  std::set<uint64_t> asked, marks;
  int requests = 0;
  for (uint64_t page = 0; page < pages; ++page) {
    if (asked.contains(page) && !marks.contains(page)) {
      continue;
    }
    const ReadAhead::Ask ask = read_ahead->on_read(kMm, kSegment, page, pages);
    if (!asked.contains(page)) {
      ++requests;
      for (uint64_t i = page; i <= page + ask.ahead; ++i) {
        EXPECT_TRUE(asked.insert(i).second || i == page) << "asked twice for page " << i;
      }
    }
    if (ask.then_pages > 0) {
      ++requests;
      marks.insert(ask.then);
      for (uint64_t i = ask.then; i < ask.then + ask.then_pages; ++i) {
        EXPECT_TRUE(asked.insert(i).second) << "asked twice for page " << i;
        EXPECT_LT(i, pages);
      }
      EXPECT_EQ(ask.then / 64, (ask.then + ask.then_pages - 1) / 64) << "a window over a boundary";
    }
  }
  EXPECT_EQ(asked.size(), pages);
  return requests;
}

TEST(ReadAhead, ASequentialReaderNeedsAboutOneRequestFor64Pages) {
  ReadAhead read_ahead(63);
  EXPECT_LE(read_through(&read_ahead, 64 * 100 + 17), 112);
}

TEST(ReadAhead, AWindowLimitIsKept) {
  ReadAhead one(0);
  EXPECT_EQ(read_through(&one, 100), 100);
}

TEST(ReadAhead, ScatteredReadsAskForNothingMore) {
  ReadAhead read_ahead(63);
  for (uint64_t i = 0; i < 1000; ++i) {
    const ReadAhead::Ask ask = read_ahead.on_read(kMm, kSegment, (i * 7919) % 100'000, 100'000);
    EXPECT_EQ(ask.ahead, 0u);
    EXPECT_EQ(ask.then_pages, 0u);
  }
}

TEST(ReadAhead, TwoReadersAtOnceAreToldApart) {
  ReadAhead read_ahead(63);
  uint32_t most = 0;
  uint64_t a = 0, b = 50'000;
  for (int i = 0; i < 10; ++i) {
    const ReadAhead::Ask first = read_ahead.on_read(kMm, kSegment, a, 100'000);
    const ReadAhead::Ask second = read_ahead.on_read(MmId(2), kSegment, b, 100'000);
    a = first.then_pages > 0 ? first.then : a + first.ahead + 1;
    b = second.then_pages > 0 ? second.then : b + second.ahead + 1;
    most = std::max(most, std::min(first.then_pages, second.then_pages));
  }
  EXPECT_GE(most, 32u);
}

}  // namespace
}  // namespace kevre::dsm
