// Bytes of a program, cut into records: every record that the decoder accepts is fed to one namespace, by a
// few processes of two nodes, with cancels, deaths and a lost node between. Also the decoder of the seat's
// messages.
#include <cstring>

#include "ipc/namespace.h"
#include "ipc/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kevre;
  using namespace kevre::ipc;
  Namespace names(1);
  std::vector<Effect> effects;
  auto bytes = std::as_bytes(std::span(data, size));
  if (bytes.size() >= sizeof(SeatMessage)) {
    static_cast<void>(
        decode_seat_message(bytes.first(sizeof(SeatMessage)), bytes.subspan(sizeof(SeatMessage))));
  }
  // A record: two bytes of length, one that says who and what, then a Call and its payload.
  for (uint64_t number = 1; bytes.size() >= 3; ++number) {
    uint16_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    const auto who = static_cast<uint8_t>(bytes[2]);
    bytes = bytes.subspan(3);
    const auto cut = bytes.first(std::min<size_t>(length % 1024, bytes.size()));
    bytes = bytes.subspan(cut.size());
    std::vector<std::byte> record(cut.begin(), cut.end());
    if ((who & 8) != 0 && record.size() >= sizeof(Call)) {  // spare the fuzzer the guessing of what is always the same
      Call call;
      std::memcpy(&call, record.data(), sizeof call);
      call.magic = kCallMagic;
      call.version = kCallVersion;
      call.payload_bytes = static_cast<uint32_t>(record.size() - sizeof call);
      std::memcpy(record.data(), &call, sizeof call);
    }
    const NodeId node(static_cast<uint16_t>(1 + (who & 1)));
    const ProcessId process{node, static_cast<uint64_t>(who >> 1 & 3)};
    if (who >= 0xf8) {
      names.on_process_gone(process, 7, 1, effects);
    } else if (who >= 0xf4) {
      names.on_node_lost(node, 1, effects);
    } else if (who >= 0xe0) {
      names.on_cancel({node, number - 1 - who % 8}, 4, effects);
    } else if (const auto decoded = decode_call(record)) {
      const Caller caller{{node, number}, process, 100, {who >> 4 & 1u, 0, {}}};
      names.on_call(caller, decoded->call, decoded->payload, static_cast<int64_t>(number), effects);
    }
    effects.clear();
  }
  for (const ObjectKind kind : {ObjectKind::kShm, ObjectKind::kSem, ObjectKind::kMsg}) {
    static_cast<void>(names.proc_text(kind));
  }
  return 0;
}
