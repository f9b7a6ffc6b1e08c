// LogLimit: programs can cause lines in the daemon's log; this keeps them few. Threads: one owner. Tested in
// tests/ipc/service_test.cc.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/log.h"

namespace kevre::ipc {

class LogLimit {
 public:
  static constexpr int kLines = 10;
  static constexpr Nanos kPeriodNs = 10 * kSecond;

  // May a line be written? At most kLines in each period; how many were left out is said in the next one.
  bool allow(Nanos now = now_ns()) {
    if (since_ == 0 || now - since_ >= kPeriodNs) {
      if (left_out_ > 0) {
        KEVRE_LOG_WARN("ipc: {} more lines about programs were left out", left_out_);
      }
      since_ = now;
      lines_ = 0;
      left_out_ = 0;
    }
    if (lines_ >= kLines) {
      ++left_out_;
      return false;
    }
    ++lines_;
    return true;
  }

 private:
  Nanos since_ = 0;
  int lines_ = 0;
  uint64_t left_out_ = 0;
};

}  // namespace kevre::ipc
