// ReadAhead: finds sequential readers from their faults and says what to ask for. Decides nothing about
// coherence.
//
// Windows grow 1, 2, 4 .. 64 pages and do not cross a multiple of 64 (so that one window has one home). From
// 4 pages on the next window is asked for as well; its first page is not mapped when it arrives
// (Pager::install), so the reader's arrival there is seen as a cheap local fault, and the window after it is
// asked for while the reader goes through this one. Threads: one owner. Allocates nothing. Tested in
// tests/dsm/read_ahead_test.cc.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "dsm/pager.h"

namespace kevre::dsm {

class ReadAhead {
 public:
  struct Ask {
    uint32_t ahead = 0;       // pages behind the faulting one, in the same request
    uint64_t then = 0;        // a further request: its first page,
    uint32_t then_pages = 0;  // and how many; 0: none
  };
  explicit ReadAhead(uint32_t ahead_max) : window_max_(std::min<uint32_t>(ahead_max, 63) + 1) {}

  // A read fault; `pages`: length of the segment.
  Ask on_read(MmId mm, SegmentId segment, uint64_t page, uint64_t pages) {
    ++clock_;
    for (Stream& s : streams_) {
      const bool near = page <= s.next && page + 2 * kWindow >= s.next;
      if (s.window == 0 || s.mm != mm || s.segment != segment || !near || page < s.start) {
        continue;
      }
      s.used = clock_;
      if (page == s.next) {
        return behind(s, page, pages);
      }
      Ask ask;
      if (page >= s.mark && s.mark != kNone) {
        further(s, pages, &ask);
      }
      if (page + 1 < s.next && page != s.start) {  // a page of a window that its home did not send
        ask.ahead =
            std::min<uint32_t>(static_cast<uint32_t>(s.next - page) - 1, fit(page, s.window, pages) - 1);
      }
      return ask;
    }
    Stream& oldest = *std::min_element(streams_.begin(), streams_.end(),
                                       [](const Stream& a, const Stream& b) { return a.used < b.used; });
    oldest = Stream{mm, segment, page, page + 1, kNone, 1, clock_};
    return {};
  }

 private:
  static constexpr uint64_t kNone = ~uint64_t{0};
  static constexpr uint64_t kWindow = 64;
  struct Stream {
    MmId mm;
    SegmentId segment;
    uint64_t start = 0;
    uint64_t next = 0;      // first page that was not asked for
    uint64_t mark = kNone;  // first page of the window that was asked for ahead of the reader
    uint32_t window = 0;    // 0: unused
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
      further(s, pages, &ask);
    }
    return ask;
  }
  void further(Stream& s, uint64_t pages, Ask* ask) const {
    grow(s);
    s.mark = kNone;
    if (s.next < pages) {
      ask->then = s.next;
      ask->then_pages = fit(s.next, s.window, pages);
      s.mark = s.next;
      s.next += ask->then_pages;
    }
  }

  uint32_t window_max_;
  uint64_t clock_ = 0;
  std::array<Stream, 32> streams_{};
};

}  // namespace kevre::dsm
