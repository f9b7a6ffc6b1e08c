// Door: the listening side of the daemon's TCP port. Accepts connections, runs their handshake and hands
// frames whose proof held to the owner. A connection that says nothing for kSilenceNs, garbage, a wrong key,
// another version: closed, one log line, and the daemon lives on. At most kConnectionsMax at a time: a new
// one takes the place of the oldest that has proved nothing, so strangers cannot keep nodes out. Owns: the
// listening socket and the connections. Threads: the loop's. Tested in tests/cluster/agent_test.cc.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/event_loop.h"
#include "base/fd.h"
#include "cluster/handshake.h"

namespace kevre::cluster {

// A TCP socket bound to and listening on `endpoint`. Port in use, address not of this machine: said with a
// remedy.
Result<UniqueFd> listen_on(const Endpoint& endpoint);
Result<Endpoint> local_endpoint(int socket);

class Door {
 public:
  using ConnectionId = uint64_t;
  static constexpr Nanos kSilenceNs = 2 * kSecond;  // until the proof
  static constexpr Nanos kJoinNs = 15 * kSecond;    // after it
  static constexpr size_t kConnectionsMax = 64;

  class Guest {
   public:
    virtual ~Guest() = default;
    virtual void on_frame(ConnectionId connection, const Endpoint& from, Frame frame) = 0;
    virtual void on_closed(ConnectionId connection) = 0;
  };

  Door(EventLoop* loop, const Key& key, UniqueFd socket, Guest* guest);
  ~Door();

  Result<void> open();
  const Endpoint& endpoint() const { return endpoint_; }
  // Sends a frame; unknown connections are ignored. `last`: closes when it is out.
  void reply(ConnectionId connection, FrameType type, std::span<const std::byte> body, bool last);
  size_t connections() const { return connections_.size(); }

 private:
  struct Connection {
    UniqueFd socket;
    Endpoint from;
    Handshake handshake;
    Bytes out;
    bool last = false;
    EventLoop::TimerId timer = 0;
    Connection(UniqueFd s, Endpoint f, Handshake h)
        : socket(std::move(s)), from(f), handshake(std::move(h)) {}
  };

  void accept_all();
  bool make_room();
  void on_event(ConnectionId id, uint32_t events);
  void read(ConnectionId id);
  void take_frames(ConnectionId id);
  void flush(ConnectionId id);
  void close(ConnectionId id);
  void refuse(ConnectionId id, const Error& why);

  EventLoop* loop_;
  Key key_;
  UniqueFd socket_;
  Endpoint endpoint_;
  Guest* guest_;
  std::map<ConnectionId, std::unique_ptr<Connection>> connections_;
  ConnectionId next_ = 1;
  bool crowded_ = false;  // said once per crowd, not once per connection
};

}  // namespace kevre::cluster
