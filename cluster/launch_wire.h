// Messages of the launcher, between the node of a caller and the node of a program (transport service
// kLaunch); the control connection of `kevre run` may carry the same. One decoder. A run is named by its
// caller's number.
//
// Flow control is by credit in both directions: a side sends at most kWindowBytes of a stream beyond what the
// other side has said that it consumed (kCredit), so neither a slow terminal nor a program that does not read
// can fill memory. Threads: any (values). Tested in tests/cluster/launcher_test.cc, fuzzed in
// tests/fuzz/launch_fuzz.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "cluster/codec.h"

namespace kevre::cluster {

inline constexpr size_t kWindowBytes = 256 * 1024;  // per stream
inline constexpr size_t kChunkBytesMax = 64 * 1024;

enum class Stream : uint8_t { kInput = 0, kOutput = 1, kError = 2 };

struct WindowSize {
  uint16_t rows = 0, columns = 0;
};

struct LaunchRequest {
  std::vector<std::string> argv;  // argv[0] is looked up in PATH of `env`
  std::vector<std::string> env;   // "NAME=value", all of it
  std::string cwd;
  uint32_t uid = 0, gid = 0;
  std::vector<uint32_t> groups;
  uint32_t umask = 022;
  bool pty = false;  // stdin, stdout and stderr are one terminal
  WindowSize window;
  bool detach = false;      // lives on when its caller goes; reads nothing
  uint64_t open_files = 0;  // soft limit, set on the program's node and not sent; 0: as the daemon's
  std::string output_file;  // detach: stdout and stderr are appended to it; empty: thrown away
};

struct ExitStatus {
  enum class Kind : uint8_t {
    kExited = 0,    // code: its exit status
    kSignaled = 1,  // code: the signal
    kFailed = 2,    // never ran; code: 126, 127 or 1 as a shell gives; text: one line
    kLost = 3,      // its node was lost; text: one line
  };
  Kind kind = Kind::kExited;
  int32_t code = 0;
  std::string text;
  // What `kevre run` exits with.
  int shell_code() const { return kind == Kind::kSignaled ? 128 + code : kind == Kind::kLost ? 1 : code; }
};

enum class LaunchType : uint8_t {
  kStart = 1,     // caller: request
  kStarted = 2,   // program: pid
  kData = 3,      // both: stream, data
  kInputEnd = 4,  // caller: stdin has ended
  kCredit = 5,    // both: stream, bytes consumed
  kSignal = 6,    // caller: signal
  kResize = 7,    // caller: window
  kCancel = 8,    // caller: gone; SIGHUP, then SIGKILL
  kExit = 9,      // program: status; the run is over
  kWait = 10,     // caller: pid of a detached program; answered by kExit
};

struct LaunchMessage {
  LaunchType type = LaunchType::kStart;
  uint64_t run = 0;
  Stream stream = Stream::kInput;
  uint32_t number = 0;  // kStarted, kWait: pid; kCredit: bytes; kSignal: signal
  WindowSize window;
  Bytes data;
  LaunchRequest request;
  ExitStatus status;
};

Bytes encode(const LaunchMessage& message);
Result<LaunchMessage> decode_launch(std::span<const std::byte> bytes);

}  // namespace kevre::cluster
