// Shelf: clean pages of this node, copied to memory that peers may read one-sided. A page that a program maps cannot be
// registered (its frame is punched out of the memfd when the page moves: the device would keep the old one), so what
// others may read are copies.
//
// A slot is a header and the page. Slots come in groups of kGroupPages, one for each page of a window, so that one read
// fetches neighbours; a window has one group where it may lie, and evicts what lay there.
//
// A reader is not stopped from reading a slot that is being changed, and nothing is assumed of the order in which
// it gets the bytes: the header's checksum is over all bytes of the page and seeded with the rest of the header, each
// opening has its own number, and a slot that is closed says so in its header. So decode() answers bytes only when they are
// those of one opening, and when the header was read before that opening was closed.
//
// Owns the memory. Threads: one owner; readers are anywhere. Tested in tests/dsm/shelf_test.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "dsm/segment.h"

namespace kevre::dsm {

class Shelf {
 public:
  static constexpr size_t kHeaderBytes = 64;
  static constexpr size_t kSlotBytes = kHeaderBytes + kPageBytes;
  static constexpr uint64_t kGroupPages = 64;
  static constexpr size_t kGroupBytes = kSlotBytes * kGroupPages;
  static constexpr uint32_t kGroupsMax = 1u << 16;

  // As much memory as fits into `bytes`, at least one group. kExhausted: there is no memory.
  static Result<std::unique_ptr<Shelf>> create(size_t bytes);
  ~Shelf();
  Shelf(const Shelf&) = delete;
  Shelf& operator=(const Shelf&) = delete;

  std::span<std::byte> memory() { return memory_; }
  uint32_t groups() const { return groups_; }

  void open(SegmentId segment, uint64_t page, std::span<const std::byte> bytes);
  // When it returns, reads that begin do not get the page.
  void close(SegmentId segment, uint64_t page);
  void close_segment(SegmentId segment);
  bool is_open(SegmentId segment, uint64_t page) const;

  // Where a slot is in the memory of a shelf with so many groups.
  static uint64_t offset_of(SegmentId segment, uint64_t page, uint32_t groups);
  // What a reader got of this page's slot; empty when it is not the page.
  static std::span<const std::byte> decode(SegmentId segment, uint64_t page, std::span<const std::byte> slot);

 private:
  struct Header;
  explicit Shelf(std::span<std::byte> memory, uint32_t groups)
      : memory_(memory), groups_(groups), open_(memory.size() / kSlotBytes) {}
  size_t index_of(SegmentId segment, uint64_t page) const {
    return offset_of(segment, page, groups_) / kSlotBytes;
  }
  Header& header(size_t index) const;

  std::span<std::byte> memory_;
  uint32_t groups_ = 0;
  uint64_t openings_ = 0;
  std::vector<PageRef> open_;  // by slot: what is open there; segment 0: nothing. So that closing looks at no header
};

}  // namespace kevre::dsm
