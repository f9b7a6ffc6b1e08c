// Program: one program that runs on this node for a caller, here or on another node. Carries its streams by
// credit, its signals, its terminal's size and its end, all as LaunchMessages in both directions. Owns: the
// program's pipes or terminal, and its end (a program whose caller goes away is ended). Threads: the loop's.
// Tested in tests/cluster/launcher_test.cc.
#pragma once

#include <functional>
#include <memory>

#include "base/event_loop.h"
#include "base/fd.h"
#include "cluster/launch_wire.h"
#include "cluster/spawn.h"

namespace kevre::cluster {

class Program {
 public:
  using Emit = std::function<void(LaunchMessage)>;  // to the caller; kExit is the last

  static constexpr Nanos kKillAfterNs = 2'000'000'000;  // from SIGHUP to SIGKILL
  static constexpr Nanos kDrainNs = 1'000'000'000;      // a terminal after its program's end

  Program(EventLoop* loop, uint64_t run, LaunchRequest request, Emit emit);
  ~Program();
  // Starts it and says so; a failure is a kExit of kind kFailed.
  void start();
  void on_message(const LaunchMessage& message);
  // The caller is gone.
  void hang_up();

  bool ended() const { return ended_; }
  pid_t pid() const { return spawned_.pid; }
  const LaunchRequest& request() const { return request_; }
  const ExitStatus& status() const { return status_; }

 private:
  struct Out {
    UniqueFd fd;
    size_t credit = kWindowBytes;
    bool watched = false;
  };
  Result<Descriptors> open_streams();
  Result<Descriptors> open_terminal();
  void watch(Stream stream, bool on);
  void read_output(Stream stream);
  void write_input();
  void close_input();
  void on_process_end();
  void report_when_drained();
  void send_signal(int signal);
  void close_output(Stream stream);
  Out& out(Stream stream) { return stream == Stream::kError ? error_ : output_; }
  void emit(LaunchMessage message);

  EventLoop* loop_;
  uint64_t run_;
  LaunchRequest request_;
  Emit emit_;
  Spawned spawned_;
  UniqueFd program_ends_[3];  // closed once it runs
  UniqueFd input_;            // pipe only; a terminal's is output_.fd
  Out output_, error_;
  Bytes pending_input_;
  bool input_ends_ = false, input_watched_ = false;
  bool process_gone_ = false, ended_ = false, caller_gone_ = false;
  ExitStatus status_;
  EventLoop::TimerId kill_timer_ = 0;
};

}  // namespace kevre::cluster
