// ReadAhead: finds sequential readers from their faults and says what to ask for. Decides nothing about
// coherence.
//
// Windows grow 1, 2, 4 .. 64 pages and do not cross a multiple of 64 (so that one window has one home). From
// 4 pages on windows ahead are asked for as well; the first page of each is not mapped when it arrives
// (Pager::install), so the reader's arrival there is seen as a cheap local fault, and more is asked for. A
// reader that does little with a page goes through a window in microseconds, while its way here takes a
// hundred: only several windows under way keep the wire busy. Their number grows by one with each arrival, up
// to kDepth. Threads: one owner. Allocates nothing. Tested in tests/dsm/read_ahead_test.cc.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "dsm/pager.h"

namespace kevre::dsm {

class ReadAhead {
 public:
  static constexpr uint32_t kDepth = 6;
  struct Window {
    uint64_t page = 0;
    uint32_t pages = 0;
  };
  struct Ask {
    uint32_t ahead = 0;  // pages behind the faulting one, in the same request
    uint32_t count = 0;  // further requests
    std::array<Window, kDepth> then;
  };
  explicit ReadAhead(uint32_t ahead_max) : window_max_(std::min<uint32_t>(ahead_max, 63) + 1) {}

  // A read fault; `pages`: length of the segment.
  Ask on_read(MmId mm, SegmentId segment, uint64_t page, uint64_t pages) {
    ++clock_;
    for (Stream& s : streams_) {
      const bool near = page <= s.next && page + (kDepth + 1) * kWindow >= s.next;
      if (s.window == 0 || s.mm != mm || s.segment != segment || !near || page < s.start) {
        continue;
      }
      s.used = clock_;
      if (page == s.next) {
        return behind(s, page, pages);
      }
      Ask ask;
      if (page >= s.mark && s.mark != kNone) {
        s.depth = std::min(s.depth + 1, kDepth);
        further(s, page, pages, &ask);
      }
      if (page + 1 < s.next && page != s.start) {  // a page of a window that its home did not send
        ask.ahead =
            std::min<uint32_t>(static_cast<uint32_t>(s.next - page) - 1, fit(page, s.window, pages) - 1);
      }
      return ask;
    }
    Stream& oldest = *std::min_element(streams_.begin(), streams_.end(),
                                       [](const Stream& a, const Stream& b) { return a.used < b.used; });
    oldest = Stream{mm, segment, page, page + 1, kNone, 1, 1, clock_};
    return {};
  }

 private:
  static constexpr uint64_t kNone = ~uint64_t{0};
  static constexpr uint64_t kWindow = 64;
  struct Stream {
    MmId mm;
    SegmentId segment;
    uint64_t start = 0;
    uint64_t next = 0;  // first page that was not asked for
    uint64_t mark =
        kNone;            // a fault from here on is the reader's arrival in a window that was asked for ahead
    uint32_t window = 0;  // 0: unused
    uint32_t depth = 1;   // windows ahead
    uint64_t used = 0;
  };

  static uint32_t fit(uint64_t page, uint32_t window, uint64_t pages) {
    const uint64_t to_boundary = kWindow - page % kWindow;
    const uint64_t to_end = page < pages ? pages - page : 1;
    return static_cast<uint32_t>(std::min({uint64_t{window}, to_boundary, to_end}));
  }
  void grow(Stream& s) const { s.window = std::min(s.window * 2, window_max_); }
  Ask behind(Stream& s, uint64_t page, uint64_t pages) const {
    Ask ask;
    grow(s);
    const uint32_t now = fit(page, s.window, pages);
    ask.ahead = now - 1;
    s.next = page + now;
    s.mark = kNone;
    if (s.window >= 4) {
      further(s, s.next - 1, pages, &ask);
    }
    return ask;
  }
  void further(Stream& s, uint64_t page, uint64_t pages, Ask* ask) const {
    grow(s);
    s.mark = page + 1;
    while (s.next < pages && s.next <= page + s.depth * uint64_t{s.window} && ask->count < kDepth) {
      Window& window = ask->then[ask->count++];
      window = {s.next, fit(s.next, s.window, pages)};
      s.next += window.pages;
    }
  }

  uint32_t window_max_;
  uint64_t clock_ = 0;
  std::array<Stream, 32> streams_{};
};

}  // namespace kevre::dsm
