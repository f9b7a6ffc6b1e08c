// Launcher: runs programs for `kevre run`, on this node or on another. It has two halves that speak
// LaunchMessages:
//   * for callers of this node: start() and the calls below; what happens comes back through a Session;
//   * for programs on this node: Program objects, whose caller is this node or a peer (transport service
//   kLaunch).
// A local run goes the same way without the transport.
//
// Back-pressure: on_output() is followed by consumed() once the bytes are out; a program is read only so far
// ahead of that (kWindowBytes). write_input() takes at most kWindowBytes beyond what on_input_consumed()
// reported. A caller that goes away is cancel(): its program gets SIGHUP, two seconds later SIGKILL. A node
// that is lost ends the runs on it with ExitStatus::Kind::kLost, and its callers' programs here as if they
// had cancelled. Owns: the programs. Threads: the loop's. Session calls never come from inside a call of this
// class. Tested in tests/cluster/launcher_test.cc.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/event_loop.h"
#include "cluster/launch_wire.h"
#include "cluster/program.h"
#include "cluster/view.h"
#include "transport/transport.h"

namespace kevre::cluster {

class Session {
 public:
  virtual ~Session() = default;
  virtual void on_started(uint32_t /*pid*/) {}
  virtual void on_output(Stream stream, std::span<const std::byte> bytes) = 0;
  virtual void on_input_consumed(size_t /*bytes*/) {}
  virtual void on_exit(const ExitStatus& status) = 0;  // the last call; the run is forgotten
};

class Launcher final : public transport::Handler {
 public:
  using RunId = uint64_t;

  struct Options {
    NodeId self;
    // "NAME=value" put over every request's: KEVRE_..., LD_PRELOAD (which goes in front of the request's own)
    std::vector<std::string> env;
    uint64_t open_files = 0;  // programs' soft limit of open files; 0: as the daemon's
  };
  struct Running {
    uint32_t pid = 0;
    std::string command;
    char state = '?';  // as in /proc/PID/stat
    uint32_t uid = 0;
    NodeId caller;
    bool detached = false;
  };

  Launcher(const Options& options, EventLoop* loop, transport::Transport* transport);
  ~Launcher() override;

  // The session must live until on_exit() or cancel(). An error: nothing was started, no call follows.
  // Failures to start on the node (no such command, no such folder) come as on_exit() of kind kFailed.
  Result<RunId> start(NodeId where, LaunchRequest request, Session* session);
  // Waits for the end of a detached program; on_exit() has its status, also when it ended already (kept for
  // the last 1024).
  Result<RunId> wait(NodeId where, uint32_t pid, Session* session);

  void write_input(RunId run, std::span<const std::byte> bytes);
  void end_input(RunId run);
  void consumed(RunId run, Stream stream, size_t bytes);
  void signal(RunId run, int signal);
  void resize(RunId run, WindowSize window);
  void cancel(
      RunId run);  // the caller is gone: no more calls; ends the program unless it was started detached

  std::vector<Running> list() const;  // programs on this node
  void on_view(const View& view);

  void on_message(NodeId from, std::span<const std::byte> header,
                  std::span<const std::byte> payload) override;
  void on_peer_lost(NodeId peer, const Error& why) override;
  void on_writable(NodeId peer) override;

 private:
  using ProgramKey = std::pair<NodeId, RunId>;  // caller and its number
  struct Run {
    NodeId where;
    Session* session = nullptr;
  };

  Result<RunId> begin(NodeId where, LaunchMessage message, Session* session);
  void tell_program(RunId run, LaunchMessage message);
  Result<void> send(NodeId to, const LaunchMessage& message);
  void to_caller(NodeId caller, LaunchMessage message);
  void from_program(NodeId where, const LaunchMessage& message);
  void to_program(NodeId caller, const LaunchMessage& message);
  void start_program(NodeId caller, const LaunchMessage& message);
  void wait_program(NodeId caller, const LaunchMessage& message);
  void program_ended(ProgramKey key, const ExitStatus& status);
  void node_gone(NodeId node, const std::string& why);
  void deliver_local();
  void post(void (Launcher::*call)());

  Options options_;
  EventLoop* loop_;
  transport::Transport* transport_;
  RunId next_run_ = 1;
  std::map<RunId, Run> runs_;
  std::map<ProgramKey, std::unique_ptr<Program>> programs_;
  std::vector<std::unique_ptr<Program>> ended_;         // freed in the next turn: they may be on the stack
  std::deque<std::pair<NodeId, LaunchMessage>> local_;  // for sessions here, delivered in the next turn
  std::map<NodeId, std::deque<Bytes>> waiting_;         // the transport was busy; bounded by the credits
  std::deque<std::pair<uint32_t, ExitStatus>> finished_;
  std::multimap<uint32_t, ProgramKey> waiters_;  // by pid
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kevre::cluster
