// The decoders of protocol.h: the only places where bytes from a program or from a peer become values. What
// they return is well-formed (lengths agree, operations and indices exist); whether it makes sense is the
// namespace's business. Threads: any. Tested in tests/ipc/wire_test.cc; fuzzed by
// tests/fuzz/ipc_call_fuzz.cc.
#pragma once

#include <cerrno>
#include <cstddef>
#include <span>
#include <vector>

#include "base/result.h"
#include "ipc/namespace.h"
#include "ipc/protocol.h"

namespace kevre::ipc {

struct DecodedCall {
  Call call;
  std::span<const std::byte> payload;  // inside the bytes that were decoded
};

// A record of a program. Operations between daemons and the seat are refused.
Result<DecodedCall> decode_call(std::span<const std::byte> record);

struct DecodedSeatMessage {
  SeatMessage message;
  std::vector<uint32_t> groups;
  std::span<const std::byte> payload;
};

// A message of Service::kIpc.
Result<DecodedSeatMessage> decode_seat_message(std::span<const std::byte> header,
                                               std::span<const std::byte> payload);

}  // namespace kevre::ipc
