// Receiving: from UCX's callback to the service's handler, past every check that a stranger's message must
// fail.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "transport/ucx/ucx_transport.h"

namespace kevre::transport::ucx {

ucs_status_t UcxTransport::on_arrival(void* transport, const void* head, size_t head_bytes, void* data,
                                      size_t data_bytes, const ucp_am_recv_param_t* param) {
  auto* self = static_cast<UcxTransport*>(transport);
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) {
    ++self->counters_.rejected;  // we never send so
    return UCS_OK;
  }
  const WireDecoded decoded = decode_wire_header({static_cast<const std::byte*>(head), head_bytes},
                                                 data_bytes, self->options_.cluster_tag, self->options_.self);
  if (decoded.verdict != WireVerdict::kGood) {
    ++self->counters_.rejected;
    return UCS_OK;
  }
  self->arrived(decoded.header, decoded.service_header, {static_cast<const std::byte*>(data), data_bytes});
  return UCS_OK;  // UCX takes its memory back: what is needed longer was copied
}

void UcxTransport::arrived(const WireHeader& wire, std::span<const std::byte> header,
                           std::span<const std::byte> payload) {
  Link* link = link_of(wire.from);
  if (wire.kind == WireKind::kReset) {
    const bool meant = link != nullptr && link->open &&
                       (wire.to_link == link->own || (wire.to_link == 0 && wire.from_link == link->remote));
    if (meant) {
      note_lost(link, Error{Errc::kPeerLost, 0, fmt::format("node {} ended the connection", wire.from)});
    }
    return;
  }
  if (link == nullptr) {
    hold(wire, header, payload);
    return;
  }
  if (!link->open) {  // lost, not reported yet: only a newer incarnation is worth keeping
    if (wire.from_link > link->remote) {
      hold(wire, header, payload);
    } else {
      ++counters_.rejected;
    }
    return;
  }
  const Acquaintance* known = link->remote == wire.from_link ? nullptr : &acquaintances_[wire.from];
  if ((known != nullptr && wire.from_link <= known->newest_dead) || wire.from_link < link->remote ||
      (wire.to_link != 0 && wire.to_link != link->own)) {
    refuse(link, wire);
    return;
  }
  if (link->remote == 0) {
    link->remote = wire.from_link;
  } else if (link->remote < wire.from_link) {
    note_lost(link, Error{Errc::kPeerLost, 0, fmt::format("node {} began a new connection", wire.from)});
    hold(wire, header, payload);
    return;
  }
  arrived_on(link, wire, header, payload);
}

void UcxTransport::refuse(Link* link, const WireHeader& wire) {
  ++counters_.rejected;
  Acquaintance& known = acquaintances_[wire.from];
  if (known.reset_sent_to != wire.from_link) {
    known.reset_sent_to = wire.from_link;
    send_reset(link, wire.from_link);
  }
}

void UcxTransport::arrived_on(Link* link, const WireHeader& wire, std::span<const std::byte> header,
                              std::span<const std::byte> payload) {
  if (link->holding) {
    if (!hold(wire, header, payload)) {
      note_lost(link, Error{Errc::kPeerLost, 0, fmt::format("too much waits from node {}", wire.from)});
    }
    return;
  }
  if (wire.sequence != link->next_to_receive) [[unlikely]] {
    keep_early(link, wire, header, payload);
    return;
  }
  ++link->next_to_receive;
  deliver(wire, header, payload);
  // The handler may have disconnected the peer: look it up again, but only if something waits.
  if (Link* now = link_of(wire.from); now == link && !link->early.empty()) [[unlikely]] {
    deliver_early(link);
  }
}

void UcxTransport::keep_early(Link* link, const WireHeader& wire, std::span<const std::byte> header,
                              std::span<const std::byte> payload) {
  const bool seen = wire.sequence < link->next_to_receive || link->early.contains(wire.sequence);
  if (seen) {
    ++counters_.rejected;
    return;
  }
  const size_t bytes = header.size() + payload.size();
  if (wire.sequence - link->next_to_receive > kReorderMessagesMax ||
      link->early_bytes + bytes > kHeldBytesMax) {
    ++counters_.rejected;
    note_lost(link, Error{Errc::kPeerLost, 0,
                          fmt::format("messages of node {} are missing: expected number {}, got {}",
                                      wire.from, link->next_to_receive, wire.sequence)});
    return;
  }
  link->early.emplace(wire.sequence, copy_of(wire, header, payload));
  link->early_bytes += bytes;
}

void UcxTransport::deliver_early(Link* link) {
  const NodeId peer = link->peer;
  while (link_of(peer) == link && link->open && !link->early.empty() &&
         link->early.begin()->first == link->next_to_receive) {
    const Waiting next = std::move(link->early.begin()->second);
    link->early.erase(link->early.begin());
    link->early_bytes -= next.bytes.size();
    ++link->next_to_receive;
    deliver(next.wire, next.bytes.bytes().first(next.wire.header_bytes),
            next.bytes.bytes().subspan(next.wire.header_bytes));
  }
}

// Until connect(). What goes beyond the bounds is refused together with all that follows it on that link, so
// that the sender hears of it instead of missing one message.
bool UcxTransport::hold(const WireHeader& wire, std::span<const std::byte> header,
                        std::span<const std::byte> payload) {
  Acquaintance& known = acquaintances_[wire.from];
  const bool older = !known.held.empty() && wire.from_link < known.held.front().wire.from_link;
  if (wire.from_link <= known.newest_dead || older) {
    ++counters_.rejected;
    return false;
  }
  if (!known.held.empty() && known.held.front().wire.from_link < wire.from_link) {
    drop_held(&known);  // of an incarnation that is over
  }
  const size_t bytes = header.size() + payload.size();
  if (known.held.size() >= kHeldMessagesMax || known.held_bytes + bytes > kHeldBytesMax ||
      held_bytes_ + bytes > kHeldBytesOfAllMax) {
    ++counters_.rejected;
    drop_held(&known);
    known.newest_dead = wire.from_link;
    return false;
  }
  known.held.push_back(copy_of(wire, header, payload));
  known.held_bytes += bytes;
  held_bytes_ += bytes;
  return true;
}

void UcxTransport::drop_held(Acquaintance* known) {
  if (known->held.empty()) {
    return;
  }
  counters_.rejected += known->held.size();
  known->newest_dead = std::max(known->newest_dead, known->held.front().wire.from_link);
  held_bytes_ -= known->held_bytes;
  known->held_bytes = 0;
  known->held.clear();
}

int UcxTransport::deliver_held() {
  std::vector<NodeId> peers;
  peers.swap(to_deliver_);
  int done = 0;
  for (const NodeId peer : peers) {
    Link* const link = link_of(peer);
    while (link != nullptr && link_of(peer) == link && link->open) {
      Acquaintance& known = acquaintances_[peer];
      if (known.held.empty()) {
        break;
      }
      const Waiting next = std::move(known.held.front());
      known.held.pop_front();
      known.held_bytes -= next.bytes.size();
      held_bytes_ -= next.bytes.size();
      const auto bytes = next.bytes.bytes();
      link->holding = false;
      arrived(next.wire, bytes.first(next.wire.header_bytes), bytes.subspan(next.wire.header_bytes));
      if (link_of(peer) == link) {
        link->holding = !acquaintances_[peer].held.empty();
      }
      ++done;
    }
  }
  return done;
}

void UcxTransport::deliver(const WireHeader& wire, std::span<const std::byte> header,
                           std::span<const std::byte> payload) {
  Handler* handler = handlers_[static_cast<size_t>(wire.service)];
  if (handler == nullptr) {
    ++counters_.rejected;
    return;
  }
  ++counters_.messages_received;
  counters_.bytes_received += header.size() + payload.size();
  handler->on_message(wire.from, header, payload);
}

Waiting UcxTransport::copy_of(const WireHeader& wire, std::span<const std::byte> header,
                              std::span<const std::byte> payload) {
  Waiting waiting{wire, pool_.take(header.size() + payload.size())};
  std::byte* to = waiting.bytes.bytes().data();
  if (!header.empty()) {
    std::memcpy(to, header.data(), header.size());
  }
  if (!payload.empty()) {
    std::memcpy(to + header.size(), payload.data(), payload.size());
  }
  return waiting;
}

}  // namespace kevre::transport::ucx
