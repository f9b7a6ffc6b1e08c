// PidRange: the pids that this node's programs get. Nodes have disjoint ranges, so that a pid means the same process
// everywhere. The kernel allocates upwards from ns_last_pid; the guard sets it back before it leaves the range.
// That is no proof: a burst of more than `margin` forks between two looks (20 ms) could leave the range; the margin is an
// eighth of the range and at least 64. Works in a pid namespace of its own only (kevred refuses ranges elsewhere).
// Threads: one owner. Tested in tests/cluster/pid_range_test.cc.
#pragma once

#include <cstdint>

#include "base/event_loop.h"
#include "base/result.h"

namespace kevre::cluster {

class PidRange {
 public:
  // Range of node `index` (1, 2, ...) of `nodes`: 65,536 pids each where the kernel counts pids per namespace up to
  // 4,194,304 (Linux 6.14), else an equal part of pid_max above 300.
  static PidRange divide(uint32_t index, uint32_t nodes);
  PidRange(uint32_t first, uint32_t last) : first_(first), last_(last) {}

  uint32_t first() const { return first_; }
  uint32_t last() const { return last_; }

  // The next process of this pid namespace gets first(). Needs the right to write ns_last_pid.
  Result<void> enter() const;
  // Looks every 20 ms from now on.
  void guard(EventLoop* loop) const;

 private:
  void look() const;
  uint32_t first_, last_;
};

}  // namespace kevre::cluster
