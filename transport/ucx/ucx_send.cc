// Sending: admission (back-pressure), the slots that keep a message alive until UCX is done with it, and
// completion.
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "transport/ucx/ucx_transport.h"

namespace kevre::transport::ucx {
namespace {
constexpr unsigned kMessageId = 1;
}

Result<void> UcxTransport::send(NodeId to, Service service, std::span<const std::byte> header,
                                std::span<const std::byte> payload) {
  KEVRE_ASSIGN(Link * link, admit(to, header, payload.size()));
  Buffer copy;
  if (!payload.empty()) {
    copy = pool_.take(payload.size());
    std::memcpy(copy.bytes().data(), payload.data(), payload.size());
  }
  return post(link, service, header, std::move(copy));
}

Result<void> UcxTransport::send(NodeId to, Service service, std::span<const std::byte> header,
                                Buffer payload) {
  KEVRE_ASSIGN(Link * link, admit(to, header, payload.size()));
  return post(link, service, header, std::move(payload));
}

Result<Link*> UcxTransport::admit(NodeId to, std::span<const std::byte> header, size_t payload_bytes) {
  if (header.size() > kHeaderBytesMax || payload_bytes > kPayloadBytesMax) {
    return fail(Errc::kInvalid, "a message with {} bytes of header and {} of payload is too long",
                header.size(), payload_bytes);
  }
  Link* link = link_of(to);
  if (link == nullptr || !link->open) {
    return fail(Errc::kPeerLost, "node {} is not connected", to);
  }
  // A message larger than the limit goes alone.
  if (link->queued_bytes > 0 &&
      link->queued_bytes + header.size() + payload_bytes > options_.peer_queue_bytes_max) {
    link->was_busy = true;
    return fail(Errc::kBusy, "{} bytes wait for node {}", link->queued_bytes, to);
  }
  return link;
}

Result<void> UcxTransport::post(Link* link, Service service, std::span<const std::byte> header,
                                Buffer payload) {
  WireHeader wire;
  wire.service = service;
  wire.from = options_.self;
  wire.to = link->peer;
  wire.tag = options_.cluster_tag;
  wire.from_link = link->own;
  wire.to_link = link->remote;
  wire.sequence = link->next_to_send;
  wire.payload_bytes = static_cast<uint32_t>(payload.size());
  wire.header_bytes = static_cast<uint16_t>(header.size());
  SendSlot* slot = take_slot();
  encode_wire_header(wire, slot->head.data());
  if (!header.empty()) {
    std::memcpy(slot->head.data() + kWireHeaderBytes, header.data(), header.size());
  }
  slot->link = link;
  slot->bytes = header.size() + payload.size();
  slot->payload = std::move(payload);
  const size_t bytes = slot->bytes;
  const ucs_status_ptr_t request = hand_to_ucx(link, slot, kWireHeaderBytes + header.size());
  if (UCS_PTR_IS_ERR(request)) {
    give_slot_back(slot);
    Error why = error_of(UCS_PTR_STATUS(request), fmt::format("sending to node {}", link->peer));
    why.code = Errc::kPeerLost;
    note_lost(link, why);
    return tl::unexpected(std::move(why));
  }
  ++link->next_to_send;
  ++counters_.messages_sent;
  counters_.bytes_sent += bytes;
  if (request == nullptr) {
    give_slot_back(slot);
  } else {
    link->queued_bytes += bytes;
    ++link->unfinished_sends;
  }
  return {};
}

ucs_status_ptr_t UcxTransport::hand_to_ucx(Link* link, SendSlot* slot, size_t head_bytes) {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = &UcxTransport::on_sent;
  param.user_data = slot;
  const auto payload = slot->payload.bytes();
  return ucp_am_send_nbx(link->endpoint, kMessageId, slot->head.data(), head_bytes, payload.data(),
                         payload.size(), &param);
}

// Best effort: whoever misses it notices at the next message.
void UcxTransport::send_reset(Link* link, uint64_t to_link) {
  WireHeader wire;
  wire.kind = WireKind::kReset;
  wire.from = options_.self;
  wire.to = link->peer;
  wire.tag = options_.cluster_tag;
  wire.from_link = link->own;
  wire.to_link = to_link;
  SendSlot* slot = take_slot();
  encode_wire_header(wire, slot->head.data());
  slot->link = link;
  slot->bytes = 0;
  const ucs_status_ptr_t request = hand_to_ucx(link, slot, kWireHeaderBytes);
  if (!UCS_PTR_IS_PTR(request)) {
    give_slot_back(slot);
  } else {
    ++link->unfinished_sends;
  }
}

void UcxTransport::on_sent(void* request, ucs_status_t /*status*/, void* user_data) {
  auto* slot = static_cast<SendSlot*>(user_data);
  UcxTransport* self = slot->transport;
  Link* link = slot->link;
  // A failed send is not told apart: the endpoint's error handler reports the whole link.
  link->queued_bytes -= slot->bytes;
  --link->unfinished_sends;
  self->note_room(link);
  self->give_slot_back(slot);
  ucp_request_free(request);
}

void UcxTransport::note_room(Link* link) {
  if (link->was_busy && !link->writable_noted && link->open &&
      link->queued_bytes <= options_.peer_queue_bytes_max / 2) {
    link->writable_noted = true;
    writable_.push_back(link->peer);
  }
}

int UcxTransport::report_writable() {
  std::vector<NodeId> writable;
  writable.swap(writable_);
  for (const NodeId peer : writable) {
    for (size_t service = 0; service < kServices; ++service) {
      Link* link = link_of(peer);  // a handler may have disconnected it
      if (link == nullptr || !link->open) {
        break;
      }
      link->was_busy = link->was_busy && !link->writable_noted;
      link->writable_noted = false;
      if (handlers_[service] != nullptr) {
        handlers_[service]->on_writable(peer);
      }
    }
  }
  return static_cast<int>(writable.size());
}

UcxTransport::SendSlot* UcxTransport::take_slot() {
  if (free_slot_ == nullptr) {
    slots_.push_back(std::make_unique<SendSlot>());
    slots_.back()->transport = this;
    return slots_.back().get();
  }
  SendSlot* slot = free_slot_;
  free_slot_ = slot->next_free;
  return slot;
}

void UcxTransport::give_slot_back(SendSlot* slot) {
  slot->payload = Buffer();
  slot->link = nullptr;
  slot->next_free = free_slot_;
  free_slot_ = slot;
}

}  // namespace kevre::transport::ucx
