// The calling side of the daemon's port. Call: a blocking connection with deadlines, for joining (before the
// loop runs). Prober: asks in the loop, without blocking it, whether a member's daemon still lives. Owns:
// their sockets. Threads: Call any, one owner; Prober the loop's. Tested in tests/cluster/agent_test.cc.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/event_loop.h"
#include "base/fd.h"
#include "cluster/handshake.h"
#include "cluster/membership.h"

namespace kevre::cluster {

class Call {
 public:
  // Connects and opens the handshake. kPeerLost: nobody listens there; kTimedOut: no answer.
  static Result<Call> open(const std::string& address, const Key& key, Nanos deadline_ns);
  // Sends one frame, waits for one. A refusal comes back as its error.
  Result<Frame> ask(FrameType type, std::span<const std::byte> body, Nanos deadline_ns);
  Result<Endpoint> local() const;

 private:
  Call(std::string address, UniqueFd socket, Handshake handshake)
      : address_(std::move(address)), socket_(std::move(socket)), handshake_(std::move(handshake)) {}
  Result<void> send_all(std::span<const std::byte> bytes, Nanos deadline_ns);
  Result<void> receive_some(Nanos deadline_ns);

  std::string address_;
  UniqueFd socket_;
  Handshake handshake_;
};

class Prober {
 public:
  using Done = std::function<void(NodeId node, ProbeResult result, ViewId their_view)>;
  static constexpr Nanos kDeadlineNs = kSecond;

  Prober(EventLoop* loop, const Key& key, NodeId self, Done done);
  ~Prober();
  // One question per node at a time; asking again while one is under way does nothing.
  void ask(NodeId node, const std::string& address, ViewId view);

 private:
  struct Question {
    UniqueFd socket;
    Handshake handshake;
    Probe probe;
    std::string address;
    Nanos deadline = 0;
    bool asked = false;
    EventLoop::TimerId timer = 0;
    explicit Question(const Key& key) : handshake(Role::kClient, key, random_challenge()) {}
  };
  void connect(NodeId node);
  void on_event(NodeId node, uint32_t events);
  void on_error(NodeId node, int error);
  Result<std::optional<ProbeReply>> advance(Question& question);
  void finish(NodeId node, ProbeResult result, ViewId view);

  EventLoop* loop_;
  Key key_;
  NodeId self_;
  Done done_;
  std::map<NodeId, std::unique_ptr<Question>> questions_;
};

}  // namespace kevre::cluster
