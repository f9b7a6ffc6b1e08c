// What the command line and a daemon say to each other on control.sock: frames of {length u32, kind u8, bytes}.
// A request is one kJson frame; its answer is one kJson frame, or, for "run", a stream of the other kinds.
// Only the owner of the socket can connect (mode 0600), yet every length and kind is checked.
// Threads: any (values). Tested in tests/tools/control_test.cc; the decoder is fuzzed by tests/fuzz/control_fuzz.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kevre::tools {

enum class FrameKind : uint8_t {
  kJson = 1,    // either way
  kStdin = 2,   // command line -> daemon; no bytes: end of file
  kStdout = 3,  // daemon -> command line
  kStderr = 4,  // daemon -> command line
  kSignal = 5,  // command line -> daemon: one byte, the signal's number
  kWindow = 6,  // command line -> daemon: rows u16, columns u16
  kExit = 7,    // daemon -> command line: exit status as a shell gives it, u32; ends the stream
  kError = 8,   // daemon -> command line: one line of text; ends the stream
  kCredit = 9,  // daemon -> command line: so many bytes of stdin were taken by the program, u32
};

// Bytes of stdin that the command line sends beyond what kCredit reported, so that a program that does not read cannot
// hold up the signals behind them.
inline constexpr size_t kInputWindowBytes = size_t{256} << 10;

inline constexpr size_t kFrameBytesMax = size_t{1} << 20;
inline constexpr size_t kFrameHeaderBytes = 5;

void append_frame(std::vector<std::byte>& out, FrameKind kind, std::span<const std::byte> bytes);

// Collects bytes and hands out whole frames. After an error the stream is unusable.
class FrameReader {
 public:
  using OnFrame = std::function<void(FrameKind, std::span<const std::byte>)>;
  Result<void> feed(std::span<const std::byte> bytes, const OnFrame& on_frame);

 private:
  std::vector<std::byte> pending_;
};

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}
inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace kevre::tools
