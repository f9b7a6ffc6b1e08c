#include "transport/wire_header.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace kevre::transport {
namespace {

constexpr uint64_t kTag = 0x1122334455667788u;
constexpr NodeId kSelf{3};

WireHeader message() {
  WireHeader header;
  header.service = Service::kDsm;
  header.from = NodeId(9);
  header.to = kSelf;
  header.tag = kTag;
  header.from_link = 77;
  header.to_link = 78;
  header.sequence = 79;
  header.payload_bytes = 100;
  header.header_bytes = 16;
  return header;
}

std::vector<std::byte> encoded(const WireHeader& header) {
  std::vector<std::byte> bytes(kWireHeaderBytes + header.header_bytes);
  encode_wire_header(header, bytes.data());
  return bytes;
}

TEST(WireHeader, WhatWasEncodedIsDecoded) {
  const auto bytes = encoded(message());
  const WireDecoded decoded = decode_wire_header(bytes, 100, kTag, kSelf);
  ASSERT_EQ(decoded.verdict, WireVerdict::kGood);
  EXPECT_EQ(decoded.header.service, Service::kDsm);
  EXPECT_EQ(decoded.header.from, NodeId(9));
  EXPECT_EQ(decoded.header.from_link, 77u);
  EXPECT_EQ(decoded.header.to_link, 78u);
  EXPECT_EQ(decoded.header.sequence, 79u);
  EXPECT_EQ(decoded.service_header.size(), 16u);
  EXPECT_EQ(decoded.service_header.data(), bytes.data() + kWireHeaderBytes);
}

TEST(WireHeader, EveryTruncationIsRefused) {
  const auto bytes = encoded(message());
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_NE(decode_wire_header(std::span(bytes).first(length), 100, kTag, kSelf).verdict,
              WireVerdict::kGood)
        << length;
  }
}

TEST(WireHeader, LengthsThatDoNotAddUpAreRefused) {
  const auto bytes = encoded(message());
  EXPECT_EQ(decode_wire_header(bytes, 99, kTag, kSelf).verdict, WireVerdict::kBadLength);
  EXPECT_EQ(decode_wire_header(bytes, 101, kTag, kSelf).verdict, WireVerdict::kBadLength);
  std::vector<std::byte> longer = bytes;
  longer.push_back({});
  EXPECT_EQ(decode_wire_header(longer, 100, kTag, kSelf).verdict, WireVerdict::kBadLength);
}

TEST(WireHeader, StrangersAreToldApartByWhatIsWrong) {
  EXPECT_EQ(decode_wire_header(encoded(message()), 100, kTag + 1, kSelf).verdict, WireVerdict::kBadTag);
  EXPECT_EQ(decode_wire_header(encoded(message()), 100, kTag, NodeId(4)).verdict, WireVerdict::kBadAddress);
  EXPECT_EQ(decode_wire_header(encoded(message()), 100, kTag, NodeId(9)).verdict, WireVerdict::kBadSender);
  auto bytes = encoded(message());
  bytes[0] ^= std::byte{1};
  EXPECT_EQ(decode_wire_header(bytes, 100, kTag, kSelf).verdict, WireVerdict::kBadMagic);
  WireHeader nobody = message();
  nobody.from = kNoNode;
  EXPECT_EQ(decode_wire_header(encoded(nobody), 100, kTag, kSelf).verdict, WireVerdict::kBadSender);
  WireHeader no_link = message();
  no_link.from_link = 0;
  EXPECT_EQ(decode_wire_header(encoded(no_link), 100, kTag, kSelf).verdict, WireVerdict::kBadSender);
  for (const uint8_t service : {uint8_t{0}, static_cast<uint8_t>(kServices), uint8_t{255}}) {
    bytes = encoded(message());
    bytes[5] = std::byte{service};
    EXPECT_EQ(decode_wire_header(bytes, 100, kTag, kSelf).verdict, WireVerdict::kBadKind) << int{service};
  }
}

TEST(WireHeader, AResetCarriesNothing) {
  WireHeader reset = message();
  reset.kind = WireKind::kReset;
  reset.payload_bytes = 0;
  reset.header_bytes = 0;
  EXPECT_EQ(decode_wire_header(encoded(reset), 0, kTag, kSelf).verdict, WireVerdict::kGood);
  reset.header_bytes = 16;
  EXPECT_EQ(decode_wire_header(encoded(reset), 0, kTag, kSelf).verdict, WireVerdict::kBadKind);
}

}  // namespace
}  // namespace kevre::transport
