// Bytes from the network to the verbs backend: private data of connections, addresses, region keys, and
// chunks that claim to be messages. Whatever they are, they are refused or within bounds, and no chunk makes
// the reassembly keep more than it announced.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "transport/verbs/flow.h"
#include "transport/verbs/verbs_wire.h"

using namespace kevre;                    // NOLINT: two functions
using namespace kevre::transport;         // NOLINT
using namespace kevre::transport::verbs;  // NOLINT

namespace {

void require(bool condition) {
  if (!condition) {
    std::abort();
  }
}

void decode_all(std::span<const std::byte> bytes) {
  if (const auto endpoint = decode_address(bytes)) {
    require(endpoint->port != 0 && endpoint->subnet.prefix <= 32);
  }
  if (const auto hello = decode_hello(bytes)) {
    require(hello->from.value != 0 && hello->from_link != 0);
  }
  if (const auto welcome = decode_welcome(bytes)) {
    require(welcome->window >= 1 && welcome->window <= kWindowMax);
  }
  RegionKey key;
  key.size = static_cast<uint16_t>(std::min(bytes.size(), key.bytes.size()));
  std::copy_n(bytes.begin(), key.size, key.bytes.begin());
  if (const auto region = decode_region(key)) {
    require(region->address + region->bytes >= region->address);
  }
}

}  // namespace

// Two bytes of length in front of each chunk; the first byte says whether the first one is made to look like
// a message.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr uint64_t kTag = 0x4242;
  if (size == 0) {
    return 0;
  }
  std::vector<std::byte> bytes(size);
  std::memcpy(bytes.data(), data, size);
  decode_all(bytes);
  BufferPool pool;
  Assembly assembly(&pool, kTag, NodeId(2));
  for (size_t at = 1; at + 2 <= size;) {
    const size_t wanted = static_cast<size_t>(data[at]) << 8 | data[at + 1];
    at += 2;
    std::vector<std::byte> chunk(std::min({wanted, kChunkBytes, size - at}));
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), chunk.size(), chunk.begin());
    at += chunk.size();
    if ((data[0] & 1) != 0 && chunk.size() >= kWireHeaderBytes) {
      WireHeader wire;
      wire.from = NodeId(1);
      wire.to = NodeId(2);
      wire.tag = kTag;
      wire.from_link = 1;
      wire.header_bytes = static_cast<uint16_t>(data[0] >> 1);
      wire.payload_bytes = static_cast<uint32_t>(chunk[0]) << 12;
      encode_wire_header(wire, chunk.data());
    }
    const auto step = assembly.add(chunk);
    if (step == Assembly::Step::kBad) {
      break;
    }
    if (step == Assembly::Step::kMessage) {
      require(assembly.payload().size() == assembly.header().payload_bytes);
      require(assembly.service_header().size() == assembly.header().header_bytes);
      volatile unsigned sum = 0;  // every byte is readable
      for (const std::byte byte : assembly.payload()) {
        sum = sum + static_cast<unsigned>(byte);
      }
    }
  }
  return 0;
}
