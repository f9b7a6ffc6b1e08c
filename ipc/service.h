// Service: System V IPC for the programs of this node. Programs (the preload library) connect to a UNIX
// socket; calls go to the namespace (namespace.h, a pure state machine that lives on the view's coordinator
// for now), attaches go to dsm::Node. Owns: the socket, the sessions, the namespace when this node has it.
// Calls wait at the seat, never here: every descriptor is non-blocking and a program that does not read is
// dropped. Threads: the loop's. Tested in tests/ipc/service_test.cc.
#pragma once

#include <memory>
#include <string>

#include "base/event_loop.h"
#include "cluster/view.h"
#include "dsm/node.h"
#include "transport/transport.h"

namespace kevre::ipc {

struct ServiceStats {
  uint64_t programs = 0;      // processes that ever connected and live
  uint64_t sessions = 0;      // connected threads
  uint64_t calls_local = 0;   // answered by the seat on this node
  uint64_t calls_remote = 0;  // one message to the seat
};

class Service {
 public:
  struct Options {
    NodeId self;
    std::string socket_path;  // created with mode 0666; replaced when stale
  };
  // kExists: another daemon serves the socket.
  static Result<std::unique_ptr<Service>> create(const Options& options, EventLoop* loop,
                                                 transport::Transport* transport, dsm::Node* node);
  ~Service();

  void on_view(const cluster::View& view);
  ServiceStats stats() const;

 private:
  struct Parts;
  explicit Service(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace kevre::ipc
