// UcxTransport: messages as UCP active messages, over tcp between nodes and shared memory where both ends see
// it.
//
// One context and one worker (single-threaded) per transport; one endpoint per connected peer. Everything
// that UCX reports inside ucp_worker_progress() about a link's end (error, completed close, room in a queue)
// is only noted there and acted upon after it returned: closing an endpoint inside UCX's own callback is not
// safe.
//
// Links. Each connect() makes a Link with a new incarnation number, which every message carries
// (wire_header.h). What came from a node that connect() was not called for yet is held (bounded) and
// delivered once it is. A message of an older incarnation is rejected and answered by a reset, so that its
// sender reports the peer lost instead of waiting.
//
// Order. Everything is sent eagerly (UCP_AM_SEND_FLAG_EAGER): rendezvous would let a small message overtake a
// large one and buys nothing over tcp or posix shared memory, where UCX copies either way. Sequence numbers
// check it, and a bounded buffer puts right what some other transport of UCX may reorder.
//
// What UCX sees and when: a tcp peer's death at once (its kernel closes the connection); a peer on shared memory within
// the keepalive interval (1 s; it looks for the process; one wake-up a second); a machine that vanished by tcp keepalive,
// 10 s and more. The cluster's heartbeats are the answer to the last. Over shared memory an orderly end is told by a reset.
//
// Limit: UCX trusts whoever speaks its own protocol on its tcp port. Garbage and truncated bytes are harmless there, but
// a stranger who knows UCX's magic number and packet layout can crash UCX 1.13. The port belongs on a network where only
// nodes are (Options::bind_address), or behind a filter.
//
// Owns: context, worker, endpoints, the buffers of unfinished sends. Threads: see transport.h.
// Tested in tests/transport/conformance_test.cc, ucx_process_test.cc and ucx_test.cc.
#pragma once

#include <ucp/api/ucp.h>

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "transport/buffer_pool.h"
#include "transport/transport.h"
#include "transport/ucx/ucx_config.h"
#include "transport/wire_header.h"

namespace kevre::transport::ucx {

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

struct Link {
  NodeId peer;
  ucp_ep_h endpoint = nullptr;
  uint64_t own = 0;     // our incarnation
  uint64_t remote = 0;  // the peer's, 0 until its first message
  uint64_t next_to_send = 0;
  uint64_t next_to_receive = 0;
  size_t queued_bytes = 0;
  size_t unfinished_sends = 0;
  bool was_busy = false;  // send() answered kBusy: on_writable is owed
  bool writable_noted = false;
  bool open = true;                   // false: lost or disconnected, waiting for its endpoint to close
  bool holding = false;               // the node's held messages go first
  std::map<uint64_t, Waiting> early;  // arrived before their predecessors, by sequence
  size_t early_bytes = 0;
  void* closing = nullptr;  // UCX's request while the endpoint closes
  std::string_view via;
};

// What outlives a link: which incarnations of the node are over, and what it sent before connect().
struct Acquaintance {
  uint64_t newest_dead = 0;    // incarnations up to here are over
  uint64_t reset_sent_to = 0;  // one reset for each
  std::deque<Waiting> held;
  size_t held_bytes = 0;
};

class UcxTransport final : public Transport {
 public:
  static Result<std::unique_ptr<Transport>> create(const Options& options);
  ~UcxTransport() override;

  int progress() override;
  bool arm() override;
  int wake_fd() const override { return wake_fd_; }

  NodeId self() const override { return options_.self; }
  Address local_address() const override { return address_; }
  std::string_view name() const override { return "ucx"; }

  Result<void> connect(NodeId peer, std::span<const std::byte> address) override;
  void disconnect(NodeId peer) override;
  Capabilities capabilities(NodeId peer) const override;
  void set_handler(Service service, Handler* handler) override;

  Result<void> send(NodeId to, Service service, std::span<const std::byte> header,
                    std::span<const std::byte> payload) override;
  Result<void> send(NodeId to, Service service, std::span<const std::byte> header, Buffer payload) override;
  Buffer buffer(size_t bytes) override { return pool_.take(bytes); }
  size_t queued_bytes(NodeId peer) const override;
  Counters counters() const override { return counters_; }

 private:
  struct SendSlot {  // keeps header and payload alive until UCX is done with them
    UcxTransport* transport = nullptr;
    Link* link = nullptr;
    SendSlot* next_free = nullptr;
    size_t bytes = 0;
    Buffer payload;
    alignas(8) std::array<std::byte, kHeadBytesMax> head;
  };

  explicit UcxTransport(const Options& options) : options_(options) {}
  Result<void> start();

  // ucx_transport.cc: peers
  Link* link_of(NodeId peer) const { return peer.value < links_.size() ? links_[peer.value].get() : nullptr; }
  uint64_t next_incarnation();
  void note_lost(Link* link, Error why);
  int act_on_notes();
  int report_lost();
  void start_close(Link* link);
  int reap_closed();
  void shut_down();
  static void on_endpoint_error(void* argument, ucp_ep_h endpoint, ucs_status_t status);

  // ucx_send.cc
  Result<Link*> admit(NodeId to, std::span<const std::byte> header, size_t payload_bytes);
  Result<void> post(Link* link, Service service, std::span<const std::byte> header, Buffer payload);
  void send_reset(Link* link, uint64_t to_link);
  ucs_status_ptr_t hand_to_ucx(Link* link, SendSlot* slot, size_t head_bytes);
  SendSlot* take_slot();
  void give_slot_back(SendSlot* slot);
  void note_room(Link* link);
  int report_writable();
  static void on_sent(void* request, ucs_status_t status, void* slot);

  // ucx_receive.cc
  static ucs_status_t on_arrival(void* transport, const void* head, size_t head_bytes, void* data,
                                 size_t data_bytes, const ucp_am_recv_param_t* param);
  void arrived(const WireHeader& wire, std::span<const std::byte> header, std::span<const std::byte> payload);
  void arrived_on(Link* link, const WireHeader& wire, std::span<const std::byte> header,
                  std::span<const std::byte> payload);
  void refuse(Link* link, const WireHeader& wire);
  bool hold(const WireHeader& wire, std::span<const std::byte> header, std::span<const std::byte> payload);
  void drop_held(Acquaintance* known);
  void keep_early(Link* link, const WireHeader& wire, std::span<const std::byte> header,
                  std::span<const std::byte> payload);
  void deliver_early(Link* link);
  int deliver_held();
  void deliver(const WireHeader& wire, std::span<const std::byte> header, std::span<const std::byte> payload);
  Waiting copy_of(const WireHeader& wire, std::span<const std::byte> header,
                  std::span<const std::byte> payload);

  struct Lost {
    NodeId peer;
    Error why;
  };

  const Options options_;
  BufferPool pool_;  // before everything that holds a Buffer
  std::unique_ptr<ucp_context, ContextDeleter> context_;
  ucp_worker_h worker_ = nullptr;
  int wake_fd_ = -1;
  Address address_;
  uint64_t last_incarnation_ = 0;
  std::vector<std::unique_ptr<Link>> links_;  // by NodeId
  std::vector<std::unique_ptr<Link>> ended_;  // until their endpoints are closed and their sends returned
  std::unordered_map<NodeId, Acquaintance> acquaintances_;
  size_t held_bytes_ = 0;           // of all acquaintances
  std::vector<NodeId> to_deliver_;  // connected while messages were held
  std::vector<Lost> lost_;
  std::vector<NodeId> writable_;
  std::vector<std::unique_ptr<SendSlot>> slots_;
  SendSlot* free_slot_ = nullptr;
  std::array<Handler*, kServices> handlers_{};
  Counters counters_;
  bool in_progress_ = false;
  bool arm_failed_ = false;
};

}  // namespace kevre::transport::ucx
