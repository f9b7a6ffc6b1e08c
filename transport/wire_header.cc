#include "transport/wire_header.h"

#include <bit>
#include <cstring>

#include "base/check.h"

namespace kevre::transport {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the wire is little-endian: add byte swaps for this machine");

struct Layout {  // as on the wire
  uint32_t magic;
  uint8_t kind;
  uint8_t service;
  uint16_t from;
  uint64_t tag;
  uint64_t from_link;
  uint64_t to_link;
  uint64_t sequence;
  uint32_t payload_bytes;
  uint16_t header_bytes;
  uint16_t to;
};
static_assert(sizeof(Layout) == kWireHeaderBytes && alignof(Layout) == 8);

bool kind_and_service_are_known(const Layout& wire) {
  if (wire.kind == static_cast<uint8_t>(WireKind::kReset)) {
    return wire.service == 0 && wire.header_bytes == 0 && wire.payload_bytes == 0;
  }
  return wire.kind == static_cast<uint8_t>(WireKind::kMessage) && wire.service >= 1 &&
         wire.service < kServices;
}

}  // namespace

void encode_wire_header(const WireHeader& header, std::byte* out) {
  KEVRE_DCHECK(header.header_bytes <= kHeaderBytesMax && header.payload_bytes <= kPayloadBytesMax);
  Layout wire{};
  wire.magic = kWireMagic;
  wire.kind = static_cast<uint8_t>(header.kind);
  wire.service = header.kind == WireKind::kReset ? uint8_t{0} : static_cast<uint8_t>(header.service);
  wire.from = header.from.value;
  wire.to = header.to.value;
  wire.tag = header.tag;
  wire.from_link = header.from_link;
  wire.to_link = header.to_link;
  wire.sequence = header.sequence;
  wire.payload_bytes = header.payload_bytes;
  wire.header_bytes = header.header_bytes;
  std::memcpy(out, &wire, sizeof wire);
}

std::optional<WireLengths> wire_lengths(std::span<const std::byte> head) {
  Layout wire;
  if (head.size() < sizeof wire) {
    return std::nullopt;
  }
  std::memcpy(&wire, head.data(), sizeof wire);
  if (wire.magic != kWireMagic || wire.header_bytes > kHeaderBytesMax ||
      wire.payload_bytes > kPayloadBytesMax) {
    return std::nullopt;
  }
  return WireLengths{wire.header_bytes, wire.payload_bytes};
}

WireDecoded decode_wire_header(std::span<const std::byte> head, size_t payload_bytes, uint64_t tag,
                               NodeId self) {
  WireDecoded decoded;
  if (head.size() < kWireHeaderBytes) {
    return decoded;
  }
  Layout wire;
  std::memcpy(&wire, head.data(), sizeof wire);
  if (wire.magic != kWireMagic) {
    decoded.verdict = WireVerdict::kBadMagic;
  } else if (wire.tag != tag) {
    decoded.verdict = WireVerdict::kBadTag;
  } else if (wire.header_bytes > kHeaderBytesMax || head.size() != kWireHeaderBytes + wire.header_bytes ||
             wire.payload_bytes != payload_bytes || payload_bytes > kPayloadBytesMax) {
    decoded.verdict = WireVerdict::kBadLength;
  } else if (wire.from == 0 || wire.from == self.value || wire.from_link == 0) {
    decoded.verdict = WireVerdict::kBadSender;
  } else if (wire.to != self.value) {
    decoded.verdict = WireVerdict::kBadAddress;
  } else if (!kind_and_service_are_known(wire)) {
    decoded.verdict = WireVerdict::kBadKind;
  } else {
    decoded.verdict = WireVerdict::kGood;
    decoded.header = {static_cast<WireKind>(wire.kind),
                      static_cast<Service>(wire.service),
                      NodeId(wire.from),
                      NodeId(wire.to),
                      wire.tag,
                      wire.from_link,
                      wire.to_link,
                      wire.sequence,
                      wire.payload_bytes,
                      wire.header_bytes};
    decoded.service_header = head.subspan(kWireHeaderBytes);
  }
  return decoded;
}

}  // namespace kevre::transport
