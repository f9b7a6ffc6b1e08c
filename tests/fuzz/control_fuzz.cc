// The control socket's frame reader: any bytes in any pieces give frames within the limits, or one error.
#include <algorithm>
#include <cstdlib>

#include "tools/control_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kevre::tools;
  if (size == 0) {
    return 0;
  }
  const size_t piece = 1 + data[0] % 64;
  const auto stream = std::as_bytes(std::span(data + 1, size - 1));
  FrameReader reader;
  size_t carried = 0;
  for (size_t at = 0; at < stream.size(); at += piece) {
    const auto fed = reader.feed(stream.subspan(at, std::min(piece, stream.size() - at)),
                                 [&](FrameKind, std::span<const std::byte> bytes) { carried += kFrameHeaderBytes + bytes.size(); });
    if (!fed) {
      return 0;
    }
  }
  if (carried > stream.size()) {
    std::abort();  // more came out than went in
  }
  return 0;
}
