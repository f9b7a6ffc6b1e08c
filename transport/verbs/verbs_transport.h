// VerbsTransport: messages and one-sided operations over RC queue pairs of an RDMA device.
//
// Connections. Each connect() opens an outgoing queue pair of its own, over which this node sends and
// operates on the peer's memory. What the listener accepts is for receiving only; the answers on it are the
// freed receive buffers (credits), as immediate data of empty sends. Who connects says in the private data
// which node and which incarnation of its link it is; a stranger (another tag, another addressee) is rejected
// there. The rules of links are link_rules.h; to refuse an incarnation is to close the accepted connection
// that it came over, which its sender sees as a disconnect.
//
// Order. Messages and one-sided operations to a peer stand in one line (Link::line) and leave it in that
// order into one send queue; RC executes a send queue in order at the peer. That is the promise of
// transport.h; see drain_arrivals() for the other half.
//
// Back-pressure. A sender has as many chunks (flow.h) on their way as the receiver keeps buffers for it in
// the shared receive queue, so "receiver not ready" does not happen between honest peers; one that takes more
// is cut off. What goes beyond waits in the line, up to Options::peer_queue_bytes_max.
//
// A bad access (deregistered or foreign memory) is refused by the peer's device, which breaks the queue pair:
// the operation gets kInvalid, everything else under way kPeerLost, and the peer is reported lost. A queue
// pair of its own for one-sided work would keep the link but lose the order. So a region is deregistered when
// no peer will use it any more. The local memory of an operation stays as it is until its completion; what is
// a Buffer of this transport or lies in a region registered here goes without a copy (a write from anywhere
// else is copied before write() returns).
//
// Losses. A killed peer's kernel disconnects at once. A vanished one is seen when something is under way and
// the device's retries are used up (about 2 s, up to 8 s); with nothing under way by the cluster's heartbeats
// only. A device that goes away (IBV_EVENT_DEVICE_FATAL, RDMA_CM_EVENT_DEVICE_REMOVAL) loses all peers, and
// connect() fails from then on. Destroying the transport drops what is under way; its completions are not
// called.
//
// Parts: verbs_transport.cc (life, progress), verbs_connect.cc, verbs_send.cc, verbs_one_sided.cc,
// verbs_receive.cc. Owns: the device and everything on it. Threads: see transport.h. Tested in
// tests/transport/conformance_test.cc and verbs_process_test.cc where a device is (label rdma).
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/fd.h"
#include "transport/buffer_pool.h"
#include "transport/link_rules.h"
#include "transport/transport.h"
#include "transport/verbs/device.h"
#include "transport/verbs/flow.h"
#include "transport/verbs/message_pool.h"
#include "transport/verbs/verbs_wire.h"

namespace kevre::transport::verbs {

inline constexpr size_t kOperationsWaitingMax = 65536;  // one-sided, per peer

// One message or one-sided operation on its way into the send queue, piece by piece.
struct Work {
  enum class Kind : uint8_t { kMessage, kRead, kWrite, kFetchAdd, kCompareSwap, kMarker };
  Kind kind = Kind::kMessage;
  Buffer buffer;               // the message's payload (its head in the headroom), or a write's copy
  std::byte* local = nullptr;  // first byte: of the message's head, of a read's target, of a write's source
  size_t bytes = 0;
  size_t posted = 0;
  size_t queued_bytes = 0;  // what it counts for in LinkState::queued_bytes
  uint64_t remote = 0;
  uint32_t rkey = 0;
  uint64_t first = 0, second = 0;  // operands of atomics
  Completion done;
};

// One work request in the send queue, and what is to be done when it is complete.
struct Posted {
  bool signalled = false;
  bool last = false;  // of its Work
  Buffer buffer;
  size_t queued_bytes = 0;
  std::byte* bounce = nullptr;
  std::byte* copy_to = nullptr;  // a read through a bounce
  size_t copy_bytes = 0;
  uint64_t* answer = nullptr;
  Completion done;
};

struct Link final : LinkState {
  enum class State : uint8_t { kConnecting, kUp, kEnding, kClosed };
  uint64_t number = 0;  // names it to the device and to rdma_cm
  State state = State::kConnecting;
  rdma_cm_id* id = nullptr;
  bool has_queue_pair = false;
  bool disconnected = false;  // by the peer: nothing more to say to it
  uint32_t inline_bytes = 0;
  uint32_t send_queue = 0;
  SendWindow window;
  bool peer_atomics = true;  // until it says otherwise
  std::deque<Work> line;
  size_t operations = 0;  // one-sided ones in `line` and `posted`
  std::deque<Posted> posted;
  uint64_t posted_first = 0;  // position of posted.front()
  uint32_t unsignalled = 0;   // at the end of `posted`
  Nanos deadline = 0;         // kConnecting: give up; kEnding: close
};

// A connection that the listener took: a peer's messages come in over it.
struct Accepted {
  Accepted(uint32_t granted, BufferPool* pool, uint64_t tag, NodeId self)
      : window(granted), assembly(pool, tag, self) {}
  uint64_t number = 0;
  rdma_cm_id* id = nullptr;
  uint32_t queue_pair = 0;
  NodeId from;
  uint64_t from_link = 0;
  ReceiveWindow window;
  Assembly assembly;
  bool over = false;        // nothing of it counts any more
  bool peer_ended = false;  // tell the link when what it sent before is handed up
  bool drained = false;     // the device is done with its receive buffers
  Nanos close_at = 0;       // over: at the latest then
};

class VerbsTransport final : public Transport, private LinkRules::Backend {
 public:
  static Result<std::unique_ptr<Transport>> create(const Options& options);
  ~VerbsTransport() override;

  int progress() override;
  bool arm() override;
  int wake_fd() const override { return wake_.get(); }

  NodeId self() const override { return options_.self; }
  Address local_address() const override;
  std::string_view name() const override { return "verbs"; }

  Result<void> connect(NodeId peer, std::span<const std::byte> address) override;
  void disconnect(NodeId peer) override;
  Capabilities capabilities(NodeId peer) const override;
  void set_handler(Service service, Handler* handler) override { rules_.set_handler(service, handler); }

  Result<void> send(NodeId to, Service service, std::span<const std::byte> header,
                    std::span<const std::byte> payload) override;
  Result<void> send(NodeId to, Service service, std::span<const std::byte> header, Buffer payload) override;
  Buffer buffer(size_t bytes) override { return messages_->take(bytes); }
  size_t queued_bytes(NodeId peer) const override;

  Result<RegionKey> register_region(std::span<std::byte> memory) override;
  void deregister_region(const RegionKey& key) override;
  Result<void> read(NodeId peer, RemoteAddress from, std::span<std::byte> to, Completion done) override;
  Result<void> write(NodeId peer, std::span<const std::byte> from, RemoteAddress to,
                     Completion done) override;
  Result<void> fetch_add(NodeId peer, RemoteAddress at, uint64_t addend, Completion done) override;
  Result<void> compare_swap(NodeId peer, RemoteAddress at, uint64_t expected, uint64_t desired,
                            Completion done) override;
  Result<void> drain_arrivals(std::function<void()> done) override;
  Counters counters() const override { return rules_.counters(); }

 private:
  // What a completion belongs to: kind, number of the link or connection (or of the receive buffer),
  // position.
  enum class Tag : uint8_t { kReceive = 1, kSend = 2, kCredit = 3, kAnswer = 4 };
  static constexpr uint64_t kNumberMask = (uint64_t{1} << 36) - 1;
  static constexpr uint64_t kPositionMask = (uint64_t{1} << 24) - 1;
  static uint64_t wr_id(Tag tag, uint64_t number, uint64_t position = 0) {
    return static_cast<uint64_t>(tag) << 60 | (number & kNumberMask) << 24 | (position & kPositionMask);
  }
  static uint64_t number_in(uint64_t id) { return id >> 24 & kNumberMask; }

  explicit VerbsTransport(const Options& options) : options_(options), rules_(options, &pool_, this) {}
  Result<void> start();

  // verbs_transport.cc: life and progress
  Link* link_of(NodeId peer) const { return static_cast<Link*>(rules_.link_of(peer)); }
  void refuse(LinkState* link, uint64_t from_link) override;
  void ended(std::unique_ptr<LinkState> link) override;
  int poll_completions(bool until_empty);
  bool arm_completions();
  void handle(const ibv_wc& completion);
  int look_at_device();
  void look_at_async_events();
  int keep_deadlines();
  void report_peer_ends();
  int close_what_ended();
  int answer_drains(size_t asked_before);
  void lose_device(const std::string& why);
  void lose(Link* link, std::string why);
  void set_timer();
  Nanos next_deadline() const;
  void shut_down();

  // verbs_connect.cc: rdma_cm
  bool look_at_wake_ups();
  int take_connection_events();
  void on_outgoing_event(Link* link, const rdma_cm_event& event);
  void on_accepted_event(Accepted* accepted, const rdma_cm_event& event);
  void on_request(rdma_cm_id* id, const rdma_cm_event& event);
  Result<void> accept(rdma_cm_id* id, const rdma_cm_event& event, const Hello& hello);
  Result<void> create_outgoing_queue_pair(Link* link);
  Result<void> request_connection(Link* link);
  void welcomed(Link* link, const rdma_cm_event& event);
  void close(Link* link);  // from here on the device touches nothing of it; its operations fail
  void end_accepted(Accepted* accepted);
  void forget_oldest_of(NodeId node);
  Result<void> add_receive_buffers(uint32_t wanted);

  // verbs_send.cc
  Result<void> enqueue_message(Link* link, Service service, std::span<const std::byte> header,
                               Buffer payload);
  bool send_inline(Link* link, Service service, std::span<const std::byte> header,
                   std::span<const std::byte> payload);
  void pump(Link* link);
  bool post_next(Link* link, Work* work);
  bool post(Link* link, ibv_send_wr* request, Posted posted, bool want_signal);
  void on_sent(const ibv_wc& completion);
  void on_failed(Link* link, const ibv_wc& completion);
  void finish(Link* link, Posted* posted, bool good);
  void release(Posted* posted);
  void end_in_order(Link* link);

  // verbs_one_sided.cc
  Result<Link*> admit_operation(NodeId peer, const RemoteAddress& at, size_t bytes, Work* work);
  void enqueue(Link* link, Work work);
  bool fill_one_sided(Work* work, ibv_send_wr* request, ibv_sge* piece, Posted* posted);
  Result<void> atomic(NodeId peer, RemoteAddress at, Work work);

  // verbs_receive.cc
  void on_chunk(const ibv_wc& completion);
  void take_chunk(Accepted* accepted, std::span<const std::byte> chunk);
  void post_receive(uint32_t buffer);
  void tell_freed(Accepted* accepted);
  void on_credit(const ibv_wc& completion);
  void post_credit_receive(Link* link);

  const Options options_;
  BufferPool pool_;  // reassembly and held messages; before everything that holds a Buffer
  std::unique_ptr<OpenDevice> device_;
  std::unique_ptr<MessagePool> messages_;
  UniqueFd wake_;   // epoll over the three of the device, and the timer
  UniqueFd timer_;  // connecting and closing have deadlines
  LinkRules rules_;
  uint64_t last_number_ = 0;
  std::unordered_map<uint64_t, Link*> outgoing_;  // by number, until closed
  std::unordered_map<uint64_t, std::unique_ptr<Accepted>> accepted_;
  std::unordered_map<uint32_t, Accepted*> by_queue_pair_;
  std::vector<std::unique_ptr<Link>> ended_;
  std::vector<std::byte*> receive_buffers_;
  uint32_t receive_promised_ = 0;  // of them, to accepted connections
  std::vector<ibv_wc> stash_;      // polled by arm()
  std::vector<std::function<void()>> drains_;
  uint64_t polled_ = 0;
  uint32_t idle_turns_ = 0;
  bool room_for_starved_ = false;  // bounces or answers came back: whoever waits for one goes on
  bool look_now_ = true;           // at the device's events
  bool slept_ = false;             // since the last look at what wake_ says
  bool armed_ = false;             // a completion will make an event, or has made one that was not taken
  bool timer_set_ = false;
  bool accepted_over_ = false;
  bool in_progress_ = false;
  bool silent_ = false;  // shutting down: no completions
  std::string broken_;   // the device is gone: why
};

}  // namespace kevre::transport::verbs
