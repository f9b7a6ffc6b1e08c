// Segments and programs; frame calls are in pager_frames.cc, userfaultfd events in pager_events.cc.
#include "dsm/pager.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

#include "base/check.h"
#include "base/log.h"
#include "dsm/pager_parts.h"

namespace kevre::dsm {
namespace {

#ifndef MFD_NOEXEC_SEAL
constexpr unsigned MFD_NOEXEC_SEAL = 8;  // Linux 6.3
#endif

constexpr uint64_t kModesNew =
    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR;
constexpr uint64_t kModesOld = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;

int new_memfd(const std::string& name) {
  const int fd = ::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
  if (fd >= 0 || errno != EINVAL) {
    return fd;
  }
  return ::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

// One page in a mapping of our own: is CONTINUE|MODE_WP known here?
bool try_continue_protected(int device) {
  const UniqueFd memfd(new_memfd("kevre-probe"));
  const UniqueFd fd(uffd::create(device));
  // Without events: nobody would read the one of our own munmap.
  constexpr uint64_t kPlain =
      UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
  if (!memfd || !fd || ::ftruncate(memfd.get(), kPageBytes) != 0 || ::pwrite(memfd.get(), "x", 1, 0) != 1 ||
      uffd::api(fd.get(), kPlain, nullptr) != 0) {
    return false;
  }
  void* const place = ::mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd.get(), 0);
  if (place == MAP_FAILED) {
    return false;
  }
  const auto address = reinterpret_cast<uint64_t>(place);
  uint64_t done = 0;
  const bool works = uffd::register_range(fd.get(), address, kPageBytes, kModesNew) == 0 &&
                     uffd::continue_range(fd.get(), address, kPageBytes, uffd::kContinueModeWp, &done) == 0;
  ::munmap(place, kPageBytes);
  return works;
}

// Huge pages in the memfd would make neighbours of a page present without being asked for.
Result<void> check_no_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string text;
  std::getline(file, text);
  for (const char* bad : {"[always]", "[within_size]", "[force]"}) {
    if (text.find(bad) != std::string::npos) {
      return fail(Errc::kUnsupported,
                  "huge pages are forced on shared memory, so single pages cannot be followed; remedy: echo "
                  "advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled");
    }
  }
  return {};
}

Result<UniqueFd> probe_userfaultfd(int device, int device_errno) {
  UniqueFd fd(uffd::create(device));
  if (fd) {
    return fd;
  }
  const int value = errno;
  if (value == ENOSYS) {
    return fail(Errc::kUnsupported,
                "this kernel has no userfaultfd; remedy: a kernel with CONFIG_USERFAULTFD");
  }
  if (value == EPERM || value == EACCES) {
    return fail(Errc::kDenied,
                "userfaultfd is not permitted (/dev/userfaultfd: {}); remedy: run as root, or give this user "
                "read and "
                "write on /dev/userfaultfd, or sysctl -w vm.unprivileged_userfaultfd=1",
                std::strerror(device_errno));
  }
  errno = value;
  return fail_errno("userfaultfd");
}

}  // namespace

Page& Segment::page(uint64_t n) {
  const uint64_t number = n / kChunkPages;
  if (number != cached_chunk) {
    std::unique_ptr<Chunk>& chunk = chunks[number];
    if (chunk == nullptr) {
      chunk = std::make_unique<Chunk>();
    }
    cached = chunk.get();
    cached_chunk = number;
  }
  return (*cached)[n % kChunkPages];
}

const Page* Segment::find(uint64_t n) const {
  const auto i = chunks.find(n / kChunkPages);
  return i == chunks.end() ? nullptr : &(*i->second)[n % kChunkPages];
}

Result<std::unique_ptr<Pager>> Pager::create(Sink* sink, const Options& options) {
  auto parts = std::make_unique<Parts>();
  parts->sink = sink;
  parts->options = options;
  parts->device.reset(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  const int device_errno = errno;
  KEVRE_TRY(check_no_huge_pages());
  KEVRE_ASSIGN(UniqueFd fd, probe_userfaultfd(parts->device.get(), device_errno));
  uint64_t known = 0;
  if (const int error = uffd::api(fd.get(), 0, &known); error != 0) {
    return fail_errno_text(error, "UFFDIO_API");
  }
  constexpr uint64_t kLeast = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
  if ((known & kLeast) != kLeast) {
    return fail(Errc::kUnsupported,
                "userfaultfd cannot write-protect shared memory here; remedy: Linux 5.19 or later");
  }
  fd.reset(uffd::create(parts->device.get()));
  parts->features.event_fork =
      uffd::api(fd.get(), uffd::kFeaturesNeeded | UFFD_FEATURE_EVENT_FORK, nullptr) == 0;
  parts->features.minor = !options.old_kernel && try_continue_protected(parts->device.get());
  parts->features.poison = !options.old_kernel && (known & uffd::kFeaturePoison) != 0;

  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
    return fail_errno("pipe for pages");
  }
  parts->pipe_out.reset(ends[0]);
  parts->pipe_in.reset(ends[1]);
  const int size = ::fcntl(ends[1], F_SETPIPE_SZ, 64 * static_cast<int>(kPageBytes));
  parts->pipe_pages = size > 0 ? static_cast<uint64_t>(size) / kPageBytes : 16;
  parts->waiters.resize(1024);
  for (uint32_t i = 1; i < parts->waiters.size(); ++i) {
    parts->waiters[i].next = i + 1 < parts->waiters.size() ? i + 1 : kNobody;
  }
  parts->free_waiter = 1;
  parts->reports.reserve(1024);
  parts->scratch.resize(64 * kPageBytes);
  parts->kept.resize(Parts::kKeptReserve);
  for (KeptPage& one : parts->kept) {
    one.memory = std::make_unique<std::byte[]>(kPageBytes);
    std::memset(one.memory.get(), 1, kPageBytes);  // touched: really there when memory is short
  }
  return std::unique_ptr<Pager>(new Pager(std::move(parts)));
}

Pager::Pager(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Pager::~Pager() = default;

const Pager::Features& Pager::features() const {
  return parts_->features;
}
int Pager::userfaultfd_device() const {
  return parts_->device.get();
}
const Pager::Counters& Pager::counters() const {
  return parts_->counters;
}

Segment* Pager::Parts::segment(SegmentId id) const {
  const auto i = segments.find(id);
  return i == segments.end() ? nullptr : i->second.get();
}

Mm* Pager::Parts::mm(MmId id) const {
  if (id.value == 0 || id.value > mms.size()) {
    return nullptr;
  }
  Mm* const found = mms[id.value - 1].get();
  return found == nullptr || found->dropped ? nullptr : found;
}

// The memfd may exist before its size is known here: a home holds pages of segments that no program of its
// node uses.
Segment* Pager::Parts::segment_for_bytes(SegmentId id, uint64_t pages) {
  Segment* known = segment(id);
  if (known == nullptr) {
    auto made = std::make_unique<Segment>();
    made->id = id;
    made->memfd.reset(new_memfd(fmt::format("kevre-{}", id)));
    if (!made->memfd) {
      return nullptr;
    }
    known = made.get();
    segments.emplace(id, std::move(made));
  }
  if (pages > known->pages) {
    const uint64_t rounded = (pages + kChunkPages - 1) / kChunkPages * kChunkPages;
    if (known->sized || ::ftruncate(known->memfd.get(), static_cast<off_t>(rounded * kPageBytes)) != 0) {
      return nullptr;
    }
    known->pages = rounded;
  }
  return known;
}

Result<int> Pager::open_segment(SegmentId id, uint64_t pages) {
  if (pages == 0 || pages > kPagesMax) {
    return fail(Errc::kInvalid, "a segment of {} pages; from 1 to {} are possible", pages, kPagesMax);
  }
  Segment* const known = parts_->segment_for_bytes(id, 0);
  if (known == nullptr) {
    return fail_errno("memfd for segment {}", id);
  }
  if (known->sized) {
    if (pages > known->pages) {
      return fail(Errc::kInvalid, "segment {} has {} pages, not {}", id, known->pages, pages);
    }
    return known->memfd.get();
  }
  if (::ftruncate(known->memfd.get(), static_cast<off_t>(pages * kPageBytes)) != 0) {
    if (errno == EFBIG || errno == EINVAL) {
      return fail(Errc::kExhausted, "segment {}: the kernel refuses a file of {} bytes", id,
                  pages * kPageBytes);
    }
    return fail_errno("segment {} of {} bytes", id, pages * kPageBytes);
  }
  known->pages = pages;
  // Programs hold this descriptor too: without F_SEAL_SEAL one of them could forbid the pager to punch.
  if (::fcntl(known->memfd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return fail_errno("sealing segment {}", id);
  }
  known->sized = true;
  return known->memfd.get();
}

uint64_t Pager::pages(SegmentId id) const {
  const Segment* const found = parts_->segment(id);
  return found == nullptr || !found->sized ? 0 : found->pages;
}

void Pager::destroy_segment(SegmentId id) {
  const auto i = parts_->segments.find(id);
  if (i == parts_->segments.end()) {
    return;
  }
  Segment& segment = *i->second;
  ::fallocate(segment.memfd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
              static_cast<off_t>(segment.pages * kPageBytes));
  for (Attachment* const attachment : segment.attachments) {
    if (!attachment->gone) {
      // Waiting threads fault again, outside every attachment: see report_fault.
      const uint64_t address = attachment->address;
      const uint64_t bytes = attachment->pages * kPageBytes;
      Mm& mm = *attachment->mm;
      parts_->end_attachment(*attachment);
      parts_->on_mm(mm, [&](int fd) { return uffd::wake(fd, address, bytes); });
    }
  }
  for (KeptPage& kept : parts_->kept) {
    if (kept.bytes != nullptr && kept.segment == id) {
      kept.bytes = nullptr;
      --parts_->kept_count;
    }
  }
  parts_->old_segments.push_back(std::move(i->second));
  parts_->segments.erase(i);
  parts_->needs_sweep = true;
}

Result<MmId> Pager::Parts::add_mm(UniqueFd uffd) {
  KEVRE_TRY(set_nonblocking(uffd.get(), true));
  auto made = std::make_unique<Mm>();
  made->id = MmId(static_cast<uint32_t>(mms.size() + 1));
  made->uffd = std::move(uffd);
  mms.push_back(std::move(made));
  return mms.back()->id;
}

Result<MmId> Pager::adopt(UniqueFd uffd) {
  const uint64_t fork = parts_->features.event_fork ? uint64_t{UFFD_FEATURE_EVENT_FORK} : 0;
  uint64_t wanted = uffd::kFeaturesNeeded | fork;
  if (parts_->features.poison) {
    wanted |= uffd::kFeaturePoison;
  }
  if (const int error = uffd::api(uffd.get(), wanted, nullptr); error != 0) {
    return fail(Errc::kInvalid, "the program's descriptor is no fresh userfaultfd: {}", std::strerror(error));
  }
  return parts_->add_mm(std::move(uffd));
}

int Pager::uffd_of(MmId id) const {
  const Mm* const mm = parts_->mm(id);
  return mm == nullptr ? -1 : mm->uffd.get();
}

Attachment* Pager::Parts::add_attachment(Mm& mm, Segment& segment, uint64_t address, uint64_t first,
                                         uint64_t pages) {
  auto made = std::make_unique<Attachment>();
  made->mm = &mm;
  made->segment = &segment;
  made->address = address;
  made->first = first;
  made->pages = pages;
  uint64_t used = 0;
  for (const Attachment* const other : segment.attachments) {
    used |= other->gone ? 0 : other->bit();
  }
  const uint64_t free = ~used & ~(uint64_t{1} << kLastSlot);
  made->slot = free == 0 ? kLastSlot : static_cast<unsigned>(__builtin_ctzll(free));
  segment.attachments.push_back(made.get());
  mm.attachments.push_back(made.get());
  attachments.push_back(std::move(made));
  return attachments.back().get();
}

Result<void> Pager::attach(MmId id, SegmentId segment_id, uint64_t address, uint64_t bytes) {
  Mm* const mm = parts_->mm(id);
  Segment* const segment = parts_->segment(segment_id);
  if (mm == nullptr || mm->dead) {
    return fail(Errc::kPeerLost, "the program is gone");
  }
  if (segment == nullptr) {
    return fail(Errc::kNotFound, "segment {} is not open on this node", segment_id);
  }
  const uint64_t pages = bytes / kPageBytes;
  if (address % kPageBytes != 0 || bytes % kPageBytes != 0 || pages == 0 || pages > segment->pages ||
      address + bytes < address) {
    return fail(Errc::kInvalid, "attach of {} bytes at {:#x} to a segment of {} pages", bytes, address,
                segment->pages);
  }
  for (const Attachment* const other : mm->attachments) {
    if (!other->gone && address < other->address + other->pages * kPageBytes &&
        other->address < address + bytes) {
      return fail(Errc::kExists, "something is attached at {:#x} already", other->address);
    }
  }
  // Known before it is registered: a fault may come at once, and drain() must find it.
  Attachment* const made = parts_->add_attachment(*mm, *segment, address, 0, pages);
  const uint64_t modes = parts_->features.minor ? kModesNew : kModesOld;
  int error = parts_->on_mm(*mm, [&](int fd) { return uffd::register_range(fd, address, bytes, modes); });
  if (error == 0 && !parts_->features.minor) {
    // A PTE that is none lets a program map a present frame for writing without an event: mark all of them.
    error = parts_->on_mm(*mm, [&](int fd) { return uffd::write_protect(fd, address, bytes, true); });
  }
  if (error == 0) {
    parts_->tidy_mapping(*made);
  }
  if (error != 0) {
    parts_->end_attachment(*made);
    return fail_errno_text(error, fmt::format("serving {} bytes at {:#x} of the program", bytes, address));
  }
  return {};
}

// Between mmap and register the kernel may have filled the mapping (MAP_POPULATE, mlockall(MCL_FUTURE)):
// frames that the table does not know are removed, PTEs of frames that it knows are protected.
void Pager::Parts::tidy_mapping(Attachment& attachment) {
  Segment& segment = *attachment.segment;
  const int memfd = segment.memfd.get();
  const auto end = static_cast<off_t>((attachment.first + attachment.pages) * kPageBytes);
  off_t at = static_cast<off_t>(attachment.first * kPageBytes);
  while (at < end && (at = ::lseek(memfd, at, SEEK_DATA)) >= 0 && at < end) {
    const off_t hole = std::min(::lseek(memfd, at, SEEK_HOLE), end);
    for (; at < hole; at += static_cast<off_t>(kPageBytes)) {
      const uint64_t n = static_cast<uint64_t>(at) / kPageBytes;
      const Page* const page = segment.find(n);
      if (page == nullptr || page->access == Access::kNone) {
        punch(segment, n, 1);
      } else if (features.minor) {
        on_mm(*attachment.mm,
              [&](int fd) { return uffd::write_protect(fd, attachment.at(n), kPageBytes, true); });
      }
    }
  }
}

void Pager::Parts::end_attachment(Attachment& attachment) {
  if (attachment.gone) {
    return;
  }
  attachment.gone = true;
  needs_sweep = true;
  if (attachment.segment->recent == &attachment) {
    attachment.segment->recent = nullptr;
  }
  forget_waiters(attachment);
}

void Pager::Parts::end_mm(Mm& mm) {
  mm.dead = true;
  for (Attachment* const attachment : mm.attachments) {
    end_attachment(*attachment);
  }
}

void Pager::detach(MmId id, uint64_t address) {
  Mm* const mm = parts_->mm(id);
  if (mm == nullptr) {
    return;
  }
  for (Attachment* const attachment : mm->attachments) {
    if (!attachment->gone && attachment->address == address) {
      const uint64_t bytes = attachment->pages * kPageBytes;
      parts_->end_attachment(*attachment);
      parts_->on_mm(*mm, [&](int fd) { return uffd::wake(fd, address, bytes); });
      return;
    }
  }
}

void Pager::drop(MmId id) {
  if (Mm* const mm = parts_->mm(id)) {
    parts_->end_mm(*mm);
    mm->dropped = true;
    mm->uffd.reset();
    parts_->needs_sweep = true;
  }
}

bool Pager::alive(MmId id) {
  Mm* const mm = parts_->mm(id);
  if (mm == nullptr || mm->dead) {
    return false;
  }
  // Nothing is registered at this address: ENOENT from a living address space, ESRCH from a dead one.
  const int error = uffd::write_protect(mm->uffd.get(), 0x10000, kPageBytes, true);
  if (error == ESRCH) {
    parts_->end_mm(*mm);
  }
  return !mm->dead;
}

void Pager::list(std::vector<MmId>& mms) const {
  for (const auto& mm : parts_->mms) {
    if (mm != nullptr && !mm->dropped) {
      mms.push_back(mm->id);
    }
  }
}

void Pager::Parts::sweep() {
  if (!needs_sweep) {
    return;
  }
  needs_sweep = false;
  const auto is_gone = [](const Attachment* attachment) { return attachment->gone; };
  for (const auto& [id, segment] : segments) {
    std::erase_if(segment->attachments, is_gone);
  }
  for (std::unique_ptr<Mm>& mm : mms) {
    if (mm != nullptr) {
      std::erase_if(mm->attachments, is_gone);
      if (mm->dropped) {
        mm.reset();
      }
    }
  }
  std::erase_if(attachments, [](const auto& attachment) { return attachment->gone; });
  old_segments.clear();
}

// `to` inherits the PTEs of `from` for the pages that it maps.
void Pager::Parts::copy_writers(Segment& segment, const Attachment& from, const Attachment& to) {
  for (auto& [number, chunk] : segment.chunks) {
    const uint64_t base = number * kChunkPages;
    if (base + kChunkPages <= to.first || base >= to.first + to.pages) {
      continue;
    }
    for (Page& page : *chunk) {
      page.writers |= (page.writers & from.bit()) != 0 ? to.bit() : 0;
    }
  }
}

Access Pager::access(SegmentId id, uint64_t n) const {
  const Segment* const segment = parts_->segment(id);
  const Page* const page = segment == nullptr ? nullptr : segment->find(n);
  return page == nullptr ? Access::kNone : page->access;
}

bool Pager::has_kept() const {
  return parts_->kept_count > 0;
}

}  // namespace kevre::dsm
