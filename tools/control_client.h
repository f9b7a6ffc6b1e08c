// ControlClient: the command line's side of control.sock; blocking. Threads: one owner.
// Tested in tests/tools/control_test.cc.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/fd.h"
#include "tools/control_wire.h"

namespace kevre::tools {

class ControlClient {
 public:
  // kNotFound with the remedy when nothing listens on `path`.
  static Result<ControlClient> connect(const std::string& path);

  // One request, one answer. An answer with "error" becomes that error.
  Result<nlohmann::json> call(const nlohmann::json& request, int timeout_ms = 30000);

  int socket() const { return socket_.get(); }
  pid_t daemon_pid() const;  // as this process's pid namespace numbers it; 0 when it cannot be seen from here
  Result<void> send(FrameKind kind, std::span<const std::byte> bytes);
  // Reads once (blocks when nothing is there) and reports whole frames. False: the daemon closed the connection.
  Result<bool> receive(const FrameReader::OnFrame& on_frame);

 private:
  UniqueFd socket_;
  FrameReader reader_;
};

}  // namespace kevre::tools
