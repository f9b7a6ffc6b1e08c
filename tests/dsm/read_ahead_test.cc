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
    for (uint32_t k = 0; k < ask.count; ++k) {
      const ReadAhead::Window window = ask.then[k];
      ++requests;
      marks.insert(window.page);
      for (uint64_t i = window.page; i < window.page + window.pages; ++i) {
        EXPECT_TRUE(asked.insert(i).second) << "asked twice for page " << i;
        EXPECT_LT(i, pages);
      }
      EXPECT_EQ(window.page / 64, (window.page + window.pages - 1) / 64) << "a window over a boundary";
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
    EXPECT_EQ(ask.count, 0u);
  }
}

TEST(ReadAhead, TwoReadersAtOnceAreToldApart) {
  ReadAhead read_ahead(63);
  uint32_t most = 0;
  uint64_t a = 0, b = 50'000;
  for (int i = 0; i < 10; ++i) {
    const ReadAhead::Ask first = read_ahead.on_read(kMm, kSegment, a, 100'000);
    const ReadAhead::Ask second = read_ahead.on_read(MmId(2), kSegment, b, 100'000);
    a = first.count > 0 ? first.then[0].page : a + first.ahead + 1;
    b = second.count > 0 ? second.then[0].page : b + second.ahead + 1;
    most = std::max(most, std::min(first.then[0].pages, second.then[0].pages));
  }
  EXPECT_GE(most, 32u);
}

TEST(ReadAhead, AReaderThatGoesOnHasSeveralWindowsUnderWay) {
  ReadAhead read_ahead(63);
  uint64_t reader = 0, asked = 1;
  std::set<uint64_t> marks;
  for (uint64_t page = 0; page < 4096; ++page) {
    if (page < asked && page != 0 && !marks.contains(page)) {
      continue;
    }
    const ReadAhead::Ask ask = read_ahead.on_read(kMm, kSegment, page, 100'000);
    reader = page;
    asked = std::max(asked, page + ask.ahead + 1);
    for (uint32_t k = 0; k < ask.count; ++k) {
      marks.insert(ask.then[k].page);
      asked = ask.then[k].page + ask.then[k].pages;
    }
  }
  EXPECT_GE(asked - reader, (ReadAhead::kDepth - 1) * 64);
  EXPECT_LE(asked - reader, (ReadAhead::kDepth + 1) * 64);
}

}  // namespace
}  // namespace kevre::dsm
