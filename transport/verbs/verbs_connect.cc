// Connections: what rdma_cm reports, and how queue pairs come and go.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <rdma/rdma_cma.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_transport.h"

namespace kevre::transport::verbs {
namespace {

constexpr int kResolveMs = 3000;
constexpr Nanos kConnectWithin = 8 * kSecond;
constexpr Nanos kLinger = 200 * kMillisecond;
constexpr Nanos kDrainWithin = 100 * kMillisecond;
// 4.096 us * 2^16 = 0.27 s without an acknowledgement (devices may take up to four times that), seven times
// over.
constexpr uint8_t kAckTimeout = 16;
constexpr uint8_t kRetries = 7;
constexpr uint8_t kReceiverNotReadyRetries = 6;  // credits see to it that none is needed
constexpr uint32_t kInlineWanted = 256;
constexpr uint32_t kCreditReceives = 8;  // at most 3 are under way: see ReceiveWindow::to_tell()
constexpr uint32_t kCreditSends = 16;
constexpr uint32_t kWindowWanted = 32;
constexpr uint32_t kWindowMin = 4;
constexpr size_t kBuffersPerSlab = 64;
constexpr size_t kConnectionsOfOneNode = 3;

void* context_of(uint64_t number) {
  return reinterpret_cast<void*>(static_cast<uintptr_t>(number));
}
uint64_t number_of(const rdma_cm_id* id) {
  return reinterpret_cast<uintptr_t>(id->context);
}

std::span<const std::byte> private_data(const rdma_cm_event& event) {
  const auto* data = static_cast<const std::byte*>(event.param.conn.private_data);
  return {data, data == nullptr ? size_t{0} : event.param.conn.private_data_len};
}

sockaddr_in socket_address(uint32_t ipv4, uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(ipv4);
  address.sin_port = htons(port);
  return address;
}

std::string why_refused(const rdma_cm_event& event) {
  const auto data = private_data(event);
  const auto refusal = data.empty() ? Refusal::kUnknown : static_cast<Refusal>(data[0]);
  if (refusal == Refusal::kStranger) {
    return "it refused the connection: not a node of its cluster, or not who it was taken for";
  }
  if (refusal == Refusal::kNoMemory) {
    return "it refused the connection: it may register no more memory (raise its memlock limit)";
  }
  return "it refused the connection";
}

}  // namespace

// ---- outgoing

Result<void> VerbsTransport::connect(NodeId peer, std::span<const std::byte> address) {
  KEVRE_TRY(rules_.may_connect(peer));
  KEVRE_ASSIGN(const Endpoint endpoint, decode_address(address));
  if (!broken_.empty()) {
    return fail(Errc::kUnsupported, "{}", broken_);
  }
  auto link = std::make_unique<Link>();
  if (rdma_create_id(device_->channel(), &link->id, nullptr, RDMA_PS_TCP) != 0) {
    return fail_errno("rdma_create_id");
  }
  sockaddr_in from = socket_address(device_->subnet().address, 0);
  sockaddr_in to = socket_address(endpoint.subnet.address, endpoint.port);
  if (rdma_resolve_addr(link->id, reinterpret_cast<sockaddr*>(&from), reinterpret_cast<sockaddr*>(&to),
                        kResolveMs) != 0) {
    const int why = errno;
    rdma_destroy_id(link->id);
    return fail_errno_text(why, fmt::format("connecting to node {} at {}", peer, endpoint.subnet.text()));
  }
  link->peer = peer;
  link->own = rules_.next_incarnation();
  link->number = ++last_number_;
  link->id->context = context_of(link->number);
  link->deadline = now_ns() + kConnectWithin;
  outgoing_.emplace(link->number, link.get());
  rules_.add(std::move(link));
  return {};
}

int VerbsTransport::take_connection_events() {
  int done = 0;
  rdma_cm_event* pending = nullptr;
  while (rdma_get_cm_event(device_->channel(), &pending) == 0) {
    ++done;
    rdma_cm_id* const id = pending->id;
    rdma_cm_event event = *pending;
    // The private data goes with the event, and an event must be given back before its id is destroyed.
    std::array<std::byte, 256> data{};
    const bool has_data = event.event == RDMA_CM_EVENT_CONNECT_REQUEST ||
                          event.event == RDMA_CM_EVENT_ESTABLISHED || event.event == RDMA_CM_EVENT_REJECTED;
    const auto sent = has_data ? private_data(event).first(std::min(private_data(event).size(), data.size()))
                               : std::span<const std::byte>{};
    if (!sent.empty()) {
      std::memcpy(data.data(), sent.data(), sent.size());
    }
    event.param.conn.private_data = data.data();
    event.param.conn.private_data_len = static_cast<uint8_t>(std::min<size_t>(sent.size(), 255));
    rdma_ack_cm_event(pending);
    if (event.event == RDMA_CM_EVENT_DISCONNECTED) {
      done += poll_completions(true);  // what the peer sent before is handed up before it is reported lost
    }
    if (event.event == RDMA_CM_EVENT_CONNECT_REQUEST) {
      on_request(id, event);
    } else if (id == device_->listener()) {
      if (event.event == RDMA_CM_EVENT_DEVICE_REMOVAL) {
        lose_device("the RDMA device was removed");
      }
    } else if (const auto link = outgoing_.find(number_of(id)); link != outgoing_.end()) {
      on_outgoing_event(link->second, event);
    } else if (const auto accepted = accepted_.find(number_of(id)); accepted != accepted_.end()) {
      on_accepted_event(accepted->second.get(), event);
    }
  }
  return done;
}

void VerbsTransport::on_outgoing_event(Link* link, const rdma_cm_event& event) {
  Result<void> done;
  switch (event.event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
      done = create_outgoing_queue_pair(link);
      break;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
      done = request_connection(link);
      break;
    case RDMA_CM_EVENT_ESTABLISHED:
      welcomed(link, event);
      break;
    case RDMA_CM_EVENT_DISCONNECTED:
      lose(link, "it ended the connection");
      break;
    case RDMA_CM_EVENT_REJECTED:
      lose(link, why_refused(event));
      break;
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      lose_device("the RDMA device was removed");
      break;
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
      lose(link, fmt::format("it cannot be reached ({}: {})", rdma_event_str(event.event),
                             std::strerror(std::abs(event.status))));
      break;
    case RDMA_CM_EVENT_CONNECT_REQUEST:
    case RDMA_CM_EVENT_CONNECT_RESPONSE:
    case RDMA_CM_EVENT_MULTICAST_JOIN:
    case RDMA_CM_EVENT_MULTICAST_ERROR:
    case RDMA_CM_EVENT_ADDR_CHANGE:
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
      break;
  }
  if (!done) {
    lose(link, done.error().text);
  }
}

Result<void> VerbsTransport::create_outgoing_queue_pair(Link* link) {
  if (link->id->verbs != device_->context()) {
    return fail(Errc::kUnsupported, "it is not reached over this node's RDMA device");
  }
  uint8_t timeout = kAckTimeout;
  if (rdma_set_option(link->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof timeout) != 0) {
    KEVRE_LOG_DEBUG("verbs: this kernel sets its own acknowledgement timeout: {}", std::strerror(errno));
  }
  const uint32_t depth = device_->limits().send_queue;
  KEVRE_TRY(device_->make_room(depth + kCreditReceives));
  ibv_qp_init_attr wanted{};
  wanted.send_cq = wanted.recv_cq = device_->cq();
  wanted.qp_type = IBV_QPT_RC;
  wanted.cap.max_send_wr = depth;
  wanted.cap.max_send_sge = 1;
  wanted.cap.max_recv_wr = kCreditReceives;
  wanted.cap.max_recv_sge = 1;
  wanted.cap.max_inline_data = kInlineWanted;
  ibv_qp_init_attr made = wanted;
  int failed = rdma_create_qp(link->id, device_->pd(), &made);
  if (failed != 0) {  // a device with less room for inline data says so in this way only
    made = wanted;
    made.cap.max_inline_data = 0;
    failed = rdma_create_qp(link->id, device_->pd(), &made);
  }
  if (failed != 0) {
    device_->give_room_back(depth + kCreditReceives);
    return fail_errno("rdma_create_qp");
  }
  link->has_queue_pair = true;
  link->inline_bytes = std::min(made.cap.max_inline_data, kInlineWanted);
  link->send_queue = depth;
  for (uint32_t i = 0; i < kCreditReceives; ++i) {
    post_credit_receive(link);
  }
  if (rdma_resolve_route(link->id, kResolveMs) != 0) {
    return fail_errno("rdma_resolve_route");
  }
  return {};
}

Result<void> VerbsTransport::request_connection(Link* link) {
  const auto hello = encode_hello({options_.self, link->peer, options_.cluster_tag, link->own});
  rdma_conn_param param{};
  param.private_data = hello.data();
  param.private_data_len = static_cast<uint8_t>(hello.size());
  param.initiator_depth = device_->limits().reads_in_flight;
  param.responder_resources = 0;  // nobody operates on our memory over this one
  param.retry_count = kRetries;
  param.rnr_retry_count = kReceiverNotReadyRetries;
  if (rdma_connect(link->id, &param) != 0) {
    return fail_errno("rdma_connect");
  }
  return {};
}

void VerbsTransport::welcomed(Link* link, const rdma_cm_event& event) {
  const auto welcome = decode_welcome(private_data(event));
  if (!welcome || welcome->chunk_bytes != kChunkBytes) {
    lose(link, "its answer to the connection request is none of ours (do all nodes run one version?)");
    return;
  }
  if (link->state != Link::State::kConnecting) {
    return;
  }
  link->state = Link::State::kUp;
  link->window.open(welcome->window);
  link->peer_atomics = welcome->atomics;
  pump(link);
}

// Lets what was sent go out: for kLinger at most.
void VerbsTransport::end_in_order(Link* link) {
  if (link->state != Link::State::kUp || link->disconnected) {
    return;
  }
  link->state = Link::State::kEnding;
  link->deadline = now_ns() + kLinger;
  Work marker;
  marker.kind = Work::Kind::kMarker;
  if (!link->posted.empty() || !link->line.empty()) {
    link->line.push_back(std::move(marker));
    pump(link);
  }
}

void VerbsTransport::close(Link* link) {
  if (link->state == Link::State::kClosed) {
    return;
  }
  const bool connected = link->state != Link::State::kConnecting;
  link->state = Link::State::kClosed;
  outgoing_.erase(link->number);
  if (connected) {
    rdma_disconnect(link->id);
  }
  if (link->has_queue_pair) {
    rdma_destroy_qp(link->id);
    device_->give_room_back(link->send_queue + kCreditReceives);
  }
  rdma_destroy_id(link->id);
  link->id = nullptr;
  for (Posted& posted : std::exchange(link->posted, {})) {
    finish(link, &posted, false);
  }
  for (Work& work : std::exchange(link->line, {})) {
    if (work.done && !silent_) {
      work.done(fail(Errc::kPeerLost, "node {} was lost before the operation was done", link->peer));
    }
  }
}

// ---- accepted

void VerbsTransport::on_request(rdma_cm_id* id, const rdma_cm_event& event) {
  id->context = nullptr;
  const auto hello = decode_hello(private_data(event));
  const bool known = hello && hello->tag == options_.cluster_tag && hello->to == options_.self;
  auto refusal = Refusal::kStranger;
  if (known && broken_.empty()) {
    const Result<void> accepted = accept(id, event, *hello);
    if (accepted) {
      return;
    }
    if (accepted.error().code == Errc::kExhausted) {
      KEVRE_LOG_WARN("verbs: node {} was refused: {}", hello->from, accepted.error().text);
    } else {  // it has gone meanwhile
      KEVRE_LOG_DEBUG("verbs: node {} was refused: {}", hello->from, accepted.error().text);
    }
    refusal = Refusal::kNoMemory;
  }
  rules_.counters().rejected += known ? 0 : 1;
  rdma_reject(id, &refusal, sizeof refusal);
  rdma_destroy_id(id);
}

// A share of what is left, so that later peers get one too.
Result<void> VerbsTransport::accept(rdma_cm_id* id, const rdma_cm_event& event, const Hello& hello) {
  const DeviceLimits& limits = device_->limits();
  const uint32_t left = limits.receive_buffers - receive_promised_;
  const uint32_t window = std::clamp(left / 4, kWindowMin, kWindowWanted);
  if (left < window) {
    return fail(Errc::kExhausted, "no receive buffers are left for one more peer: raise the memlock limit");
  }
  forget_oldest_of(hello.from);
  KEVRE_TRY(add_receive_buffers(receive_promised_ + window));
  KEVRE_TRY(device_->make_room(kCreditSends));
  ibv_qp_init_attr made{};
  made.send_cq = made.recv_cq = device_->cq();
  made.srq = device_->srq();
  made.qp_type = IBV_QPT_RC;
  made.cap.max_send_wr = kCreditSends;
  made.cap.max_send_sge = 1;
  if (rdma_create_qp(id, device_->pd(), &made) != 0) {
    const auto error = fail_errno("rdma_create_qp");
    device_->give_room_back(kCreditSends);
    return error;
  }
  auto accepted = std::make_unique<Accepted>(window, &pool_, options_.cluster_tag, options_.self);
  accepted->number = ++last_number_;
  accepted->id = id;
  accepted->queue_pair = id->qp->qp_num;
  accepted->from = hello.from;
  accepted->from_link = hello.from_link;
  id->context = context_of(accepted->number);
  const auto welcome = encode_welcome({static_cast<uint16_t>(window), kChunkBytes, limits.atomics});
  rdma_conn_param param{};
  param.private_data = welcome.data();
  param.private_data_len = static_cast<uint8_t>(welcome.size());
  param.responder_resources = std::min(event.param.conn.responder_resources, limits.reads_answered);
  param.initiator_depth = 0;
  param.rnr_retry_count = kReceiverNotReadyRetries;
  if (rdma_accept(id, &param) != 0) {
    const auto error = fail_errno("rdma_accept");
    rdma_destroy_qp(id);
    device_->give_room_back(kCreditSends);
    return error;
  }
  receive_promised_ += window;
  by_queue_pair_[accepted->queue_pair] = accepted.get();
  accepted_.emplace(accepted->number, std::move(accepted));
  return {};
}

// Of a node that vanished and came back, the old connections say nothing any more but keep their buffers.
void VerbsTransport::forget_oldest_of(NodeId node) {
  Accepted* oldest = nullptr;
  size_t count = 0;
  for (const auto& [number, accepted] : accepted_) {
    if (accepted->from == node && !accepted->over) {
      ++count;
      oldest = oldest == nullptr || accepted->from_link < oldest->from_link ? accepted.get() : oldest;
    }
  }
  if (count >= kConnectionsOfOneNode) {
    end_accepted(oldest);
  }
}

Result<void> VerbsTransport::add_receive_buffers(uint32_t wanted) {
  while (receive_buffers_.size() < wanted) {
    const size_t count =
        std::min<size_t>(kBuffersPerSlab, device_->limits().receive_buffers - receive_buffers_.size());
    KEVRE_ASSIGN(const auto slab, device_->new_slab(count * kChunkBytes));
    for (size_t i = 0; i < count; ++i) {
      receive_buffers_.push_back(slab.data() + i * kChunkBytes);
      post_receive(static_cast<uint32_t>(receive_buffers_.size() - 1));
    }
  }
  return {};
}

void VerbsTransport::on_accepted_event(Accepted* accepted, const rdma_cm_event& event) {
  if (event.event == RDMA_CM_EVENT_DISCONNECTED || event.event == RDMA_CM_EVENT_CONNECT_ERROR ||
      event.event == RDMA_CM_EVENT_UNREACHABLE || event.event == RDMA_CM_EVENT_REJECTED) {
    accepted->peer_ended = true;
  } else if (event.event == RDMA_CM_EVENT_DEVICE_REMOVAL) {
    lose_device("the RDMA device was removed");
  }
}

// The device may still be filling receive buffers for it: its queue pair goes when they have come back.
void VerbsTransport::end_accepted(Accepted* accepted) {
  if (accepted->over) {
    return;
  }
  accepted->over = true;
  accepted->close_at = now_ns() + kDrainWithin;
  rdma_disconnect(accepted->id);
}

}  // namespace kevre::transport::verbs
