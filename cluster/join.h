// join(): the joining node's side of the conversation with the coordinator, blocking, with a deadline. The
// node's id is known only in the middle of it and the transport needs the id, so the caller gives a function
// that makes the transport. Threads: any; the transport is not progressed meanwhile, so nothing is delivered
// before the first view is known. Tested in tests/cluster/agent_test.cc.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "cluster/handshake.h"
#include "transport/transport.h"

namespace kevre::cluster {

struct JoinRequest {
  std::string to;  // "ADDRESS:PORT" of any node
  Hello hello;
  bool listens_on_all =
      false;  // hello.address has no address in it: takes the one used towards the coordinator
  Key key;
  Nanos timeout_ns = 0;
};

struct Joined {
  NodeId id;
  std::string name;
  View view;  // the first one with this node
  Endpoint address;
  std::unique_ptr<transport::Transport> transport;
};

using MakeTransport = std::function<Result<std::unique_ptr<transport::Transport>>(NodeId, const Endpoint&)>;
Result<Joined> join(const JoinRequest& request, const MakeTransport& make_transport);

}  // namespace kevre::cluster
