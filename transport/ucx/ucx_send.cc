// Sending: the slots that keep a message alive until UCX is done with it, and
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
  KEVRE_ASSIGN(LinkState * link, rules_.admit(to, header, payload.size()));
  Buffer copy;
  if (!payload.empty()) {
    copy = pool_.take(payload.size());
    std::memcpy(copy.bytes().data(), payload.data(), payload.size());
  }
  return post(static_cast<Link*>(link), service, header, std::move(copy));
}

Result<void> UcxTransport::send(NodeId to, Service service, std::span<const std::byte> header,
                                Buffer payload) {
  KEVRE_ASSIGN(LinkState * link, rules_.admit(to, header, payload.size()));
  return post(static_cast<Link*>(link), service, header, std::move(payload));
}

Result<void> UcxTransport::post(Link* link, Service service, std::span<const std::byte> header,
                                Buffer payload) {
  SendSlot* slot = take_slot();
  encode_wire_header(rules_.next_header(*link, service, header.size(), payload.size()), slot->head.data());
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
    rules_.note_lost(link, why);
    return tl::unexpected(std::move(why));
  }
  rules_.count_sent(link, bytes);
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
  self->rules_.note_room(link);
  self->give_slot_back(slot);
  ucp_request_free(request);
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
