// The transport's own header, in front of the service header of every message between nodes (little-endian,
// fixed). It lets a receiver know a stranger: cluster tag, sender, addressee, and which incarnation of the
// link the message belongs to, so that a peer that connected again starts afresh instead of continuing an old
// numbering. Owns nothing; pure functions; any thread. Tested in tests/transport/wire_header_test.cc; fuzzed
// by tests/fuzz/transport_header_fuzz.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/ids.h"
#include "transport/transport.h"

namespace kevre::transport {

enum class WireKind : uint8_t {
  kMessage = 1,
  kReset = 2,  // "your link `to_link` is dead for me": the addressee reports the peer lost
};

struct WireHeader {
  WireKind kind = WireKind::kMessage;
  Service service = Service::kTest;
  NodeId from;
  NodeId to;
  uint64_t tag = 0;
  uint64_t from_link = 0;  // incarnation of the sender's link; grows with every connect() of the sender
  uint64_t to_link = 0;    // incarnation of the addressee's link as the sender knows it; 0: not known yet
  uint64_t sequence = 0;   // 0, 1, ... per from_link
  uint32_t payload_bytes = 0;
  uint16_t header_bytes = 0;  // of the service
};

inline constexpr size_t kWireHeaderBytes = 48;
inline constexpr uint32_t kWireMagic = 0x31545645;  // "EVT1"; the digit is the version of this layout
inline constexpr size_t kHeadBytesMax = kWireHeaderBytes + kHeaderBytesMax;

enum class WireVerdict : uint8_t {
  kGood,
  kBadLength,   // truncated, or the lengths inside do not add up to what arrived
  kBadMagic,    // not ours, or another version
  kBadTag,      // another cluster
  kBadSender,   // from nobody, or from ourselves
  kBadAddress,  // meant for another node
  kBadKind,     // kind or service out of range
};

struct WireDecoded {
  WireVerdict verdict = WireVerdict::kBadLength;
  WireHeader header;                          // meaningful only when kGood
  std::span<const std::byte> service_header;  // within `head`
};

// `out` has room for kWireHeaderBytes.
void encode_wire_header(const WireHeader& header, std::byte* out);

// What a wire header says about the lengths, checked against their bounds but nothing else; empty: too short,
// not ours or out of bounds. For a backend that cuts messages in pieces.
struct WireLengths {
  uint16_t header_bytes = 0;
  uint32_t payload_bytes = 0;
};
std::optional<WireLengths> wire_lengths(std::span<const std::byte> head);

// `head` is the wire header followed by the service header; `payload_bytes` is what arrived beside it.
WireDecoded decode_wire_header(std::span<const std::byte> head, size_t payload_bytes, uint64_t tag,
                               NodeId self);

}  // namespace kevre::transport
