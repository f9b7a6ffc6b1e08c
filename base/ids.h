// Strong identifiers: no bare int names a node, a segment or a view in an interface.
// Threads: any (values). Tested in tests/base/ids_test.cc.
#pragma once

#include <fmt/format.h>

#include <compare>
#include <cstdint>
#include <functional>

namespace kevre {

template <class Tag, class Rep>
struct Id {
  using rep = Rep;
  Rep value = 0;
  constexpr Id() = default;
  constexpr explicit Id(Rep v) : value(v) {}
  friend constexpr auto operator<=>(Id, Id) = default;
};

using NodeId = Id<struct NodeTag, uint16_t>;        // 1, 2, ... in order of joining; 0 = no node; never reused
using ViewId = Id<struct ViewTag, uint32_t>;        // numbered list of live nodes; 0 = none yet
using SegmentId = Id<struct SegmentTag, uint64_t>;  // cluster-wide, never reused; 0 = none
using Epoch = Id<struct EpochTag, uint32_t>;        // counts checkpoints

inline constexpr NodeId kNoNode{0};
inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kChunkPages = 512;  // pages that share a home

using Nanos = int64_t;  // durations and CLOCK_MONOTONIC instants, nanoseconds

}  // namespace kevre

template <class Tag, class Rep>
struct std::hash<kevre::Id<Tag, Rep>> {
  size_t operator()(kevre::Id<Tag, Rep> id) const noexcept { return std::hash<Rep>{}(id.value); }
};

template <class Tag, class Rep>
struct fmt::formatter<kevre::Id<Tag, Rep>> : fmt::formatter<Rep> {
  template <class Context>
  auto format(kevre::Id<Tag, Rep> id, Context& context) const {
    return fmt::formatter<Rep>::format(id.value, context);
  }
};
