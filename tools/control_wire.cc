#include "tools/control_wire.h"

#include <cstring>

#include "base/check.h"

namespace kevre::tools {

void append_frame(std::vector<std::byte>& out, FrameKind kind, std::span<const std::byte> bytes) {
  KEVRE_CHECK(bytes.size() <= kFrameBytesMax, "frame of {} bytes", bytes.size());
  const uint32_t length = static_cast<uint32_t>(bytes.size());
  const size_t at = out.size();
  out.resize(at + kFrameHeaderBytes + bytes.size());
  std::memcpy(out.data() + at, &length, sizeof length);
  out[at + 4] = static_cast<std::byte>(kind);
  if (!bytes.empty()) {
    std::memcpy(out.data() + at + kFrameHeaderBytes, bytes.data(), bytes.size());
  }
}

Result<void> FrameReader::feed(std::span<const std::byte> bytes, const OnFrame& on_frame) {
  pending_.insert(pending_.end(), bytes.begin(), bytes.end());
  size_t at = 0;
  while (pending_.size() - at >= kFrameHeaderBytes) {
    uint32_t length = 0;
    std::memcpy(&length, pending_.data() + at, sizeof length);
    const uint8_t kind = static_cast<uint8_t>(pending_[at + 4]);
    if (length > kFrameBytesMax || kind < static_cast<uint8_t>(FrameKind::kJson) ||
        kind > static_cast<uint8_t>(FrameKind::kCredit)) {
      return fail(Errc::kCorrupt, "frame of kind {} and {} bytes on the control socket", kind, length);
    }
    if (pending_.size() - at - kFrameHeaderBytes < length) {
      break;
    }
    on_frame(static_cast<FrameKind>(kind), std::span(pending_).subspan(at + kFrameHeaderBytes, length));
    at += kFrameHeaderBytes + length;
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(at));
  return {};
}

}  // namespace kevre::tools
