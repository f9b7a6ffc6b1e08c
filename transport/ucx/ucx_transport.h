// UcxTransport: messages as UCP active messages, over tcp between nodes and shared memory where both ends see
// it.
//
// One context and one worker (single-threaded) per transport; one endpoint per connected peer. Everything
// that UCX reports inside ucp_worker_progress() about a link's end (error, completed close, room in a queue)
// is only noted there and acted upon after it returned: closing an endpoint inside UCX's own callback is not
// safe.
//
// Links: the rules are link_rules.h. A message of an older incarnation is answered by a reset.
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
#include <memory>
#include <string>
#include <vector>

#include "transport/buffer_pool.h"
#include "transport/link_rules.h"
#include "transport/transport.h"
#include "transport/ucx/ucx_config.h"
#include "transport/wire_header.h"

namespace kevre::transport::ucx {

struct Link final : LinkState {
  ucp_ep_h endpoint = nullptr;
  size_t unfinished_sends = 0;
  void* closing = nullptr;  // UCX's request while the endpoint closes
  std::string_view via;
};

class UcxTransport final : public Transport, private LinkRules::Backend {
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
  void set_handler(Service service, Handler* handler) override { rules_.set_handler(service, handler); }

  Result<void> send(NodeId to, Service service, std::span<const std::byte> header,
                    std::span<const std::byte> payload) override;
  Result<void> send(NodeId to, Service service, std::span<const std::byte> header, Buffer payload) override;
  Buffer buffer(size_t bytes) override { return pool_.take(bytes); }
  size_t queued_bytes(NodeId peer) const override;
  Counters counters() const override { return rules_.counters(); }

 private:
  struct SendSlot {  // keeps header and payload alive until UCX is done with them
    UcxTransport* transport = nullptr;
    Link* link = nullptr;
    SendSlot* next_free = nullptr;
    size_t bytes = 0;
    Buffer payload;
    alignas(8) std::array<std::byte, kHeadBytesMax> head;
  };

  explicit UcxTransport(const Options& options) : options_(options), rules_(options, &pool_, this) {}
  Result<void> start();

  // ucx_transport.cc: peers
  Link* link_of(NodeId peer) const { return static_cast<Link*>(rules_.link_of(peer)); }
  void refuse(LinkState* link, uint64_t from_link) override;
  void ended(std::unique_ptr<LinkState> link) override;
  int act_on_notes();
  void start_close(Link* link);
  int reap_closed();
  void shut_down();
  static void on_endpoint_error(void* argument, ucp_ep_h endpoint, ucs_status_t status);

  // ucx_send.cc
  Result<void> post(Link* link, Service service, std::span<const std::byte> header, Buffer payload);
  void send_reset(Link* link, uint64_t to_link);
  ucs_status_ptr_t hand_to_ucx(Link* link, SendSlot* slot, size_t head_bytes);
  SendSlot* take_slot();
  void give_slot_back(SendSlot* slot);
  static void on_sent(void* request, ucs_status_t status, void* slot);

  // ucx_receive.cc
  static ucs_status_t on_arrival(void* transport, const void* head, size_t head_bytes, void* data,
                                 size_t data_bytes, const ucp_am_recv_param_t* param);

  const Options options_;
  BufferPool pool_;  // before everything that holds a Buffer
  std::unique_ptr<ucp_context, ContextDeleter> context_;
  ucp_worker_h worker_ = nullptr;
  int wake_fd_ = -1;
  Address address_;
  LinkRules rules_;
  std::vector<std::unique_ptr<Link>> ended_;  // until their endpoints are closed and their sends returned
  std::vector<std::unique_ptr<SendSlot>> slots_;
  SendSlot* free_slot_ = nullptr;
  bool in_progress_ = false;
  bool arm_failed_ = false;
};

}  // namespace kevre::transport::ucx
