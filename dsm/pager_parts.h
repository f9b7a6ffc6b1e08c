// What the pager's files share: its tables. Private to dsm/pager*.cc. Threads: the engine thread.
//
// An Attachment is one mapping of a segment in one address space. Writers are tracked per attachment, as bits
// of Page::writers: bit = Attachment::slot; all attachments beyond the 63rd of a segment share the last bit.
// A bit that is set without need costs one call; a bit that is missing loses a write. So bits are only
// cleared after the PTEs were protected or removed, a slot may be used again while old bits of it are still
// set, and a fork copies bits. Attachments and address spaces that end are marked, and freed at the start of
// the next report (sweep), because frame calls walk over them while events are read.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "dsm/pager.h"
#include "dsm/uffd.h"

namespace kevre::dsm {

inline constexpr unsigned kLastSlot = 63;
inline constexpr uint32_t kNobody = 0;

struct Page {
  enum Flag : uint8_t { kPoisoned = 1, kKept = 2 };
  uint64_t writers = 0;
  uint32_t waiting = kNobody;  // first Waiter
  Access access = Access::kNone;
  uint8_t flags = 0;
  uint16_t reserved = 0;
};
static_assert(sizeof(Page) == 16);
using Chunk = std::array<Page, kChunkPages>;

struct Segment;
struct Mm;

struct Attachment {
  Mm* mm = nullptr;
  Segment* segment = nullptr;
  uint64_t address = 0;
  uint64_t first = 0;  // page of the segment at `address`
  uint64_t pages = 0;
  unsigned slot = 0;
  bool gone = false;
  uint64_t next_local = 0;  // for mapping around: the page behind the last local read
  uint32_t around = 1;

  bool has(uint64_t page) const { return !gone && page >= first && page - first < pages; }
  uint64_t at(uint64_t page) const { return address + (page - first) * kPageBytes; }
  uint64_t bit() const { return uint64_t{1} << slot; }
};

struct Mm {
  MmId id;
  UniqueFd uffd;
  bool dead = false;
  bool dropped = false;
  std::vector<Attachment*> attachments;
  uint64_t unknown_address = 0;  // faults outside every attachment, in a row, at the same page
  int unknown_times = 0;
};

struct Segment {
  SegmentId id;
  UniqueFd memfd;
  uint64_t pages = 0;
  bool sized = false;  // no program may have it before; grows as pages come
  std::unordered_map<uint64_t, std::unique_ptr<Chunk>> chunks;
  uint64_t cached_chunk = ~uint64_t{0};
  Chunk* cached = nullptr;
  std::vector<Attachment*> attachments;  // grows at the end while frame calls walk over it
  Attachment* recent = nullptr;          // who faulted last

  Page& page(uint64_t n);
  const Page* find(uint64_t n) const;
};

// A program waits for a page. At most one per (page, attachment): a wake wakes all its threads.
struct Waiter {
  Attachment* attachment = nullptr;  // nullptr: free
  uint64_t page = 0;
  uint32_t next = kNobody;
  uint32_t thread = 0;
  Access want = Access::kNone;
  bool missing = false;  // the event said: neither page nor PTE
};

// What is read from userfaultfds and not yet reported.
struct Report {
  enum class Kind : uint8_t { kFault, kFork, kUnmapped } kind = Kind::kFault;
  bool missing = false;
  Access want = Access::kNone;
  uint32_t thread = 0;
  MmId mm, child;
  uint64_t address = 0, bytes = 0;
};

struct KeptPage {
  SegmentId segment;
  uint64_t page = 0;
  Nanos since = 0;
  std::byte* bytes = nullptr;           // 4096, in `memory`; nullptr: free
  std::unique_ptr<std::byte[]> memory;  // stays with the entry, so that it is there when memory is short
};

struct Pager::Parts {
  static constexpr size_t kKeptReserve = 256;  // entries that need no allocation
  static constexpr Nanos kGiveUp = 10 * kSecond;

  Sink* sink = nullptr;
  Options options;
  Features features;
  Counters counters;
  UniqueFd device;
  UniqueFd pipe_out, pipe_in;  // take: memfd -> pipe (no copy), punch, read
  uint64_t pipe_pages = 16;
  std::unordered_map<SegmentId, std::unique_ptr<Segment>> segments;
  std::vector<std::unique_ptr<Mm>> mms;  // index = MmId - 1
  std::vector<std::unique_ptr<Attachment>> attachments;
  std::vector<std::unique_ptr<Segment>> old_segments;  // destroyed; freed by sweep
  std::vector<Waiter> waiters;                         // index 0 is not used
  uint32_t free_waiter = kNobody;
  std::vector<Report> reports;
  size_t next_report = 0;
  bool needs_sweep = false;
  bool reporting = false;
  std::vector<KeptPage> kept;
  size_t kept_count = 0;
  std::vector<std::byte> scratch;  // 64 pages

  // pager.cc
  Segment* segment(SegmentId id) const;
  Segment* segment_for_bytes(SegmentId id, uint64_t pages);
  Mm* mm(MmId id) const;
  Result<MmId> add_mm(UniqueFd uffd);
  Attachment* add_attachment(Mm& mm, Segment& segment, uint64_t address, uint64_t first, uint64_t pages);
  void tidy_mapping(Attachment& attachment);
  void end_attachment(Attachment& attachment);
  void end_mm(Mm& mm);
  void sweep();
  void copy_writers(Segment& segment, const Attachment& from, const Attachment& to);

  // pager_events.cc
  int drain(Mm& mm);  // reads all pending events: structure at once, the rest is queued. Returns how many.
  void on_fork_event(Mm& parent, int child_uffd);
  void on_remap_event(Mm& mm, uint64_t from, uint64_t to, uint64_t bytes);
  void unmap(Mm& mm, uint64_t start, uint64_t end);
  void report_fault(const Report& report);
  void pause_for(int tries);

  // Makes a call on a userfaultfd; reads events and tries again while it answers EAGAIN. ESRCH marks the Mm
  // dead.
  template <class Call>
  int on_mm(Mm& mm, Call call) {
    for (int tries = 0;; ++tries) {
      if (mm.dead) {
        return ESRCH;
      }
      const int error = call(mm.uffd.get());
      if (error == ESRCH) {
        end_mm(mm);
      }
      if (error != EAGAIN) {
        return error;
      }
      ++counters.again;
      if (drain(mm) == 0) {
        pause_for(tries);
      }
    }
  }

  // pager_frames.cc
  void wait(Attachment& attachment, uint64_t page, Access want, uint32_t thread, bool missing);
  void forget_waiters(const Attachment& attachment);
  bool pop_waiter(Page& page, const Mm* only, Waiter* out);
  void resolve_waiters(Segment& segment, uint64_t page, const Attachment* woken);
  void map(const Waiter& waiter);
  void map_around(Attachment& attachment, uint64_t page);
  void fill_hole(Attachment& attachment, uint64_t page, Access access, uint64_t mode);
  int copy_in(Attachment& attachment, uint64_t page, uint64_t count, Access access, const std::byte* bytes,
              uint64_t* done);
  int write_in(Segment& segment, uint64_t page, uint64_t count, const std::byte* bytes);
  void put(Segment& segment, Attachment* attachment, uint64_t page, uint64_t count, Access access,
           const std::byte* bytes);
  void punch(Segment& segment, uint64_t page, uint64_t count);
  bool protect(Segment& segment, uint64_t page, uint64_t count, uint64_t always);
  void discard(Segment& segment, uint64_t page, uint64_t count);
  void read_run(Segment& segment, uint64_t page, uint64_t count, std::byte* out);
  bool take_by_pipe(Segment& segment, uint64_t page, uint64_t count, std::byte* out);
  void take_run(Segment& segment, uint64_t page, uint64_t count, std::byte* out);
  void keep(Segment& segment, uint64_t page, Access access, const std::byte* bytes);
  KeptPage* kept_page(SegmentId segment, uint64_t page);
  void forget_kept(Segment& segment, uint64_t page);
  void poison_waiters(Segment& segment, uint64_t page);
  void poison_for(const Waiter& waiter);
};

// Calls `f(first page, how many, index of the first in the mask's packed bytes)` for each run of neighbours
// in the mask.
template <class F>
void for_runs(uint64_t page, uint64_t mask, F f) {
  uint64_t packed = 0;
  while (mask != 0) {
    const int skip = __builtin_ctzll(mask);
    page += static_cast<uint64_t>(skip);
    mask >>= skip;
    const int run = mask == ~uint64_t{0} ? 64 : __builtin_ctzll(~mask);
    f(page, static_cast<uint64_t>(run), packed);
    packed += static_cast<uint64_t>(run);
    page += static_cast<uint64_t>(run);
    mask = run == 64 ? 0 : mask >> run;
  }
}

}  // namespace kevre::dsm
