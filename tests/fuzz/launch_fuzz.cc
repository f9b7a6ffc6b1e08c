// What a member can send to the launcher: any bytes. What decodes must encode to something that decodes
// again.
#include "base/check.h"
#include "cluster/launch_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data), size);
  if (const auto message = kevre::cluster::decode_launch(input)) {
    const auto again = kevre::cluster::decode_launch(kevre::cluster::encode(*message));
    KEVRE_CHECK(again && kevre::cluster::encode(*again) == kevre::cluster::encode(*message));
  }
  return 0;
}
