#include "dsm/protocol.h"

#include <gtest/gtest.h>

namespace kevre::dsm {
namespace {

using Kind = PageMessage::Kind;

Result<PageMessage> decoded(const PageMessage& m, size_t payload_bytes = 0) {
  return decode({reinterpret_cast<const std::byte*>(&m), sizeof m}, payload_bytes);
}

PageMessage read_request() {
  PageMessage m;
  m.kind = Kind::kReadRequest;
  m.view = ViewId(3);
  m.segment = SegmentId(9);
  m.page = 17;
  m.mask = 5;
  return m;
}

PageMessage grant() {
  PageMessage m = read_request();
  m.kind = Kind::kGrant;
  m.access = Access::kRead;
  return m;
}

void expect_refused(const PageMessage& m, size_t payload_bytes = 0) {
  const Result<PageMessage> result = decoded(m, payload_bytes);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::kCorrupt);
  EXPECT_FALSE(result.error().text.empty());
}

TEST(PageMessage, WhatIsSentIsRead) {
  const Result<PageMessage> m = decoded(read_request());
  ASSERT_TRUE(m.has_value()) << m.error().text;
  EXPECT_EQ(m->page, 17u);
  EXPECT_EQ(m->mask, 5u);
}

TEST(PageMessage, BytesMustBeThoseOfTheMask) {
  EXPECT_TRUE(decoded(grant(), 2 * kPageBytes).has_value());
  expect_refused(grant(), kPageBytes);
  expect_refused(grant(), 2 * kPageBytes + 1);
  expect_refused(read_request(), kPageBytes);
  PageMessage zero = grant();
  zero.flags = PageMessage::kZero;
  EXPECT_TRUE(decoded(zero).has_value());
  expect_refused(zero, 2 * kPageBytes);
}

TEST(PageMessage, HeadersOfAnotherLengthOrVersionAreRefused) {
  const PageMessage m = read_request();
  EXPECT_FALSE(decode({reinterpret_cast<const std::byte*>(&m), sizeof m - 1}, 0).has_value());
  EXPECT_FALSE(decode({}, 0).has_value());
  PageMessage other = m;
  other.version = 2;
  expect_refused(other);
}

TEST(PageMessage, UnknownKindsAndAccessesAreRefused) {
  PageMessage m = read_request();
  m.kind = static_cast<Kind>(0);
  expect_refused(m);
  m.kind = static_cast<Kind>(17);
  expect_refused(m);
  m = grant();
  m.access = static_cast<Access>(3);
  expect_refused(m, 2 * kPageBytes);
  m.access = Access::kNone;
  expect_refused(m, 2 * kPageBytes);
}

TEST(PageMessage, FieldsThatAKindDoesNotUseMustBeZero) {
  PageMessage m = read_request();
  m.flags = PageMessage::kZero;
  expect_refused(m);
  m = read_request();
  m.mask2 = 1;
  expect_refused(m);
  m = read_request();
  m.requester = NodeId(1);
  expect_refused(m);
  m = read_request();
  m.reserved = 1;
  expect_refused(m);
  m = read_request();
  m.kind = Kind::kFlush;
  expect_refused(m);
}

TEST(PageMessage, PagesMustBeInTheSegmentAndInOneChunk) {
  PageMessage m = read_request();
  m.page = kPagesMax - 1;
  expect_refused(m);
  m.page = ~uint64_t{0};
  expect_refused(m);
  m.page = kChunkPages - 2;
  expect_refused(m);
  m.page = kChunkPages - 3;
  EXPECT_TRUE(decoded(m).has_value());
  m.mask = 4;
  expect_refused(m);  // without the page that is waited for
  m.mask = 0;
  expect_refused(m);
}

TEST(PageMessage, AGrantOfReadCopiesTellsWhatElseIsPublishedInItsWindow) {
  PageMessage m = grant();
  m.mask2 = ~uint64_t{0};  // of the window, not behind the page
  EXPECT_TRUE(decoded(m, 2 * kPageBytes).has_value());
  m.page = kPagesMax - 1;
  m.mask = 1;
  EXPECT_TRUE(decoded(m, kPageBytes).has_value());
  m.access = Access::kWrite;
  expect_refused(m, kPageBytes);
  m.flags = PageMessage::kNoBytes;
  expect_refused(m);
  m.access = Access::kRead;
  m.flags = PageMessage::kZero;
  expect_refused(m);
}

TEST(PageMessage, ANoteOfAReadNamesPagesAndCarriesNone) {
  PageMessage m = read_request();
  m.kind = Kind::kReading;
  m.mask = 4;  // the first page need not be among them
  m.transaction = 7;
  EXPECT_TRUE(decoded(m).has_value());
  expect_refused(m, kPageBytes);
  m.mask2 = 1;
  expect_refused(m);
  m.mask2 = 0;
  m.mask = 0;
  expect_refused(m);
}

TEST(PageMessage, AnUpgradeIsForWriting) {
  PageMessage m = grant();
  m.flags = PageMessage::kNoBytes;
  expect_refused(m);
  m.access = Access::kWrite;
  m.mask = 1;
  EXPECT_TRUE(decoded(m).has_value());
  m.flags = PageMessage::kNoBytes | PageMessage::kZero;
  expect_refused(m);
}

}  // namespace
}  // namespace kevre::dsm
