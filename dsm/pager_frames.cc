// Frame calls: the page state machine of KERNEL.md. Left column (features.minor, Linux 6.4): MISSING|WP|MINOR
// is registered, a PTE that is none always gives an event. Right column (5.19): MISSING|WP, every PTE that
// may become present carries a write-protect marker, and because a punch that races with a fault loses
// markers, they are set again in every mapping after each punch.
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "base/check.h"
#include "base/log.h"
#include "dsm/pager_parts.h"

namespace kevre::dsm {
namespace {

constexpr uint64_t kRunMax = 64;
alignas(4096) const std::byte kZeroes[kRunMax * kPageBytes] = {};
constexpr int kRivalsMax = 8;

off_t offset_of(uint64_t page) {
  return static_cast<off_t>(page * kPageBytes);
}

}  // namespace

// ---- waiting faults

void Pager::Parts::wait(Attachment& attachment, uint64_t n, Access want, uint32_t thread, bool missing) {
  Page& page = attachment.segment->page(n);
  for (uint32_t i = page.waiting; i != kNobody; i = waiters[i].next) {
    Waiter& waiter = waiters[i];
    if (waiter.attachment == &attachment) {
      waiter.want = std::max(waiter.want, want);
      waiter.thread = thread;
      waiter.missing = waiter.missing || missing;
      return;
    }
  }
  if (free_waiter == kNobody) {
    const auto old = static_cast<uint32_t>(waiters.size());
    waiters.resize(size_t{old} * 2);
    for (uint32_t i = old; i < waiters.size(); ++i) {
      waiters[i].next = i + 1 < waiters.size() ? i + 1 : kNobody;
    }
    free_waiter = old;
  }
  const uint32_t i = free_waiter;
  free_waiter = waiters[i].next;
  waiters[i] = Waiter{&attachment, n, page.waiting, thread, want, missing};
  page.waiting = i;
}

void Pager::Parts::forget_waiters(const Attachment& attachment) {
  for (uint32_t i = 1; i < waiters.size(); ++i) {
    if (waiters[i].attachment != &attachment) {
      continue;
    }
    uint32_t* link = &attachment.segment->page(waiters[i].page).waiting;
    while (*link != i) {
      link = &waiters[*link].next;
    }
    *link = waiters[i].next;
    waiters[i].attachment = nullptr;
    waiters[i].next = free_waiter;
    free_waiter = i;
  }
}

// One at a time, because map() may read events, which end attachments and their waiters.
bool Pager::Parts::pop_waiter(Page& page, const Mm* only, Waiter* out) {
  for (uint32_t* link = &page.waiting; *link != kNobody; link = &waiters[*link].next) {
    const uint32_t i = *link;
    if (only == nullptr || waiters[i].attachment->mm == only) {
      *out = waiters[i];
      *link = waiters[i].next;
      waiters[i].attachment = nullptr;
      waiters[i].next = free_waiter;
      free_waiter = i;
      return true;
    }
  }
  return false;
}

void Pager::Parts::resolve_waiters(Segment& segment, uint64_t n, const Attachment* woken) {
  Page& page = segment.page(n);
  Waiter waiter;
  while (pop_waiter(page, nullptr, &waiter)) {
    if (waiter.attachment != woken) {
      map(waiter);
    }
  }
}

// ---- mapping a frame that is here

void Pager::Parts::map(const Waiter& waiter) {
  Attachment& attachment = *waiter.attachment;
  if (attachment.gone) {
    return;
  }
  Mm& mm = *attachment.mm;
  Page& page = attachment.segment->page(waiter.page);
  const uint64_t at = attachment.at(waiter.page);
  const bool writable = waiter.want == Access::kWrite && page.access == Access::kWrite;
  if (writable) {
    page.writers |= attachment.bit();  // before the call: a fork in between copies it
  }
  int error = 0;
  if (features.minor) {
    for (int tries = 0; tries < 4; ++tries) {
      uint64_t done = 0;
      error = on_mm(mm, [&](int fd) {
        return uffd::continue_range(fd, at, kPageBytes, writable ? 0 : uffd::kContinueModeWp, &done);
      });
      if (error != EFAULT) {
        break;
      }
      fill_hole(attachment, waiter.page, writable ? Access::kWrite : Access::kRead, 0);
    }
    if (error == EEXIST && writable) {
      error = on_mm(mm, [&](int fd) { return uffd::write_protect(fd, at, kPageBytes, false); });
    }
  } else {
    if (waiter.missing) {  // perhaps the program removed the frame itself
      fill_hole(attachment, waiter.page, Access::kRead, UFFDIO_COPY_MODE_DONTWAKE);
    }
    error = EEXIST;
    if (writable) {
      error = on_mm(mm, [&](int fd) { return uffd::write_protect(fd, at, kPageBytes, false); });
    }
  }
  if (error != 0 && error != ESRCH) {
    on_mm(mm, [&](int fd) { return uffd::wake(fd, at, kPageBytes); });
  }
}

// The program removed the frame (MADV_REMOVE): it becomes zeroes. Nothing happens when it is there.
void Pager::Parts::fill_hole(Attachment& attachment, uint64_t n, Access access, uint64_t mode) {
  uint64_t done = 0;
  on_mm(*attachment.mm, [&](int fd) {
    return uffd::copy(fd, attachment.at(n), kZeroes, kPageBytes,
                      mode | (access == Access::kWrite ? 0 : UFFDIO_COPY_MODE_WP), &done);
  });
}

// A reader that goes through frames which are here but not mapped: map some behind this one in the same
// call's time.
void Pager::Parts::map_around(Attachment& attachment, uint64_t n) {
  attachment.around = n == attachment.next_local ? std::min<uint32_t>(attachment.around * 2, 64) : 1;
  uint64_t count = 1;
  while (count < attachment.around && attachment.has(n + count)) {
    const Page* const page = attachment.segment->find(n + count);
    if (page == nullptr || page->access == Access::kNone || page->flags != 0) {
      break;
    }
    ++count;
  }
  attachment.next_local = n + count;
  if (count > 1 && !attachment.gone) {
    uint64_t done = 0;  // an optimisation: any error just ends it
    uffd::continue_range(attachment.mm->uffd.get(), attachment.at(n + 1), (count - 1) * kPageBytes,
                         uffd::kContinueModeWp, &done);
  }
}

bool Pager::resolve_locally(const Fault& fault) {
  Parts& parts = *parts_;
  Segment* const segment = parts.segment(fault.segment);
  Mm* const mm = parts.mm(fault.mm);
  if (segment == nullptr || mm == nullptr || mm->dead || fault.page >= segment->pages) {
    return true;
  }
  Page& page = segment->page(fault.page);
  if ((page.flags & Page::kPoisoned) != 0) {
    parts.poison_waiters(*segment, fault.page);
    return true;
  }
  if (page.access < fault.want) {
    return false;
  }
  if ((page.flags & Page::kKept) != 0) {
    return true;  // waits for memory: retry_kept
  }
  Waiter waiter;
  while (parts.pop_waiter(page, mm, &waiter)) {
    ++parts.counters.local;
    parts.map(waiter);
    if (parts.features.minor && fault.want == Access::kRead && !waiter.attachment->gone) {
      parts.map_around(*waiter.attachment, fault.page);
    }
  }
  return true;
}

// ---- bytes into frames

int Pager::Parts::copy_in(Attachment& attachment, uint64_t n, uint64_t count, Access access,
                          const std::byte* bytes, uint64_t* done) {
  *done = 0;
  if (options.copies_to_fail != nullptr && *options.copies_to_fail > 0) {
    --*options.copies_to_fail;
    return ENOMEM;
  }
  const bool writable = access == Access::kWrite;
  const uint64_t at = attachment.at(n);
  uint64_t mode = writable && features.minor ? 0 : UFFDIO_COPY_MODE_WP;
  if (writable && !features.minor) {
    mode |= UFFDIO_COPY_MODE_DONTWAKE;
  }
  if (writable) {
    for (uint64_t i = 0; i < count; ++i) {
      attachment.segment->page(n + i).writers |= attachment.bit();
    }
  }
  const int error = on_mm(*attachment.mm, [&](int fd) {
    uint64_t some = 0;
    const int result = uffd::copy(fd, at + *done, bytes + *done, count * kPageBytes - *done, mode, &some);
    *done += some;
    return result;
  });
  if (*done > 0 && writable && !features.minor) {
    on_mm(*attachment.mm, [&](int fd) { return uffd::write_protect(fd, at, *done, false); });
  }
  *done /= kPageBytes;
  return error;
}

int Pager::Parts::write_in(Segment& segment, uint64_t n, uint64_t count, const std::byte* bytes) {
  if (options.copies_to_fail != nullptr && *options.copies_to_fail > 0) {
    --*options.copies_to_fail;
    return ENOMEM;
  }
  uint64_t done = 0;
  while (done < count * kPageBytes) {
    const ssize_t wrote = ::pwrite(segment.memfd.get(), bytes + done, count * kPageBytes - done,
                                   offset_of(n) + static_cast<off_t>(done));
    if (wrote <= 0) {
      if (wrote < 0 && errno == EINTR) {
        continue;
      }
      return wrote < 0 ? errno : ENOSPC;
    }
    done += static_cast<uint64_t>(wrote);
  }
  return 0;
}

// Makes the pages [n, n + count) present. With an attachment they are also mapped in it, and its threads
// woken.
void Pager::Parts::put(Segment& segment, Attachment* attachment, uint64_t n, uint64_t count, Access access,
                       const std::byte* bytes) {
  int rivals = 0;
  uint64_t i = 0;
  while (i < count) {
    uint64_t done = 0;
    int error = 0;
    const bool direct = attachment != nullptr && attachment->has(n + i);
    if (direct) {
      const uint64_t most = std::min(count - i, attachment->first + attachment->pages - (n + i));
      error = copy_in(*attachment, n + i, most, access, bytes + i * kPageBytes, &done);
    } else {
      error = write_in(segment, n + i, 1, bytes + i * kPageBytes);
      done = error == 0 ? 1 : 0;
    }
    for (uint64_t k = i; k < i + done; ++k) {
      segment.page(n + k).access = access;
      resolve_waiters(segment, n + k, direct ? attachment : nullptr);
    }
    i += done;
    counters.installs += done;
    if (error == 0 || i == count) {
      continue;
    }
    if (error == EEXIST && ++rivals <= kRivalsMax) {
      ++counters.rivals;  // a frame that the table does not know (a program wrote to the memfd)
      punch(segment, n + i, 1);
    } else if (error == ENOMEM || error == ENOSPC) {
      keep(segment, n + i, access, bytes + i * kPageBytes);
      ++i;
    } else if (direct) {
      attachment = nullptr;  // the program or its mapping is gone
    } else {
      KEVRE_CHECK(false, "segment {} page {}: pwrite: {}", segment.id, n + i, std::strerror(error));
    }
  }
}

void Pager::install(SegmentId id, uint64_t first, uint64_t mask, Access access,
                    std::span<const std::byte> bytes) {
  Parts& parts = *parts_;
  if (mask == 0) {
    return;
  }
  const uint64_t last = first + 63 - static_cast<uint64_t>(__builtin_clzll(mask));
  Segment* const segment = parts.segment_for_bytes(id, last + 1);
  if (segment == nullptr) {
    return;  // past the end, or no descriptor for it
  }
  bool awaited = false;
  Attachment* wanted = nullptr;
  for_runs(first, mask, [&](uint64_t n, uint64_t count, uint64_t) {
    for (uint64_t i = n; i < n + count; ++i) {
      Page& page = segment->page(i);
      if (page.access != Access::kNone || page.flags != 0) {
        parts.discard(*segment, i, 1);
      }
      if (page.waiting != kNobody) {
        awaited = true;
        const Waiter& waiter = parts.waiters[page.waiting];
        wanted = wanted == nullptr || waiter.want == Access::kWrite ? waiter.attachment : wanted;
      }
    }
  });
  KEVRE_CHECK(bytes.empty() || bytes.size() == static_cast<size_t>(__builtin_popcountll(mask)) * kPageBytes,
              "{} bytes for mask {:x}", bytes.size(), mask);
  if (!awaited) {
    wanted = segment->recent;
  }
  bool unmapped = !awaited;
  for_runs(first, mask, [&](uint64_t n, uint64_t count, uint64_t packed) {
    const std::byte* from = bytes.empty() ? kZeroes : bytes.data() + packed * kPageBytes;
    if (unmapped) {  // the reader's arrival on this page is to be seen
      parts.put(*segment, nullptr, n, 1, access, from);
      unmapped = false;
      ++n;
      --count;
      from += bytes.empty() ? 0 : kPageBytes;
    }
    if (count > 0) {
      parts.put(*segment, wanted, n, count, access, from);
    }
  });
}

void Pager::upgrade(SegmentId id, uint64_t n) {
  Segment* const segment = parts_->segment(id);
  if (segment == nullptr || n >= segment->pages) {
    return;
  }
  Page& page = segment->page(n);
  page.access = Access::kWrite;
  ++parts_->counters.upgrades;
  if ((page.flags & Page::kKept) == 0) {
    parts_->resolve_waiters(*segment, n, nullptr);
  }
}

// ---- taking frames away

void Pager::Parts::punch(Segment& segment, uint64_t n, uint64_t count) {
  while (::fallocate(segment.memfd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset_of(n),
                     static_cast<off_t>(count * kPageBytes)) != 0) {
    KEVRE_CHECK(errno == EINTR, "punch of segment {} page {}: {}", segment.id, n, std::strerror(errno));
  }
  if (!features.minor) {
    protect(segment, n, count, ~uint64_t{0});
  }
}

// Write-protects the pages in every mapping that may write one of them, or is named by `always`. A child that
// is found on the way (fork) stands at the end of the list and gets its turn.
bool Pager::Parts::protect(Segment& segment, uint64_t n, uint64_t count, uint64_t always) {
  bool all = true;
  for (size_t i = 0; i < segment.attachments.size(); ++i) {
    Attachment& attachment = *segment.attachments[i];
    uint64_t writers = always;
    for (uint64_t k = 0; k < count && (writers & attachment.bit()) == 0; ++k) {
      writers |= segment.page(n + k).writers;
    }
    const uint64_t start = std::max(n, attachment.first);
    const uint64_t end = std::min(n + count, attachment.first + attachment.pages);
    if (attachment.gone || (writers & attachment.bit()) == 0 || start >= end) {
      continue;
    }
    const int error = on_mm(*attachment.mm, [&](int fd) {
      // Attachments are cut when the program unmaps a part, so the range is looked at anew at each try.
      return attachment.gone
                 ? 0
                 : uffd::write_protect(fd, attachment.at(start), (end - start) * kPageBytes, true);
    });
    all = all && (error == 0 || error == ESRCH || error == ENOENT);
  }
  return all;
}

void Pager::Parts::discard(Segment& segment, uint64_t n, uint64_t count) {
  punch(segment, n, count);
  for (uint64_t i = n; i < n + count; ++i) {
    Page& page = segment.page(i);
    forget_kept(segment, i);
    page.access = Access::kNone;
    page.writers = 0;
    page.flags = 0;
  }
}

void Pager::drop_copy(SegmentId id, uint64_t first, uint64_t mask) {
  Segment* const segment = parts_->segment(id);
  if (segment == nullptr) {
    return;
  }
  for_runs(first, mask, [&](uint64_t n, uint64_t count, uint64_t) {
    parts_->discard(*segment, n, count);
    parts_->counters.drops += count;
  });
}

void Pager::downgrade(SegmentId id, uint64_t first, uint64_t mask) {
  Parts& parts = *parts_;
  Segment* const segment = parts.segment(id);
  if (segment == nullptr) {
    return;
  }
  for_runs(first, mask, [&](uint64_t n, uint64_t count, uint64_t) {
    if (!parts.protect(*segment, n, count, parts.features.minor ? 0 : ~uint64_t{0})) {
      // No PTE can be left after a punch, whatever the kernel said to the other call.
      parts.take_run(*segment, n, count, parts.scratch.data());
      parts.put(*segment, nullptr, n, count, Access::kRead, parts.scratch.data());
    }
    for (uint64_t i = n; i < n + count; ++i) {
      Page& page = segment->page(i);
      page.writers = 0;
      page.access = std::min(page.access, Access::kRead);
    }
    parts.counters.downgrades += count;
  });
}

void Pager::Parts::read_run(Segment& segment, uint64_t n, uint64_t count, std::byte* out) {
  uint64_t done = 0;
  while (done < count * kPageBytes) {
    const ssize_t got = ::pread(segment.memfd.get(), out + done, count * kPageBytes - done,
                                offset_of(n) + static_cast<off_t>(done));
    KEVRE_CHECK(got > 0 || (got < 0 && errno == EINTR), "pread of segment {} page {}: {}", segment.id, n,
                std::strerror(errno));
    done += got > 0 ? static_cast<uint64_t>(got) : 0;
  }
  for (uint64_t i = 0; i < count && kept_count > 0; ++i) {
    if (const KeptPage* const kept_here = kept_page(segment.id, n + i)) {
      std::memcpy(out + i * kPageBytes, kept_here->bytes, kPageBytes);
    }
  }
}

void Pager::read(SegmentId id, uint64_t first, uint64_t mask, std::span<std::byte> out) {
  Segment* const segment = parts_->segment(id);
  if (segment == nullptr) {
    std::fill(out.begin(), out.end(), std::byte{0});
    return;
  }
  for_runs(first, mask, [&](uint64_t n, uint64_t count, uint64_t packed) {
    parts_->read_run(*segment, n, count, out.data() + packed * kPageBytes);
  });
}

// Holds the frames in a pipe (no copy, no protection), removes them from the file and so from every PTE with
// one TLB flush, and then reads their final content out of the pipe. False: nothing was taken.
bool Pager::Parts::take_by_pipe(Segment& segment, uint64_t n, uint64_t count, std::byte* out) {
  const size_t bytes = count * kPageBytes;
  loff_t offset = offset_of(n);
  size_t in_pipe = 0;
  while (in_pipe < bytes) {
    const ssize_t moved = ::splice(segment.memfd.get(), &offset, pipe_in.get(), nullptr, bytes - in_pipe, 0);
    if (moved <= 0) {
      if (moved < 0 && errno == EINTR) {
        continue;
      }
      break;
    }
    in_pipe += static_cast<size_t>(moved);
  }
  if (in_pipe == bytes) {
    punch(segment, n, count);
  }
  for (size_t done = 0; done < in_pipe;) {
    const ssize_t got = ::read(pipe_out.get(), out + done, in_pipe - done);
    KEVRE_CHECK(got > 0 || (got < 0 && errno == EINTR), "pipe of pages: {}", std::strerror(errno));
    done += got > 0 ? static_cast<size_t>(got) : 0;
  }
  return in_pipe == bytes;
}

void Pager::Parts::take_run(Segment& segment, uint64_t n, uint64_t count, std::byte* out) {
  for (uint64_t i = 0; i < count;) {
    const uint64_t some = std::min(count - i, pipe_pages);
    std::byte* const to = out + i * kPageBytes;
    if (!take_by_pipe(segment, n + i, some, to)) {
      protect(segment, n + i, some, ~uint64_t{0});
      read_run(segment, n + i, some, to);
      punch(segment, n + i, some);
    }
    i += some;
  }
  for (uint64_t i = 0; i < count; ++i) {
    Page& page = segment.page(n + i);
    if (const KeptPage* const kept_here = kept_page(segment.id, n + i)) {
      std::memcpy(out + i * kPageBytes, kept_here->bytes, kPageBytes);
      forget_kept(segment, n + i);
    }
    page.writers = 0;
    page.access = Access::kNone;
  }
}

void Pager::take(SegmentId id, uint64_t first, uint64_t mask, std::span<std::byte> out) {
  Segment* const segment = parts_->segment(id);
  if (segment == nullptr) {
    std::fill(out.begin(), out.end(), std::byte{0});
    return;
  }
  for_runs(first, mask, [&](uint64_t n, uint64_t count, uint64_t packed) {
    parts_->take_run(*segment, n, count, out.data() + packed * kPageBytes);
    parts_->counters.takes += count;
  });
}

// ---- no memory

KeptPage* Pager::Parts::kept_page(SegmentId segment, uint64_t n) {
  if (kept_count == 0) {
    return nullptr;
  }
  for (KeptPage& one : kept) {
    if (one.bytes != nullptr && one.segment == segment && one.page == n) {
      return &one;
    }
  }
  return nullptr;
}

// The page's bytes may exist nowhere else, so this never refuses: beyond the reserve it allocates. What can come is
// bounded by what this node has asked for.
void Pager::Parts::keep(Segment& segment, uint64_t n, Access access, const std::byte* bytes) {
  auto free_one = std::find_if(kept.begin(), kept.end(), [](const KeptPage& one) { return one.bytes == nullptr; });
  if (free_one == kept.end()) {
    kept.emplace_back();
    kept.back().memory = std::make_unique<std::byte[]>(kPageBytes);
    free_one = kept.end() - 1;
  }
  free_one->segment = segment.id;
  free_one->page = n;
  free_one->since = now_ns();
  free_one->bytes = free_one->memory.get();
  std::memcpy(free_one->bytes, bytes, kPageBytes);
  Page& page = segment.page(n);
  page.flags |= Page::kKept;
  page.access = access;
  ++kept_count;
  ++counters.kept;
}

void Pager::Parts::forget_kept(Segment& segment, uint64_t n) {
  if (KeptPage* const one = kept_page(segment.id, n)) {
    one->bytes = nullptr;
    --kept_count;
    segment.page(n).flags &= static_cast<uint8_t>(~Page::kKept);
  }
}

void Pager::retry_kept() {
  Parts& parts = *parts_;
  const Nanos now = now_ns();
  for (KeptPage& one : parts.kept) {
    if (one.bytes == nullptr) {
      continue;
    }
    Segment* const segment = parts.segment(one.segment);
    if (segment == nullptr) {
      one.bytes = nullptr;
      --parts.kept_count;
    } else if (parts.write_in(*segment, one.page, 1, one.bytes) == 0) {
      const uint64_t n = one.page;
      parts.forget_kept(*segment, n);
      parts.resolve_waiters(*segment, n, nullptr);
    } else if (now - one.since > Parts::kGiveUp) {
      parts.poison_waiters(*segment, one.page);
    }
  }
}

// ---- lost pages

void Pager::poison(SegmentId id, uint64_t n) {
  Segment* const segment = parts_->segment_for_bytes(id, n + 1);
  if (segment == nullptr) {
    return;
  }
  if (segment->page(n).access != Access::kNone) {
    parts_->discard(*segment, n, 1);
  }
  segment->page(n).flags |= Page::kPoisoned;
  parts_->poison_waiters(*segment, n);
}

void Pager::Parts::poison_waiters(Segment& segment, uint64_t n) {
  Waiter waiter;
  while (pop_waiter(segment.page(n), nullptr, &waiter)) {
    poison_for(waiter);
  }
}

void Pager::Parts::poison_for(const Waiter& waiter) {
  Attachment& attachment = *waiter.attachment;
  if (attachment.gone) {
    return;
  }
  const uint64_t at = attachment.at(waiter.page);
  if (features.poison) {
    const int error = on_mm(*attachment.mm, [&](int fd) { return uffd::poison(fd, at, kPageBytes); });
    if (error == 0 || error == ESRCH) {
      return;
    }
  } else {
    // The number is the one of the thread's own pid namespace: make sure that it means the same here.
    std::ifstream maps(fmt::format("/proc/{}/maps", waiter.thread));
    const std::string start = fmt::format("{:x}-", attachment.address);
    const std::string name = fmt::format("memfd:kevre-{} ", attachment.segment->id);
    for (std::string line; std::getline(maps, line);) {
      if (line.compare(0, start.size(), start) == 0 && line.find(name) != std::string::npos) {
        ::syscall(SYS_tkill, static_cast<pid_t>(waiter.thread), SIGBUS);
        break;
      }
    }
    maps.close();
    if (waiter.thread == 0) {
      return;
    }
  }
  on_mm(*attachment.mm, [&](int fd) { return uffd::wake(fd, at, kPageBytes); });
}

}  // namespace kevre::dsm
