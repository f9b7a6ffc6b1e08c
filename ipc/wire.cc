#include "ipc/wire.h"

#include <cstring>

namespace kevre::ipc {
namespace {
constexpr int32_t kSetAllCommand = 17;

// How long the payload may be; what exactly it must hold is checked by who reads it.
uint32_t payload_limit(const Call& call) {
  switch (call.op) {
    case Op::kSemOp:
      return kSemOpm * static_cast<uint32_t>(sizeof(SemOperation));
    case Op::kMsgSend:
      return kMsgBytesMost + static_cast<uint32_t>(sizeof(int64_t));
    case Op::kSemCtl:
      return call.cmd == kSetAllCommand ? kPayloadBytesLimit : static_cast<uint32_t>(sizeof(SetArguments));
    case Op::kShmCtl:
    case Op::kMsgCtl:
      return sizeof(SetArguments);
    case Op::kSettingSet:
      return kSettingBytesMax;
    case Op::kHello:
    case Op::kCancel:
    case Op::kShmGet:
    case Op::kShmAt:
    case Op::kSemGet:
    case Op::kSemCount:
    case Op::kMsgGet:
    case Op::kMsgReceive:
    case Op::kProcText:
    case Op::kSettingText:
    case Op::kSettingWriter:
    case Op::kAttached:
    case Op::kAttachFailed:
    case Op::kDetachStart:
    case Op::kDetachDone:
    case Op::kShmDetach:
    case Op::kShmFork:
      return 0;
  }
  return 0;
}

bool known(Op op) {
  switch (op) {
    case Op::kHello:
    case Op::kCancel:
    case Op::kShmGet:
    case Op::kShmAt:
    case Op::kShmCtl:
    case Op::kSemGet:
    case Op::kSemOp:
    case Op::kSemCtl:
    case Op::kSemCount:
    case Op::kMsgGet:
    case Op::kMsgSend:
    case Op::kMsgReceive:
    case Op::kMsgCtl:
    case Op::kProcText:
    case Op::kSettingText:
    case Op::kSettingSet:
    case Op::kSettingWriter:
    case Op::kAttached:
    case Op::kAttachFailed:
    case Op::kDetachStart:
    case Op::kDetachDone:
    case Op::kShmDetach:
    case Op::kShmFork:
      return true;
  }
  return false;
}

bool ends_with_errno(int32_t cmd) {
  return cmd == EINTR || cmd == EAGAIN;
}

Result<void> check(const Call& call, size_t payload_bytes) {
  if (call.magic != kCallMagic || call.version != kCallVersion) {
    return fail(Errc::kCorrupt, "call with magic {:#x} version {}", call.magic, call.version);
  }
  if (!known(call.op)) {
    return fail(Errc::kCorrupt, "call with unknown operation {}", static_cast<int>(call.op));
  }
  if (call.payload_bytes != payload_bytes || payload_bytes > payload_limit(call)) {
    return fail(Errc::kCorrupt, "operation {} with {} payload bytes, {} announced", static_cast<int>(call.op),
                payload_bytes, call.payload_bytes);
  }
  if (call.op == Op::kProcText && (call.index < 0 || call.index > 2)) {
    return fail(Errc::kCorrupt, "text {} of /proc/sysvipc", call.index);
  }
  const bool setting =
      call.op == Op::kSettingText || call.op == Op::kSettingSet || call.op == Op::kSettingWriter;
  if (setting && (call.index < 0 || call.index >= kSettings)) {
    return fail(Errc::kCorrupt, "setting {}", call.index);
  }
  if (call.op == Op::kCancel && !ends_with_errno(call.cmd)) {
    return fail(Errc::kCorrupt, "cancel with errno {}", call.cmd);
  }
  return {};
}
}  // namespace

Result<DecodedCall> decode_call(std::span<const std::byte> record) {
  DecodedCall decoded;
  if (record.size() < sizeof(Call)) {
    return fail(Errc::kCorrupt, "call of {} bytes", record.size());
  }
  std::memcpy(&decoded.call, record.data(), sizeof(Call));
  decoded.payload = record.subspan(sizeof(Call));
  KEVRE_TRY(check(decoded.call, decoded.payload.size()));
  if (decoded.call.op == Op::kShmDetach || decoded.call.op == Op::kShmFork) {
    return fail(Errc::kCorrupt, "operation {} from a program", static_cast<int>(decoded.call.op));
  }
  return decoded;
}

Result<DecodedSeatMessage> decode_seat_message(std::span<const std::byte> header,
                                               std::span<const std::byte> payload) {
  DecodedSeatMessage decoded;
  if (header.size() != sizeof(SeatMessage)) {
    return fail(Errc::kCorrupt, "seat message of {} bytes", header.size());
  }
  std::memcpy(&decoded.message, header.data(), sizeof(SeatMessage));
  const SeatMessage& message = decoded.message;
  if (message.magic != kCallMagic || message.version != kCallVersion) {
    return fail(Errc::kCorrupt, "seat message with magic {:#x} version {}", message.magic, message.version);
  }
  const size_t group_bytes = message.groups * sizeof(uint32_t);
  if (group_bytes > payload.size()) {
    return fail(Errc::kCorrupt, "seat message with {} groups in {} bytes", message.groups, payload.size());
  }
  decoded.groups.resize(message.groups);
  if (group_bytes > 0) {
    std::memcpy(decoded.groups.data(), payload.data(), group_bytes);
  }
  decoded.payload = payload.subspan(group_bytes);
  switch (message.kind) {
    case SeatMessage::Kind::kCall:
      KEVRE_TRY(check(message.call, decoded.payload.size()));
      return decoded;
    case SeatMessage::Kind::kAnswer:
      if (message.answer.payload_bytes != decoded.payload.size() || message.answer.magic != kCallMagic) {
        return fail(Errc::kCorrupt, "answer with {} bytes, {} announced", decoded.payload.size(),
                    message.answer.payload_bytes);
      }
      return decoded;
    case SeatMessage::Kind::kCancel:
      if (!ends_with_errno(message.call.cmd)) {
        return fail(Errc::kCorrupt, "cancel with errno {}", message.call.cmd);
      }
      return decoded;
    case SeatMessage::Kind::kProcessGone:
    case SeatMessage::Kind::kDestroy:
      return decoded;
  }
  return fail(Errc::kCorrupt, "seat message of kind {}", static_cast<int>(message.kind));
}

}  // namespace kevre::ipc
