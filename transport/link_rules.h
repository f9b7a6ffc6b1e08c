// The rules of links that the network backends (ucx, verbs) share: what makes messages of a peer arrive in
// order, exactly once or not at all, over connections that come and go.
//
// Each connect() makes a link with a new incarnation number, which every message carries (wire_header.h).
// What came from a node that connect() was not called for yet is held (bounded) and delivered once it is. A
// message of an older incarnation is rejected, and its sender is told (Backend::refuse), so that it reports
// the peer lost instead of waiting. Sequence numbers check the order; a bounded buffer puts right what a
// network may reorder.
//
// A loss is noted at any time and acted upon in act_on_notes(), which alone calls handlers besides arrived();
// both are called from the backend's progress() only.
//
// Owns: the links, the handlers' registrations, the counters, what is held. Threads: the transport's.
// Tested by the conformance suite over each backend (tests/transport/).
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "transport/buffer_pool.h"
#include "transport/transport.h"
#include "transport/wire_header.h"

namespace kevre::transport {

// Bounds of what is kept for later, per node.
inline constexpr size_t kHeldMessagesMax = 4096;
inline constexpr size_t kHeldBytesMax = size_t{80} << 20;  // one message of the largest size, and small ones
inline constexpr size_t kHeldBytesOfAllMax = size_t{256} << 20;
inline constexpr size_t kReorderMessagesMax = 1024;

// A message that waits for connect() or for its predecessor: service header and payload, one after the other.
struct Waiting {
  WireHeader wire;
  Buffer bytes;
};

// A backend's link begins with this.
struct LinkState {
  LinkState() = default;
  LinkState(const LinkState&) = delete;
  LinkState& operator=(const LinkState&) = delete;
  virtual ~LinkState() = default;

  NodeId peer;
  uint64_t own = 0;     // our incarnation
  uint64_t remote = 0;  // the peer's, 0 until its first message
  uint64_t next_to_send = 0;
  uint64_t next_to_receive = 0;
  size_t queued_bytes = 0;
  bool was_busy = false;  // send() answered kBusy: on_writable is owed
  bool writable_noted = false;
  bool open = true;                   // false: lost, not reported yet, or taken away
  bool holding = false;               // the node's held messages go first
  std::map<uint64_t, Waiting> early;  // arrived before their predecessors, by sequence
  size_t early_bytes = 0;
};

class LinkRules {
 public:
  class Backend {
   public:
    // The peer's link of incarnation `from_link` is dead for us: tell the peer. Best effort.
    virtual void refuse(LinkState* link, uint64_t from_link) = 0;
    // A link whose loss is about to be reported: close what belongs to it.
    virtual void ended(std::unique_ptr<LinkState> link) = 0;

   protected:
    ~Backend() = default;
  };

  LinkRules(const Options& options, BufferPool* pool, Backend* backend)
      : options_(options), pool_(pool), backend_(backend) {}

  // ---- links
  LinkState* link_of(NodeId peer) const {
    return peer.value < links_.size() ? links_[peer.value].get() : nullptr;
  }
  Result<void> may_connect(NodeId peer) const;   // kInvalid, kExists
  uint64_t next_incarnation();                   // grows, also across restarts of the process
  void add(std::unique_ptr<LinkState> link);     // `peer` and `own` are filled in
  std::unique_ptr<LinkState> take(NodeId peer);  // disconnect(): no on_peer_lost follows; null: unknown peer
  void note_lost(LinkState* link, Error why);    // from here on send() answers kPeerLost
  template <class Do>
  void for_each(Do act) const {
    for (const auto& link : links_) {
      if (link != nullptr) {
        act(link.get());
      }
    }
  }
  bool has_notes() const { return !to_deliver_.empty() || !lost_.empty() || !writable_.empty(); }
  int act_on_notes();

  // ---- sending
  Result<LinkState*> admit(NodeId to, std::span<const std::byte> header, size_t payload_bytes);
  WireHeader next_header(const LinkState& link, Service service, size_t header_bytes,
                         size_t payload_bytes) const;
  void count_sent(LinkState* link, size_t bytes);
  void note_room(LinkState* link);  // after queued_bytes fell

  // ---- receiving: a message whose header was decoded as good
  void arrived(const WireHeader& wire, std::span<const std::byte> header, std::span<const std::byte> payload);

  void set_handler(Service service, Handler* handler);
  void silence() { handlers_.fill(nullptr); }
  Counters& counters() { return counters_; }
  const Counters& counters() const { return counters_; }

 private:
  // What outlives a link: which incarnations of the node are over, and what it sent before connect().
  struct Acquaintance {
    uint64_t newest_dead = 0;  // incarnations up to here are over
    uint64_t refused = 0;      // told once for each
    std::deque<Waiting> held;
    size_t held_bytes = 0;
  };
  struct Lost {
    NodeId peer;
    Error why;
  };

  void refuse(LinkState* link, const WireHeader& wire);
  void arrived_on(LinkState* link, const WireHeader& wire, std::span<const std::byte> header,
                  std::span<const std::byte> payload);
  bool hold(const WireHeader& wire, std::span<const std::byte> header, std::span<const std::byte> payload);
  void drop_held(Acquaintance* known);
  void keep_early(LinkState* link, const WireHeader& wire, std::span<const std::byte> header,
                  std::span<const std::byte> payload);
  void deliver_early(LinkState* link);
  void deliver(const WireHeader& wire, std::span<const std::byte> header, std::span<const std::byte> payload);
  Waiting copy_of(const WireHeader& wire, std::span<const std::byte> header,
                  std::span<const std::byte> payload);
  int report_lost();
  int deliver_held();
  int report_writable();

  const Options options_;
  BufferPool* const pool_;
  Backend* const backend_;
  uint64_t last_incarnation_ = 0;
  std::vector<std::unique_ptr<LinkState>> links_;  // by NodeId
  std::unordered_map<NodeId, Acquaintance> acquaintances_;
  size_t held_bytes_ = 0;           // of all acquaintances
  std::vector<NodeId> to_deliver_;  // connected while messages were held
  std::vector<Lost> lost_;
  std::vector<NodeId> writable_;
  std::array<Handler*, kServices> handlers_{};
  Counters counters_;
};

}  // namespace kevre::transport
