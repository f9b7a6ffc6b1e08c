// Any bytes as what a peer says of its shelf, and as what was read from there: refused, or what is then read lies inside
// the memory that the peer told of.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/check.h"
#include "dsm/fetcher.h"
#include "dsm/shelf.h"

using kevre::SegmentId;
using kevre::dsm::Shelf;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes{reinterpret_cast<const std::byte*>(data), size};
  uint64_t about[2] = {};
  std::memcpy(about, data, size < sizeof about ? size : sizeof about);
  if (const auto message = kevre::dsm::decode_shelf(bytes, 0)) {
    const uint64_t offset = Shelf::offset_of(SegmentId{about[0]}, about[1], message->groups);
    KEVRE_CHECK(offset + Shelf::kSlotBytes <= message->groups * uint64_t{Shelf::kGroupBytes});
  }
  const auto page = Shelf::decode(SegmentId{about[0]}, about[1], bytes);
  KEVRE_CHECK(page.empty() || page.size() == kevre::kPageBytes);
  return 0;
}
