// MessagePool: buffers for messages in power-of-two classes out of registered memory, each with room in front
// for the headers, so that a message is one run of bytes and is sent from where it lies. Beyond the budget (a
// share of the memlock limit), and for classes above kRegisteredBytesMax, memory is ordinary and the sender
// copies it chunk by chunk. Registered memory is kept for good; of ordinary memory what is kept is bounded.
// Also the fixed pieces through which unregistered memory passes (bounces) and where atomics answer.
//
// Owns: the free buffers; the device owns the slabs. Buffers do not outlive the pool. Threads: the
// transport's. Tested with a device only, by the conformance suite.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "transport/transport.h"
#include "transport/verbs/device.h"
#include "transport/wire_header.h"

namespace kevre::transport::verbs {

inline constexpr size_t kHeadroom = 320;  // kHeadBytesMax, rounded up to cache lines
static_assert(kHeadroom >= kHeadBytesMax && kHeadroom % 64 == 0);

class MessagePool {
 public:
  explicit MessagePool(OpenDevice* device) : device_(device) {}
  ~MessagePool();
  MessagePool(const MessagePool&) = delete;
  MessagePool& operator=(const MessagePool&) = delete;

  Result<void> start();
  Buffer take(size_t bytes);  // kHeadroom bytes in front of data() are the holder's too

  // kChunkBytes each, registered; null: all are in use.
  std::byte* take_bounce();
  void give_bounce_back(std::byte* bounce) { bounces_.push_back(bounce); }
  uint32_t bounce_key() const { return bounce_key_; }
  // 8 bytes, registered; null: all are in use.
  uint64_t* take_answer();
  void give_answer_back(uint64_t* answer) { answers_.push_back(answer); }
  uint32_t answer_key() const { return answer_key_; }

 private:
  static constexpr unsigned kSmallestBits = 9;
  static constexpr unsigned kLargestBits = 26;
  static constexpr unsigned kRegisteredBitsMax = 22;
  static constexpr size_t kOrdinaryBytesKeptMax = size_t{64} << 20;
  static constexpr size_t kSlabBytes = size_t{1} << 20;

  bool add_slab(unsigned bits);
  static void give_registered_back(void* pool, std::byte* data, size_t capacity);
  static void give_ordinary_back(void* pool, std::byte* data, size_t capacity);

  OpenDevice* const device_;
  std::array<std::vector<std::byte*>, kLargestBits - kSmallestBits + 1> registered_, ordinary_;
  size_t registered_bytes_ = 0;
  size_t budget_bytes_ = 0;
  size_t ordinary_bytes_kept_ = 0;
  std::vector<std::byte*> bounces_;
  std::vector<uint64_t*> answers_;
  uint32_t bounce_key_ = 0;
  uint32_t answer_key_ = 0;
};

}  // namespace kevre::transport::verbs
