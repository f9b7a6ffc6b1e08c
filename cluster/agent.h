// Agent: this node's part in the cluster. Drives membership.h (the pure state machine of views), joins with
// the cluster key over the daemon's port, tells the rest of the daemon about views, watches the peers.
//
// For every view, in this order: connects the transport to new members, disconnects it from lost ones
// (members that left stay connected until they close), then calls the listeners. The layers above only send
// and listen. Owns: the listening port, the joining connections, the transport (which it adds to the loop as
// a poller and takes away in its destructor, so handlers of other services are taken away before). Threads:
// the loop's. Tested in tests/cluster/agent_test.cc.
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
    std::string name;    // "n2"; empty: the coordinator chooses the next free one
    std::string listen;  // "ADDRESS:PORT" of the daemon's port; port 0: any; 0.0.0.0: all, the others then
                         // use the address that this node has towards the node it joins
    std::string join;  // "ADDRESS:PORT" of any node; empty: start a new cluster
    Key key;
    std::string transport_kind = "auto";
    std::string ucx_tls;
    Nanos failure_timeout_ns = 5'000'000'000;
    Nanos join_timeout_ns = 20'000'000'000;
    uint32_t pid_first = 0, pid_last = 0;
  };
  // Joins (blocking, with a deadline) before it returns, because the transport needs the node's id. The
  // transport is created here and handed out. Errors say cause and remedy: wrong key, nobody listens, version
  // differs, name taken.
  static Result<std::unique_ptr<Agent>> create(const Options& options, EventLoop* loop);
  ~Agent();

  NodeId self() const;
  const std::string& name() const;
  const std::string& listening_on() const;  // with the real port
  transport::Transport& transport();
  const View& view() const;
  // Called for every view from the current one on (also at once, with the current one). All listeners, in
  // order of adding.
  void add_on_view(std::function<void(const View&)> call);
  // All layers above have handed over for this view: said once per view, by who composes them. Told to those
  // who left in it, which wait for that.
  void set_stable(ViewId view);
  // Leaves on purpose: a view without this node, then `done` when this node and all members of that view are
  // stable in it; after 30 s in any case. Keep the loop running until then.
  void leave(std::function<void()> done);
  void set_on_expelled(std::function<void(const Error& why)> call);  // the others declared this node lost

 private:
  struct Parts;
  explicit Agent(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace kevre::cluster
