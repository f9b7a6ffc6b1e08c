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

inline constexpr uint64_t kPagesMax = uint64_t{1} << 36;  // 256 TiB in a segment

}  // namespace kevre::dsm
