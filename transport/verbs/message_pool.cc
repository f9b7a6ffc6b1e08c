#include "transport/verbs/message_pool.h"

#include <algorithm>
#include <bit>
#include <new>

#include "base/check.h"
#include "base/log.h"
#include "transport/verbs/flow.h"

namespace kevre::transport::verbs {
namespace {
constexpr std::align_val_t kAlignment{64};
constexpr size_t kBouncesMax = 64;
constexpr size_t kAnswers = 512;
}  // namespace

Result<void> MessagePool::start() {
  budget_bytes_ = device_->limits().pool_bytes;
  const size_t bounces = std::clamp<size_t>(budget_bytes_ / 4 / kChunkBytes, 8, kBouncesMax);
  KEVRE_ASSIGN(const auto bounce_slab, device_->new_slab(bounces * kChunkBytes));
  for (size_t i = 0; i < bounces; ++i) {
    bounces_.push_back(bounce_slab.data() + i * kChunkBytes);
  }
  KEVRE_ASSIGN(const auto answer_slab, device_->new_slab(kAnswers * sizeof(uint64_t)));
  for (size_t i = 0; i < kAnswers; ++i) {
    answers_.push_back(reinterpret_cast<uint64_t*>(answer_slab.data()) + i);
  }
  bounce_key_ = device_->key_of(bounce_slab.data(), bounce_slab.size()).value_or(0);
  answer_key_ = device_->key_of(answer_slab.data(), answer_slab.size()).value_or(0);
  registered_bytes_ = bounce_slab.size() + answer_slab.size();
  return {};
}

MessagePool::~MessagePool() {
  for (auto& list : ordinary_) {
    for (std::byte* data : list) {
      ::operator delete(data - kHeadroom, kAlignment);
    }
  }
}

Buffer MessagePool::take(size_t bytes) {
  const unsigned bits =
      std::max(kSmallestBits, static_cast<unsigned>(std::bit_width(std::max<size_t>(bytes, 1) - 1)));
  KEVRE_CHECK(bits <= kLargestBits, "a buffer of {} bytes", bytes);
  const size_t capacity = size_t{1} << bits;
  auto& free = registered_[bits - kSmallestBits];
  if (!free.empty() || (bits <= kRegisteredBitsMax && add_slab(bits))) {
    std::byte* data = free.back();
    free.pop_back();
    return Buffer(data, bytes, capacity, this, &MessagePool::give_registered_back);
  }
  auto& ordinary = ordinary_[bits - kSmallestBits];
  std::byte* data = nullptr;
  if (!ordinary.empty()) {
    data = ordinary.back();
    ordinary.pop_back();
    ordinary_bytes_kept_ -= capacity;
  } else {
    data = static_cast<std::byte*>(::operator new(kHeadroom + capacity, kAlignment)) + kHeadroom;
  }
  return Buffer(data, bytes, capacity, this, &MessagePool::give_ordinary_back);
}

bool MessagePool::add_slab(unsigned bits) {
  const size_t block = kHeadroom + (size_t{1} << bits);
  // Small limits get small slabs: one class must not eat the budget of all.
  const size_t blocks = std::max<size_t>(std::min(kSlabBytes, budget_bytes_ / 8) / block, 1);
  if (registered_bytes_ + blocks * block > budget_bytes_) {
    return false;
  }
  const auto slab = device_->new_slab(blocks * block);
  if (!slab) {
    KEVRE_LOG_WARN("verbs: from now on some messages are copied once more: {}", slab.error().text);
    budget_bytes_ = registered_bytes_;
    return false;
  }
  registered_bytes_ += slab->size();
  auto& free = registered_[bits - kSmallestBits];
  for (size_t i = 0; i < blocks; ++i) {
    free.push_back(slab->data() + i * block + kHeadroom);
  }
  return true;
}

void MessagePool::give_registered_back(void* pool, std::byte* data, size_t capacity) {
  auto* self = static_cast<MessagePool*>(pool);
  self->registered_[static_cast<size_t>(std::bit_width(capacity - 1)) - kSmallestBits].push_back(data);
}

void MessagePool::give_ordinary_back(void* pool, std::byte* data, size_t capacity) {
  auto* self = static_cast<MessagePool*>(pool);
  if (self->ordinary_bytes_kept_ + capacity > kOrdinaryBytesKeptMax) {
    ::operator delete(data - kHeadroom, kAlignment);
    return;
  }
  self->ordinary_[static_cast<size_t>(std::bit_width(capacity - 1)) - kSmallestBits].push_back(data);
  self->ordinary_bytes_kept_ += capacity;
}

std::byte* MessagePool::take_bounce() {
  if (bounces_.empty()) {
    return nullptr;
  }
  std::byte* bounce = bounces_.back();
  bounces_.pop_back();
  return bounce;
}

uint64_t* MessagePool::take_answer() {
  if (answers_.empty()) {
    return nullptr;
  }
  uint64_t* answer = answers_.back();
  answers_.pop_back();
  return answer;
}

}  // namespace kevre::transport::verbs
