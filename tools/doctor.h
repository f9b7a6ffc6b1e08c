// Doctor: what this machine has and lacks for kevre, each with the command that mends it. Looks only; changes nothing.
// Threads: any; blocking for some milliseconds. Tested in tests/tools/doctor_test.py.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace kevre::tools {

struct Finding {
  enum class State { kGood, kLimited, kMissing };
  State state = State::kGood;
  std::string what;    // "userfaultfd"
  std::string detail;  // what was found
  std::string remedy;  // a command or one sentence; empty when good
};

std::vector<Finding> examine();

// Nothing works without it: kUnsupported or kDenied with the remedy.
Result<void> check_userfaultfd();

}  // namespace kevre::tools
