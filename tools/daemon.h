// Daemon: composes one node out of the folders below: loop, agent (membership, transport), DSM node, IPC service,
// launcher, control socket. It decides nothing. Owns all of them; everything runs on the thread that calls run().
// Tested in tests/tools/ from outside, through the command line.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/event_loop.h"
#include "base/result.h"
#include "cluster/agent.h"
#include "cluster/launcher.h"
#include "dsm/node.h"
#include "ipc/service.h"
#include "tools/control_server.h"

namespace kevre::tools {

class Daemon {
 public:
  struct Options {
    cluster::Agent::Options agent;
    std::string control_socket;  // for the command line, mode 0600
    std::string node_socket;     // for programs, mode 0666
    std::string preload;         // path of libkevre-preload.so
    std::string note;            // what this node was started without, for people; empty: nothing
    uint64_t open_files = 0;     // programs' soft limit of open files; 0: as the daemon's
    Nanos spin_ns = 20'000;
  };
  static Result<std::unique_ptr<Daemon>> create(Options options);
  ~Daemon();

  void run();  // until SIGTERM or SIGINT (leaves the cluster in good order), or until the others expelled this node
  int exit_code() const { return exit_code_; }
  const std::string& address() const;  // of the daemon's port

 private:
  explicit Daemon(Options options) : options_(std::move(options)) {}
  Result<void> watch_signals();
  void serve(ControlConnection& connection);
  void create_launcher();
  nlohmann::json answer_to(const std::string& request) const;
  nlohmann::json describe() const;    // this node, with its figures
  nlohmann::json list_nodes() const;  // the view
  nlohmann::json about() const;       // version, transport per peer and why, kernel features
  nlohmann::json count() const;       // what was moved since start
  void leave_and_stop();

  Options options_;
  int exit_code_ = 0;
  bool leaving_ = false;
  UniqueFd signals_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<cluster::Agent> agent_;
  std::unique_ptr<dsm::Node> node_;
  std::unique_ptr<ipc::Service> service_;
  std::unique_ptr<cluster::Launcher> launcher_;
  std::unique_ptr<ControlServer> control_;
};

}  // namespace kevre::tools
