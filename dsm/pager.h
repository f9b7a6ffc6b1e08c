// Pager: the frames of this node and the userfaultfds of its programs. It executes what the directory decides with the
// exact kernel calls of KERNEL.md's page state machine and decides nothing itself.
//
// Owns: one memfd per segment (never mapped here: pread, pwrite, splice), one userfaultfd per address space (Mm).
// Knows per page: the access of this node, and which Mm may have a writable PTE.
// Threads: the engine thread only, which also drains the userfaultfds: an unread event makes every UFFDIO call answer
// EAGAIN, so a call that meets EAGAIN reads the pending events (they are queued, not handled) and tries again.
// Errors: ESRCH (the address space is gone) is not an error: the Mm is marked dead and dropped.
// The fault path allocates nothing, logs nothing, takes no lock. Tested in tests/dsm/pager_test.cc and pager_stress.cc.
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
  struct Features {  // what this kernel can do, found by trying
    bool minor = false;        // MISSING|WP|MINOR with CONTINUE|MODE_WP: the left column of KERNEL.md
    bool poison = false;
    bool event_fork = false;
  };
  // What the owner of the pager is told while events are read. Called inside read_events() only.
  class Sink {
   public:
    virtual ~Sink() = default;
    // The page is not resolved yet. The owner answers by frame calls now or later; each resolves all waiting faults.
    virtual void on_fault(const Fault& fault) = 0;
    // A program forked: the child's address space is served from now on, with the same attachments.
    virtual void on_fork(MmId parent, MmId child, int child_uffd) = 0;
    // The range is no longer mapped (munmap, MAP_FIXED over it, exec): attachments inside it are gone.
    virtual void on_unmapped(MmId mm, uint64_t address, uint64_t bytes) = 0;
  };

  // kUnsupported or kDenied with the remedy when userfaultfd is missing or not permitted.
  static Result<std::unique_ptr<Pager>> create(Sink* sink);
  ~Pager();
  const Features& features() const;
  int userfaultfd_device() const;  // /dev/userfaultfd, to pass to programs; owned here

  // The segment's memfd (sealed against shrinking and growing), created at the first call. kExhausted: no memory for it.
  Result<int> open_segment(SegmentId segment, uint64_t pages);
  // Frees the frames. Attached programs get SIGBUS.. nothing: they are expected to be gone.
  void destroy_segment(SegmentId segment);

  Result<MmId> adopt(UniqueFd uffd);  // UFFDIO_API on the program's behalf
  int uffd_of(MmId mm) const;         // for epoll and for handing a copy to a forked child; -1 when gone
  Result<void> attach(MmId mm, SegmentId segment, uint64_t address, uint64_t bytes);
  void detach(MmId mm, uint64_t address);  // the mapping that starts at `address`
  void drop(MmId mm);                      // the program is gone
  bool alive(MmId mm);                     // false also marks it dead; one cheap ioctl

  // Reads and reports everything that is pending on one userfaultfd. Returns the number of events.
  int read_events(MmId mm);

  // Frame calls, as the directory's effects ask. `pages` is a mask from `page` on.
  void install(SegmentId segment, uint64_t page, uint64_t mask, Access access, std::span<const std::byte> bytes);  // empty bytes: zeroes
  void upgrade(SegmentId segment, uint64_t page);
  void drop_copy(SegmentId segment, uint64_t page, uint64_t mask);
  void downgrade(SegmentId segment, uint64_t page, uint64_t mask);                        // writable -> read-only everywhere
  void read(SegmentId segment, uint64_t page, uint64_t mask, std::span<std::byte> out);   // bytes of present pages
  void take(SegmentId segment, uint64_t page, uint64_t mask, std::span<std::byte> out);   // -> absent, with final bytes
  void poison(SegmentId segment, uint64_t page);
  // A fault whose page this node may already access: map it for that program (no directory involved). False when the
  // node's access does not suffice (the caller asks the directory).
  bool resolve_locally(const Fault& fault);

  Access access(SegmentId segment, uint64_t page) const;

 private:
  struct Parts;
  explicit Pager(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace kevre::dsm
