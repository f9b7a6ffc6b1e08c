// PipedProgram: a child process that is asked by lines on its stdin and answers by lines on its stdout; its stderr is
// this process's. Killed and reaped when the object goes. Threads: one owner; blocking with a deadline.
// Used by benches. Tested in tests/tools/piped_program_test.cc.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/fd.h"

namespace kevre::tools {

class PipedProgram {
 public:
  static Result<PipedProgram> start(const std::vector<std::string>& command);
  PipedProgram(PipedProgram&& other) noexcept;
  PipedProgram& operator=(PipedProgram&&) = delete;
  ~PipedProgram();

  Result<std::string> ask(const std::string& line, int timeout_ms);  // one line there, one line back
  Result<std::string> read_line(int timeout_ms);
  Result<int> finish(int timeout_ms);  // closes its stdin; the wait status

 private:
  PipedProgram() = default;
  pid_t pid_ = -1;
  UniqueFd to_, from_;
  std::string pending_;
};

}  // namespace kevre::tools
