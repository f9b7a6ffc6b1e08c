// Pager: the frames of this node and the userfaultfds of its programs. It executes what the directory decides
// with the exact kernel calls of KERNEL.md's page state machine and decides nothing itself.
//
// Owns: one memfd per segment (never mapped here: pread, pwrite, splice), one userfaultfd per address space
// (Mm). Knows per page: the access of this node, and which Mm may have a writable PTE. Threads: the engine
// thread only, which also drains the userfaultfds: an unread event makes every UFFDIO call answer EAGAIN, so
// a call that meets EAGAIN reads the pending events (they are queued, not handled) and tries again. Errors:
// ESRCH (the address space is gone) is not an error: the Mm is marked dead and the owner drops it. The fault
// path allocates nothing after warm-up, logs nothing, takes no lock.
//
// No memory for a page (UFFDIO_COPY answers ENOMEM): its bytes are kept in a small reserve, the programs go
// on waiting, and retry_kept() (call it every few milliseconds while has_kept()) installs it when there is
// memory again. After kGiveUp the waiting programs get SIGBUS, as from a full tmpfs; the bytes stay, and a
// later access finds them. MADV_DONTNEED by a program loses nothing (the frame stays). MADV_REMOVE punches
// the frame itself: the program asked for zeroes and gets zeroes, on this node; it is coherent only where
// this node owns the page. Waiting faults of a lost page: UFFDIO_POISON (Linux 6.6); before that the waiting
// thread gets SIGBUS by tkill, but only when /proc shows that the thread with that number maps this very
// segment (pid namespaces may differ).
//
// Files: pager.cc (segments, programs), pager_frames.cc (frame calls), pager_events.cc (userfaultfd events),
// pager_parts.h (what they share), uffd.h (ioctls). Tested in tests/dsm/pager_test.cc and pager_stress.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"
#include "dsm/segment.h"

namespace kevre::dsm {

using MmId = Id<struct MmTag, uint32_t>;  // an address space whose userfaultfd this node serves; not reused

class Pager {
 public:
  struct Fault {
    MmId mm;
    SegmentId segment;
    uint64_t page = 0;
    Access want = Access::kNone;
    uint32_t thread = 0;  // tid, as the program's pid namespace numbers it
  };
  struct Features {      // what this kernel can do, found by trying
    bool minor = false;  // MISSING|WP|MINOR with CONTINUE|MODE_WP: the left column of KERNEL.md
    bool poison = false;
    bool event_fork = false;
  };
  // What the owner of the pager is told while events are read. Called inside read_events() only.
  class Sink {
   public:
    virtual ~Sink() = default;
    // The page is not resolved yet. The owner answers by frame calls now or later; each resolves all waiting
    // faults.
    virtual void on_fault(const Fault& fault) = 0;
    // A program forked: the child's address space is served from now on, with the same attachments.
    virtual void on_fork(MmId parent, MmId child, int child_uffd) = 0;
    // The range is no longer mapped (munmap, MAP_FIXED over it, exec): attachments inside it are gone.
    virtual void on_unmapped(MmId mm, uint64_t address, uint64_t bytes) = 0;
  };

  struct Options {
    bool old_kernel = false;  // behave as on Linux 5.19 .. 6.3 (MISSING|WP, no CONTINUE|MODE_WP, no POISON)
    int* copies_to_fail = nullptr;  // tests: while above 0, page installs meet ENOMEM and count it down
  };
  struct Counters {
    uint64_t takes = 0, downgrades = 0, drops = 0, installs = 0, upgrades = 0, local = 0;  // pages
    uint64_t events = 0, again = 0, rivals = 0,
             kept = 0;  // rivals: a frame was there that should not (EEXIST)
  };

  // kUnsupported or kDenied with the remedy when userfaultfd is missing or not permitted.
  static Result<std::unique_ptr<Pager>> create(Sink* sink, const Options& options);
  static Result<std::unique_ptr<Pager>> create(Sink* sink) { return create(sink, Options{}); }
  ~Pager();
  const Features& features() const;
  int userfaultfd_device() const;  // /dev/userfaultfd, to pass to programs; owned here

  // The segment's memfd (sealed against shrinking and growing), created at the first call. kExhausted: no
  // memory for it.
  Result<int> open_segment(SegmentId segment, uint64_t pages);
  uint64_t pages(SegmentId segment) const;  // 0: not open here
  // Frees the frames. Programs that are still attached get SIGBUS at their next fault.
  void destroy_segment(SegmentId segment);

  Result<MmId> adopt(UniqueFd uffd);  // UFFDIO_API on the program's behalf
  int uffd_of(MmId mm) const;         // for epoll and for handing a copy to a forked child; -1 when gone
  Result<void> attach(MmId mm, SegmentId segment, uint64_t address, uint64_t bytes);
  void detach(MmId mm, uint64_t address);   // the mapping that starts at `address`
  void drop(MmId mm);                       // the program is gone
  bool alive(MmId mm);                      // false also marks it dead; one cheap ioctl
  void list(std::vector<MmId>& mms) const;  // all that were not dropped, also dead ones

  // Reads what is pending on one userfaultfd and reports it, and everything else that is queued. Returns the
  // number of reports.
  int read_events(MmId mm);
  // Frame calls may have read events on the way (see EAGAIN above): report them. Call it when effects are
  // done.
  int report_queued();

  // Frame calls, as the directory's effects ask. `mask` counts from `page` on; bytes are packed, 4096 per
  // page of the mask. Pages for which nobody waits are mapped for the program that faulted last in the
  // segment, so that a sequential reader takes no fault on them; but when nobody waits for any of them, not
  // the first: its fault (resolved locally) tells the owner that the reader has arrived there.
  void install(SegmentId segment, uint64_t page, uint64_t mask, Access access,
               std::span<const std::byte> bytes);  // empty bytes: zeroes
  void upgrade(SegmentId segment, uint64_t page);
  void drop_copy(SegmentId segment, uint64_t page, uint64_t mask);
  void downgrade(SegmentId segment, uint64_t page, uint64_t mask);  // writable -> read-only everywhere
  void read(SegmentId segment, uint64_t page, uint64_t mask,
            std::span<std::byte> out);  // bytes of present pages
  void take(SegmentId segment, uint64_t page, uint64_t mask,
            std::span<std::byte> out);  // -> absent, with final bytes
  void poison(SegmentId segment, uint64_t page);
  // A fault whose page this node may already access: map it for that program (no directory involved). False
  // when the node's access does not suffice (the caller asks the directory).
  bool resolve_locally(const Fault& fault);

  Access access(SegmentId segment, uint64_t page) const;
  bool has_kept() const;
  void retry_kept();
  const Counters& counters() const;

 private:
  struct Parts;
  explicit Pager(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace kevre::dsm
