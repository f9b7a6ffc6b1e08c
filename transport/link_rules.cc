#include "transport/link_rules.h"

#include <algorithm>
#include <cstring>
#include <ctime>

#include "base/check.h"

namespace kevre::transport {

// ---- links

Result<void> LinkRules::may_connect(NodeId peer) const {
  if (peer == kNoNode || peer == options_.self) {
    return fail(Errc::kInvalid, "node {} cannot connect to node {}", options_.self, peer);
  }
  if (link_of(peer) != nullptr) {
    return fail(Errc::kExists, "node {} is connected already", peer);
  }
  return {};
}

// Grows over the life of the node and across restarts of its process, so that a later incarnation is the
// larger one.
uint64_t LinkRules::next_incarnation() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const uint64_t clock =
      static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
  last_incarnation_ = std::max(last_incarnation_ + 1, clock);
  return last_incarnation_;
}

void LinkRules::add(std::unique_ptr<LinkState> link) {
  const NodeId peer = link->peer;
  Acquaintance& known = acquaintances_[peer];
  if (!known.held.empty()) {
    link->remote = known.held.front().wire.from_link;
    link->holding = true;
    to_deliver_.push_back(peer);
  }
  if (links_.size() <= peer.value) {
    links_.resize(size_t{peer.value} + 1);
  }
  links_[peer.value] = std::move(link);
}

std::unique_ptr<LinkState> LinkRules::take(NodeId peer) {
  LinkState* link = link_of(peer);
  if (link == nullptr) {
    return nullptr;
  }
  Acquaintance& known = acquaintances_[peer];
  known.newest_dead = std::max(known.newest_dead, link->remote);
  if (link->holding) {
    drop_held(&known);  // else they are of a newer incarnation, and wait for the next connect()
  }
  std::erase_if(lost_, [peer](const Lost& lost) { return lost.peer == peer; });
  link->open = false;
  return std::move(links_[peer.value]);
}

void LinkRules::note_lost(LinkState* link, Error why) {
  if (!link->open) {
    return;
  }
  link->open = false;
  lost_.push_back({link->peer, std::move(why)});
}

int LinkRules::report_lost() {
  std::vector<Lost> lost;
  lost.swap(lost_);
  for (const Lost& one : lost) {
    const LinkState* link = link_of(one.peer);
    if (link == nullptr || link->open) {
      continue;  // a handler disconnected it meanwhile
    }
    Acquaintance& known = acquaintances_[one.peer];
    known.newest_dead = std::max(known.newest_dead, link->remote);
    backend_->ended(std::move(links_[one.peer.value]));
    for (size_t service = 0; service < kServices; ++service) {
      if (handlers_[service] != nullptr) {
        handlers_[service]->on_peer_lost(one.peer, one.why);
      }
    }
  }
  return static_cast<int>(lost.size());
}

int LinkRules::act_on_notes() {
  int done = 0;
  if (!lost_.empty()) {
    done += report_lost();
  }
  if (!to_deliver_.empty()) {
    done += deliver_held();
  }
  if (!writable_.empty()) {
    done += report_writable();
  }
  return done;
}

void LinkRules::set_handler(Service service, Handler* handler) {
  const auto index = static_cast<size_t>(service);
  KEVRE_CHECK(index < kServices, "service {}", index);
  KEVRE_CHECK(handler == nullptr || handlers_[index] == nullptr, "service {} has a handler already", index);
  handlers_[index] = handler;
}

// ---- sending

Result<LinkState*> LinkRules::admit(NodeId to, std::span<const std::byte> header, size_t payload_bytes) {
  if (header.size() > kHeaderBytesMax || payload_bytes > kPayloadBytesMax) {
    return fail(Errc::kInvalid, "a message with {} bytes of header and {} of payload is too long",
                header.size(), payload_bytes);
  }
  LinkState* link = link_of(to);
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

WireHeader LinkRules::next_header(const LinkState& link, Service service, size_t header_bytes,
                                  size_t payload_bytes) const {
  WireHeader wire;
  wire.service = service;
  wire.from = options_.self;
  wire.to = link.peer;
  wire.tag = options_.cluster_tag;
  wire.from_link = link.own;
  wire.to_link = link.remote;
  wire.sequence = link.next_to_send;
  wire.payload_bytes = static_cast<uint32_t>(payload_bytes);
  wire.header_bytes = static_cast<uint16_t>(header_bytes);
  return wire;
}

void LinkRules::count_sent(LinkState* link, size_t bytes) {
  ++link->next_to_send;
  ++counters_.messages_sent;
  counters_.bytes_sent += bytes;
}

void LinkRules::note_room(LinkState* link) {
  if (link->was_busy && !link->writable_noted && link->open &&
      link->queued_bytes <= options_.peer_queue_bytes_max / 2) {
    link->writable_noted = true;
    writable_.push_back(link->peer);
  }
}

int LinkRules::report_writable() {
  std::vector<NodeId> writable;
  writable.swap(writable_);
  for (const NodeId peer : writable) {
    for (size_t service = 0; service < kServices; ++service) {
      LinkState* link = link_of(peer);  // a handler may have disconnected it
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

// ---- receiving

void LinkRules::arrived(const WireHeader& wire, std::span<const std::byte> header,
                        std::span<const std::byte> payload) {
  LinkState* link = link_of(wire.from);
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

void LinkRules::refuse(LinkState* link, const WireHeader& wire) {
  ++counters_.rejected;
  Acquaintance& known = acquaintances_[wire.from];
  if (known.refused != wire.from_link) {
    known.refused = wire.from_link;
    backend_->refuse(link, wire.from_link);
  }
}

void LinkRules::arrived_on(LinkState* link, const WireHeader& wire, std::span<const std::byte> header,
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
  if (LinkState* now = link_of(wire.from); now == link && !link->early.empty()) [[unlikely]] {
    deliver_early(link);
  }
}

void LinkRules::keep_early(LinkState* link, const WireHeader& wire, std::span<const std::byte> header,
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

void LinkRules::deliver_early(LinkState* link) {
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
bool LinkRules::hold(const WireHeader& wire, std::span<const std::byte> header,
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

void LinkRules::drop_held(Acquaintance* known) {
  if (known->held.empty()) {
    return;
  }
  counters_.rejected += known->held.size();
  known->newest_dead = std::max(known->newest_dead, known->held.front().wire.from_link);
  held_bytes_ -= known->held_bytes;
  known->held_bytes = 0;
  known->held.clear();
}

int LinkRules::deliver_held() {
  std::vector<NodeId> peers;
  peers.swap(to_deliver_);
  int done = 0;
  for (const NodeId peer : peers) {
    LinkState* const link = link_of(peer);
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

void LinkRules::deliver(const WireHeader& wire, std::span<const std::byte> header,
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

Waiting LinkRules::copy_of(const WireHeader& wire, std::span<const std::byte> header,
                           std::span<const std::byte> payload) {
  Waiting waiting{wire, pool_->take(header.size() + payload.size())};
  std::byte* to = waiting.bytes.bytes().data();
  if (!header.empty()) {
    std::memcpy(to, header.data(), header.size());
  }
  if (!payload.empty()) {
    std::memcpy(to + header.size(), payload.data(), payload.size());
  }
  return waiting;
}

}  // namespace kevre::transport
