// Histogram: latencies in log-linear buckets (32 per power of two: an error below 3.2 %), fixed size, no allocation,
// so that the fault path may record into it. Threads: one writer; a reader on another thread sees approximate counts.
// Tested in tests/base/histogram_test.cc.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace kevre {

class Histogram {
 public:
  void record(int64_t value_ns) {
    const uint64_t value = value_ns < 0 ? 0 : static_cast<uint64_t>(value_ns);
    ++buckets_[index(value)];
    ++count_;
    min_ = count_ == 1 || value < min_ ? value : min_;
    max_ = value > max_ ? value : max_;
  }

  uint64_t count() const { return count_; }
  uint64_t min_ns() const { return min_; }
  uint64_t max_ns() const { return max_; }

  // The value below which `fraction` (0..1) of the records lie; 0 when empty.
  uint64_t percentile_ns(double fraction) const {
    const uint64_t rank = static_cast<uint64_t>(fraction * static_cast<double>(count_));
    uint64_t seen = 0;
    for (size_t i = 0; i < buckets_.size(); ++i) {
      seen += buckets_[i];
      if (seen > rank) {
        return middle(i);
      }
    }
    return max_;
  }

  void merge(const Histogram& other) {
    for (size_t i = 0; i < buckets_.size(); ++i) {
      buckets_[i] += other.buckets_[i];
    }
    if (other.count_ > 0) {
      min_ = count_ == 0 || other.min_ < min_ ? other.min_ : min_;
      max_ = other.max_ > max_ ? other.max_ : max_;
      count_ += other.count_;
    }
  }

 private:
  static constexpr unsigned kSubBits = 5;
  static size_t index(uint64_t value) {
    if (value < (1u << kSubBits)) {
      return static_cast<size_t>(value);
    }
    const unsigned shift = static_cast<unsigned>(std::bit_width(value)) - kSubBits - 1;
    const size_t i = (static_cast<size_t>(shift) << kSubBits) + static_cast<size_t>(value >> shift);
    return i < kBuckets ? i : kBuckets - 1;
  }
  static uint64_t middle(size_t i) {
    if (i < (1u << kSubBits)) {
      return i;
    }
    const unsigned shift = static_cast<unsigned>(i >> kSubBits) - 1;
    const uint64_t low = (static_cast<uint64_t>(i) - (static_cast<uint64_t>(shift) << kSubBits)) << shift;
    return low + ((uint64_t{1} << shift) >> 1);
  }
  static constexpr size_t kBuckets = (64 - kSubBits) << kSubBits;

  std::array<uint64_t, kBuckets> buckets_{};
  uint64_t count_ = 0;
  uint64_t min_ = 0;
  uint64_t max_ = 0;
};

}  // namespace kevre
