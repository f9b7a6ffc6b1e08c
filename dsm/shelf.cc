#include "dsm/shelf.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/check.h"

namespace kevre::dsm {

struct Shelf::Header {
  uint64_t state = 0;
  SegmentId segment;
  uint64_t page = 0;
  uint64_t opening = 0;
  uint64_t checksum = 0;
  uint64_t reserved[3] = {};
};

namespace {

constexpr uint64_t kOpen = 0x6e65706f'65676170;  // anything else is closed

uint64_t checksum(SegmentId segment, uint64_t page, uint64_t opening, const std::byte* bytes) {
  const uint64_t about[3] = {segment.value, page, opening};
  return XXH3_64bits_withSeed(bytes, kPageBytes, XXH3_64bits(about, sizeof about));
}

// The state is written whole while others may read it: from here to the end of the function nothing moves across.
void set_state(uint64_t* state, uint64_t value) {
  std::atomic_ref<uint64_t>(*state).store(value, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

}  // namespace

Result<std::unique_ptr<Shelf>> Shelf::create(size_t bytes) {
  static_assert(sizeof(Header) == kHeaderBytes);
  const auto groups = static_cast<uint32_t>(std::clamp<size_t>(bytes / kGroupBytes, 1, kGroupsMax));
  const size_t size = size_t{groups} * kGroupBytes;
  void* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return fail(Errc::kExhausted, "{} bytes for pages that peers may read: {}", size, std::strerror(errno));
  }
  // A program that this process forks must not take a share of it: a write would then go to another frame than the one
  // that the device reads.
  ::madvise(memory, size, MADV_DONTFORK);
  return std::unique_ptr<Shelf>(new Shelf({static_cast<std::byte*>(memory), size}, groups));
}

Shelf::~Shelf() {
  ::munmap(memory_.data(), memory_.size());
}

// Windows that follow each other lie in groups that follow each other.
uint64_t Shelf::offset_of(SegmentId segment, uint64_t page, uint32_t groups) {
  const uint64_t start = (segment.value * 0x9e3779b97f4a7c15ull) >> 32;
  const uint64_t group = (start + page / kGroupPages) % groups;
  return group * kGroupBytes + page % kGroupPages * kSlotBytes;
}

Shelf::Header& Shelf::header(size_t index) const {
  return *reinterpret_cast<Header*>(memory_.data() + index * kSlotBytes);
}

void Shelf::open(SegmentId segment, uint64_t page, std::span<const std::byte> bytes) {
  KEVRE_CHECK(bytes.size() == kPageBytes, "a page of {} bytes", bytes.size());
  const size_t index = index_of(segment, page);
  Header& at = header(index);
  set_state(&at.state, 0);
  at.segment = segment;
  at.page = page;
  at.opening = ++openings_;
  std::memcpy(memory_.data() + index * kSlotBytes + kHeaderBytes, bytes.data(), kPageBytes);
  at.checksum = checksum(segment, page, at.opening, bytes.data());
  set_state(&at.state, kOpen);
  open_[index] = {segment, page};
}

void Shelf::close(SegmentId segment, uint64_t page) {
  const size_t index = index_of(segment, page);
  if (open_[index] == PageRef{segment, page}) {
    set_state(&header(index).state, 0);
    open_[index] = {};
  }
}

void Shelf::close_segment(SegmentId segment) {
  for (size_t index = 0; index < open_.size(); ++index) {
    if (open_[index].segment == segment) {
      set_state(&header(index).state, 0);
      open_[index] = {};
    }
  }
}

bool Shelf::is_open(SegmentId segment, uint64_t page) const {
  return open_[index_of(segment, page)] == PageRef{segment, page};
}

std::span<const std::byte> Shelf::decode(SegmentId segment, uint64_t page, std::span<const std::byte> slot) {
  if (slot.size() != kSlotBytes) {
    return {};
  }
  Header header;
  std::memcpy(static_cast<void*>(&header), slot.data(), sizeof header);
  if (header.state != kOpen || header.segment != segment || header.page != page ||
      header.checksum != checksum(segment, page, header.opening, slot.data() + kHeaderBytes)) {
    return {};
  }
  return slot.subspan(kHeaderBytes);
}

}  // namespace kevre::dsm
