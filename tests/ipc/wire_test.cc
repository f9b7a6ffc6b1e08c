#include "ipc/wire.h"

#include <gtest/gtest.h>

#include <cstring>

namespace kevre::ipc {
namespace {

std::vector<std::byte> record(const Call& call, size_t payload = 0) {
  std::vector<std::byte> bytes(sizeof call + payload);
  std::memcpy(bytes.data(), &call, sizeof call);
  return bytes;
}
std::span<const std::byte> view_of(const SeatMessage& message) {
  return std::as_bytes(std::span(&message, 1));
}

TEST(WireTest, AWellFormedCallComesBackAsItWas) {
  Call call;
  call.op = Op::kMsgSend;
  call.number = 9;
  call.payload_bytes = 20;
  const auto decoded = decode_call(record(call, 20));
  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->call.number, 9u);
  EXPECT_EQ(decoded->payload.size(), 20u);
}

TEST(WireTest, EveryTruncatedCallIsRefused) {
  const auto bytes = record(Call{});
  ASSERT_TRUE(decode_call(bytes).has_value());
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(decode_call(std::span(bytes).first(length)).has_value()) << length;
  }
}

TEST(WireTest, CallsThatNoProgramWritesAreRefused) {
  const auto refused = [](auto change, size_t payload = 0) {
    Call call;
    call.op = Op::kSemOp;
    call.payload_bytes = static_cast<uint32_t>(payload);
    change(call);
    return !decode_call(record(call, payload)).has_value();
  };
  EXPECT_TRUE(refused([](Call& call) { call.magic = 1; }));
  EXPECT_TRUE(refused([](Call& call) { call.version = 99; }));
  EXPECT_TRUE(refused([](Call& call) { call.op = static_cast<Op>(999); }));
  EXPECT_TRUE(refused([](Call& call) { call.op = Op::kShmDetach; }));
  EXPECT_TRUE(refused([](Call& call) { call.op = Op::kShmFork; }));
  EXPECT_TRUE(refused([](Call& call) { call.payload_bytes = 5; }));
  EXPECT_TRUE(refused([](Call&) {}, 501 * sizeof(SemOperation)));
  EXPECT_TRUE(refused([](Call& call) { call.op = Op::kShmGet; }, 1));
  EXPECT_TRUE(refused([](Call& call) {
    call.op = Op::kProcText;
    call.index = 3;
  }));
  EXPECT_TRUE(refused([](Call& call) {
    call.op = Op::kCancel;
    call.cmd = EPERM;
  }));
  EXPECT_FALSE(refused([](Call&) {}, 500 * sizeof(SemOperation)));
}

TEST(WireTest, SeatMessagesMustAgreeWithTheirLengths) {
  SeatMessage message;
  message.groups = 2;
  message.call.op = Op::kMsgGet;
  const uint32_t groups[] = {7, 8};
  const auto good = decode_seat_message(view_of(message), std::as_bytes(std::span(groups)));
  ASSERT_TRUE(good.has_value());
  EXPECT_EQ(good->groups, (std::vector<uint32_t>{7, 8}));
  EXPECT_FALSE(decode_seat_message(view_of(message), std::as_bytes(std::span(groups)).first(7)).has_value());
  EXPECT_FALSE(decode_seat_message(view_of(message).first(sizeof message - 1), {}).has_value());
  message.groups = 0;
  message.kind = static_cast<SeatMessage::Kind>(77);
  EXPECT_FALSE(decode_seat_message(view_of(message), {}).has_value());
  message.kind = SeatMessage::Kind::kAnswer;
  message.answer.payload_bytes = 4;
  EXPECT_FALSE(decode_seat_message(view_of(message), {}).has_value());
}

}  // namespace
}  // namespace kevre::ipc
