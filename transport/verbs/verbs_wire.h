// What the verbs backend says to its like, beside messages (wire_header.h): addresses, the private data of a
// connection's request and answer, and the keys of regions. Fixed layouts, little-endian; nothing of it is
// trusted: decoders check magic, length and every field that has bounds. Pure functions; any thread. Tested
// in tests/transport/verbs_wire_test.cc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/ids.h"
#include "base/result.h"
#include "transport/transport.h"
#include "transport/verbs/probe.h"

namespace kevre::transport::verbs {

// Where a transport listens.
struct Endpoint {
  NodeId node;
  uint16_t port = 0;
  Subnet subnet;
};
Address encode_address(const Endpoint& endpoint);
Result<Endpoint> decode_address(std::span<const std::byte> address);  // kCorrupt

// With a connection's request: who we are and which incarnation of our link it serves.
struct Hello {
  NodeId from, to;
  uint64_t tag = 0;
  uint64_t from_link = 0;
};
inline constexpr size_t kHelloBytes = 32;  // rdma_cm carries at most 56 with a request
std::array<std::byte, kHelloBytes> encode_hello(const Hello& hello);
std::optional<Hello> decode_hello(std::span<const std::byte> data);  // may be followed by padding

// With the answer: how many receive buffers the peer keeps for us.
struct Welcome {
  uint16_t window = 0;       // 1..kWindowMax
  uint32_t chunk_bytes = 0;  // of each
  bool atomics = false;      // the peer's device has them
};

// With a refusal: why, one byte.
enum class Refusal : uint8_t { kUnknown = 0, kStranger = 1, kNoMemory = 2 };

inline constexpr uint16_t kWindowMax = 1024;
inline constexpr size_t kWelcomeBytes = 16;
std::array<std::byte, kWelcomeBytes> encode_welcome(const Welcome& welcome);
std::optional<Welcome> decode_welcome(std::span<const std::byte> data);

// A region that peers may operate on.
struct Region {
  uint64_t address = 0;
  uint64_t bytes = 0;
  uint32_t rkey = 0;
  NodeId owner;
};
RegionKey encode_region(const Region& region);
std::optional<Region> decode_region(const RegionKey& key);
// The remote address of `bytes` at `offset`, when they lie within the region.
std::optional<uint64_t> within(const Region& region, uint64_t offset, uint64_t bytes);

}  // namespace kevre::transport::verbs
