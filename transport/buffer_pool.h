// BufferPool: message buffers in power-of-two classes, kept after use so that a warmed-up transport does not
// call malloc. What is kept is bounded (kKeptBytesMax); beyond it a returned buffer is freed. Owns the free
// buffers; buffers given out keep a pointer to the pool, so the pool outlives them: a transport holds it
// until every Buffer came back (shared ownership is not needed because a Buffer may not outlive its
// transport). Threads: the transport's. Tested in tests/transport/buffer_pool_test.cc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "transport/transport.h"

namespace kevre::transport {

class BufferPool {
 public:
  static constexpr size_t kKeptBytesMax = size_t{192} << 20;

  BufferPool() = default;
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  Buffer take(size_t bytes);  // 64-byte aligned; `bytes` at most kPayloadBytesMax + kHeaderBytesMax
  size_t kept_bytes() const { return kept_bytes_; }
  uint64_t allocations() const { return allocations_; }

 private:
  static constexpr unsigned kSmallestBits = 9;
  static constexpr unsigned kLargestBits = 27;
  static void give_back(void* pool, std::byte* data, size_t capacity);

  std::array<std::vector<std::byte*>, kLargestBits - kSmallestBits + 1> free_;
  size_t kept_bytes_ = 0;
  uint64_t allocations_ = 0;
};

}  // namespace kevre::transport
