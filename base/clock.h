// The one clock: CLOCK_MONOTONIC in nanoseconds. State machines never read it; their drivers do.
#pragma once

#include <ctime>

#include "base/ids.h"

namespace kevre {

inline constexpr Nanos kMicrosecond = 1000;
inline constexpr Nanos kMillisecond = 1000 * kMicrosecond;
inline constexpr Nanos kSecond = 1000 * kMillisecond;

inline Nanos now_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<Nanos>(t.tv_sec) * kSecond + t.tv_nsec;
}

}  // namespace kevre
