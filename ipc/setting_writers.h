// SettingWriters: what programs of this node write to the files of /proc/sys/kernel that are the cluster's
// limits. Each open file is a stream socket; the lines that come out of it are set at the seat. Owns the
// sockets. Threads: the loop's. Tested in tests/ipc/programs_test.cc (programs/limits.c).
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/event_loop.h"
#include "base/fd.h"
#include "ipc/seat_link.h"

namespace kevre::ipc {

class SettingWriters {
 public:
  SettingWriters(EventLoop* loop, SeatLink* seat) : loop_(loop), seat_(seat) {}
  ~SettingWriters();

  // `writer` is of a program with the right to set it.
  void add(Setting which, UniqueFd writer);
  // Sets what was written so far, so that the writer's next call finds it.
  void drain();

 private:
  struct Writer {
    Setting which;
    UniqueFd socket;
    std::string line;
  };
  bool read(Writer& writer);
  void set(Setting which, const std::string& text);

  EventLoop* loop_;
  SeatLink* seat_;
  std::map<int, Writer> writers_;  // by descriptor
};

}  // namespace kevre::ipc
