// Bytes from the network to the transport's header decoder: whatever they are, it answers with a verdict, and
// what it calls good is within bounds and encodes to the same bytes again.
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "transport/wire_header.h"

using namespace kevre::transport;  // NOLINT: one function

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) {
    return 0;
  }
  uint32_t payload_bytes = 0;
  std::memcpy(&payload_bytes, data, sizeof payload_bytes);
  std::vector<std::byte> head(size - 4);
  if (!head.empty()) {
    std::memcpy(head.data(), data + 4, head.size());
  }
  uint64_t tag = 0;  // the tag is secret on the wire; here it always fits, so that the fuzzer gets past it
  if (head.size() >= 16) {
    std::memcpy(&tag, head.data() + 8, sizeof tag);
  }
  const kevre::NodeId self(7);
  const WireDecoded decoded = decode_wire_header(head, payload_bytes, tag, self);
  if (decoded.verdict != WireVerdict::kGood) {
    return 0;
  }
  const WireHeader& header = decoded.header;
  const bool sane = header.from != self && header.from != kevre::kNoNode && header.to == self &&
                    header.header_bytes <= kHeaderBytesMax && header.payload_bytes == payload_bytes &&
                    header.payload_bytes <= kPayloadBytesMax &&
                    decoded.service_header.size() == header.header_bytes &&
                    static_cast<size_t>(header.service) < kServices;
  if (!sane) {
    std::abort();
  }
  std::array<std::byte, kWireHeaderBytes> again;
  encode_wire_header(header, again.data());
  if (std::memcmp(again.data(), head.data(), again.size()) != 0) {
    std::abort();
  }
  return 0;
}
