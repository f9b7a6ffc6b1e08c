// The arithmetic of a connection, without any device: how many chunks may be on their way (SendWindow at the
// sender, ReceiveWindow at the receiver) and how chunks become messages again (Assembly).
//
// A message is its wire header, service header and payload in one run of bytes, cut into chunks of
// kChunkBytes, the last one shorter; each chunk takes one of the receive buffers that the receiver promised.
// RC keeps chunks in order, so a chunk needs no header of its own: what is missing of the message is known
// from its beginning. Credits are counted modulo 2^32: the receiver tells how many buffers it has freed since
// the beginning.
//
// Owns: the bytes of an unfinished message (its memory counts against nothing but kPayloadBytesMax, and only
// a sender who knows the cluster tag can begin one). Threads: the transport's. Tested in
// tests/transport/verbs_flow_test.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "transport/buffer_pool.h"
#include "transport/wire_header.h"

namespace kevre::transport::verbs {

inline constexpr size_t kChunkBytes = 16384;

class SendWindow {
 public:
  void open(uint32_t window) { limit_ = window; }
  bool may_send() const { return sent_ != limit_; }
  void count_sent() { ++sent_; }
  // The peer has freed `total` buffers by now; false: it claims more than we ever filled.
  bool freed(uint32_t total) {
    if (total - freed_ > sent_ - freed_) {
      return false;
    }
    limit_ += total - freed_;
    freed_ = total;
    return true;
  }

 private:
  uint32_t sent_ = 0, limit_ = 0, freed_ = 0;
};

class ReceiveWindow {
 public:
  explicit ReceiveWindow(uint32_t window) : window_(window) {}
  uint32_t window() const { return window_; }
  // False: the sender used a buffer that was not promised to it.
  bool count_arrived() { return ++arrived_ - told_ <= window_; }
  void count_freed() { ++freed_; }
  // What to tell the sender; only when half of the window is worth telling, and then once.
  std::optional<uint32_t> to_tell() {
    if (freed_ - told_ < (window_ + 1) / 2) {
      return std::nullopt;
    }
    told_ = freed_;
    return told_;
  }

 private:
  uint32_t window_, arrived_ = 0, freed_ = 0, told_ = 0;
};

class Assembly {
 public:
  enum class Step : uint8_t {
    kMore,     // the message goes on
    kMessage,  // header(), service_header() and payload() are valid until the next add(), as long as the
               // chunk is
    kBad,      // not what a correct sender writes: give the connection up
  };
  Assembly(BufferPool* pool, uint64_t tag, NodeId self) : pool_(pool), tag_(tag), self_(self) {}
  Step add(std::span<const std::byte> chunk);
  const WireHeader& header() const { return header_; }
  std::span<const std::byte> service_header() const { return service_header_; }
  std::span<const std::byte> payload() const { return payload_; }

 private:
  Step begin(std::span<const std::byte> chunk);

  BufferPool* const pool_;
  const uint64_t tag_;
  const NodeId self_;
  WireHeader header_;
  std::span<const std::byte> service_header_, payload_;
  Buffer message_;      // service header and payload of a message of several chunks
  size_t present_ = 0;  // bytes of message_ that have come; == its size: no message is under way
};

}  // namespace kevre::transport::verbs
