// Segment: a range of pages with one id and one policy. Values shared by the folder; no thread rules.
#pragma once

#include <cstdint>

#include "base/ids.h"

namespace kevre::dsm {

enum class Policy : uint8_t { kSequential = 0, kRelease = 1, kPrivate = 2 };

// What a node may do with its frame of a page.
enum class Access : uint8_t { kNone = 0, kRead = 1, kWrite = 2 };

struct PageRef {
  SegmentId segment;
  uint64_t page = 0;  // index in the segment
  friend constexpr auto operator<=>(const PageRef&, const PageRef&) = default;
};

// The view in which the segment was created: the upper half of its id; 0 when whoever numbers segments does not say.
// What died in an earlier view cannot have touched it, so its pages are zero without asking anyone (dsm/rebuild.cc).
constexpr ViewId born(SegmentId segment) { return ViewId(static_cast<uint32_t>(segment.value >> 32)); }

inline constexpr uint64_t kPagesMax = uint64_t{1} << 36;  // 256 TiB in a segment

}  // namespace kevre::dsm
