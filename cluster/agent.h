// Agent: this node's part in the cluster. Drives membership.h (the pure state machine of views), joins with the
// cluster key over the daemon's port, tells the rest of the daemon about views, watches the peers.
// Owns: the listening port and the joining connections. Threads: the loop's. Tested in tests/cluster/agent_test.cc.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/event_loop.h"
#include "cluster/key.h"
#include "cluster/view.h"
#include "transport/transport.h"

namespace kevre::cluster {

class Agent {
 public:
  struct Options {
    std::string name;            // "n2"; empty: the coordinator chooses the next free one
    std::string listen;          // "ADDRESS:PORT" of the daemon's port; port 0: any
    std::string join;            // "ADDRESS:PORT" of any node; empty: start a new cluster
    Key key;
    std::string transport_kind = "auto";
    std::string ucx_tls;
    Nanos failure_timeout_ns = 5'000'000'000;
    uint32_t pid_first = 0, pid_last = 0;
  };
  // Joins (blocking, with a deadline) before it returns, because the transport needs the node's id. The transport is
  // created here and handed out. Errors say cause and remedy: wrong key, nobody listens, version differs, name taken.
  static Result<std::unique_ptr<Agent>> create(const Options& options, EventLoop* loop);
  ~Agent();

  NodeId self() const;
  const std::string& name() const;
  const std::string& listening_on() const;  // with the real port
  transport::Transport& transport();
  const View& view() const;
  // Called for every view from the current one on (also at once, with the current one). All listeners, in order of adding.
  void add_on_view(std::function<void(const View&)> call);
  // The layers above report that they handed over for this view; leave() completes when all listeners have.
  void set_stable(ViewId view);
  // Leaves on purpose: a view without this node, hand-over, then `done`.
  void leave(std::function<void()> done);
  void set_on_expelled(std::function<void(const Error& why)> call);  // the others declared this node lost

 private:
  struct Parts;
  explicit Agent(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace kevre::cluster
