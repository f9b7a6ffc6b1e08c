#include "transport/buffer_pool.h"

#include <algorithm>
#include <bit>
#include <new>

#include "base/check.h"

namespace kevre::transport {
namespace {
constexpr std::align_val_t kAlignment{64};
}

BufferPool::~BufferPool() {
  for (auto& list : free_) {
    for (std::byte* data : list) {
      ::operator delete(data, kAlignment);
    }
  }
}

Buffer BufferPool::take(size_t bytes) {
  const unsigned bits =
      std::max(kSmallestBits, static_cast<unsigned>(std::bit_width(std::max<size_t>(bytes, 1) - 1)));
  KEVRE_CHECK(bits <= kLargestBits, "a buffer of {} bytes", bytes);
  const size_t capacity = size_t{1} << bits;
  auto& list = free_[bits - kSmallestBits];
  std::byte* data = nullptr;
  if (!list.empty()) {
    data = list.back();
    list.pop_back();
    kept_bytes_ -= capacity;
  } else {
    ++allocations_;
    data = static_cast<std::byte*>(::operator new(capacity, kAlignment));
  }
  return Buffer(data, bytes, capacity, this, &BufferPool::give_back);
}

void BufferPool::give_back(void* pool, std::byte* data, size_t capacity) {
  auto* self = static_cast<BufferPool*>(pool);
  if (self->kept_bytes_ + capacity > kKeptBytesMax) {
    ::operator delete(data, kAlignment);
    return;
  }
  self->free_[static_cast<size_t>(std::bit_width(capacity - 1)) - kSmallestBits].push_back(data);
  self->kept_bytes_ += capacity;
}

}  // namespace kevre::transport
