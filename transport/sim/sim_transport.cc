#include "transport/sim/sim_transport.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace kevre::transport::sim {
namespace {
constexpr size_t kHeldMax = 4096;  // messages, per node
constexpr uint64_t kAddressMagic = 0x31'4d49'5345'5645u;
}  // namespace

SimTransport::SimTransport(SimNetwork* network, const Options& options, UniqueFd wake)
    : network_(network), options_(options), wake_(std::move(wake)) {}

SimTransport::~SimTransport() {
  handlers_.fill(nullptr);
  while (!links_.empty()) {
    disconnect(links_.begin()->first);
  }
  network_->transports_.erase(options_.self);
}

Address SimTransport::local_address() const {
  Address address(16);
  const uint64_t node = options_.self.value;
  std::memcpy(address.data(), &kAddressMagic, 8);
  std::memcpy(address.data() + 8, &node, 8);
  return address;
}

Result<void> SimTransport::connect(NodeId peer, std::span<const std::byte> address) {
  if (peer == kNoNode || peer == options_.self) {
    return fail(Errc::kInvalid, "node {} cannot connect to node {}", options_.self, peer);
  }
  if (links_.contains(peer)) {
    return fail(Errc::kExists, "node {} is connected already", peer);
  }
  uint64_t magic = 0;
  if (address.size() == 16) {
    std::memcpy(&magic, address.data(), sizeof magic);
  }
  if (magic != kAddressMagic) {
    return fail(Errc::kCorrupt, "not an address of the sim transport");
  }
  Link link;
  link.own = ++network_->last_link_;
  if (const auto held = held_.find(peer); held != held_.end()) {
    link.remote = held->second.front().from_link;
    to_deliver_.push_back(peer);
    signal();
  }
  links_.emplace(peer, link);
  return {};
}

void SimTransport::disconnect(NodeId peer) {
  const auto found = links_.find(peer);
  if (found == links_.end()) {
    return;
  }
  const Link link = found->second;
  links_.erase(found);
  links_ended_ = true;
  signal();
  newest_dead_[peer] = std::max(newest_dead_[peer], link.remote);
  std::erase_if(lost_, [peer](const auto& lost) { return lost.first == peer; });
  Event event;
  event.kind = Event::Kind::kLost;
  event.from = options_.self;
  event.to = peer;
  event.from_link = link.own;
  event.to_link = link.remote;
  event.text = fmt::format("node {} ended the connection", options_.self);
  network_->post(std::move(event));
}

Capabilities SimTransport::capabilities(NodeId peer) const {
  const auto link = links_.find(peer);
  return link != links_.end() && link->second.open ? network_->options_.capabilities : Capabilities{};
}

void SimTransport::set_handler(Service service, Handler* handler) {
  const auto index = static_cast<size_t>(service);
  KEVRE_CHECK(index < kServices, "service {}", index);
  KEVRE_CHECK(handler == nullptr || handlers_[index] == nullptr, "service {} has a handler already", index);
  handlers_[index] = handler;
}

SimTransport::Link* SimTransport::open_link(NodeId peer) {
  const auto link = links_.find(peer);
  return link != links_.end() && link->second.open ? &link->second : nullptr;
}

Result<void> SimTransport::send(NodeId to, Service service, std::span<const std::byte> header,
                                std::span<const std::byte> payload) {
  if (header.size() > kHeaderBytesMax || payload.size() > kPayloadBytesMax) {
    return fail(Errc::kInvalid, "a message with {} bytes of header and {} of payload is too long",
                header.size(), payload.size());
  }
  Link* link = open_link(to);
  if (link == nullptr) {
    return fail(Errc::kPeerLost, "node {} is not connected", to);
  }
  const size_t bytes = header.size() + payload.size();
  if (link->queued_bytes > 0 && link->queued_bytes + bytes > options_.peer_queue_bytes_max) {
    link->was_busy = true;
    return fail(Errc::kBusy, "{} bytes wait for node {}", link->queued_bytes, to);
  }
  Event event;
  event.from = options_.self;
  event.to = to;
  event.from_link = link->own;
  event.to_link = link->remote;
  event.tag = options_.cluster_tag;
  event.service = service;
  event.header.assign(header.begin(), header.end());
  event.payload.assign(payload.begin(), payload.end());
  link->queued_bytes += bytes;
  ++counters_.messages_sent;
  counters_.bytes_sent += bytes;
  network_->post(std::move(event));
  return {};
}

Result<void> SimTransport::send(NodeId to, Service service, std::span<const std::byte> header,
                                Buffer payload) {
  return send(to, service, header, std::span<const std::byte>(payload.bytes()));
}

size_t SimTransport::queued_bytes(NodeId peer) const {
  const auto link = links_.find(peer);
  return link == links_.end() ? 0 : link->second.queued_bytes;
}

void SimTransport::signal() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
}

void SimTransport::put(Event event) {
  inbox_.push_back(std::move(event));
  signal();
}

void SimTransport::sent(NodeId peer, uint64_t link_number, size_t bytes) {
  const auto found = links_.find(peer);
  if (found == links_.end() || found->second.own != link_number) {
    return;
  }
  Link& link = found->second;
  link.queued_bytes -= bytes;
  if (link.was_busy && link.open && link.queued_bytes <= options_.peer_queue_bytes_max / 2) {
    link.was_busy = false;
    writable_.push_back(peer);
    signal();
  }
}

bool SimTransport::arm() {
  if (!inbox_.empty() || !to_deliver_.empty() || !writable_.empty() || !lost_.empty() || !drains_.empty() ||
      links_ended_) {
    return false;
  }
  uint64_t value = 0;
  [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &value, sizeof value);
  return true;
}

int SimTransport::progress() {
  KEVRE_CHECK(!in_progress_, "a handler called progress()");
  in_progress_ = true;
  int done = 0;
  const auto drains = std::exchange(drains_, {});
  for (const NodeId peer : std::exchange(to_deliver_, {})) {
    if (auto held = held_.extract(peer); !held.empty()) {
      for (Event& event : held.mapped()) {
        handle(std::move(event));
        ++done;
      }
    }
  }
  for (size_t due = inbox_.size(); due > 0 && !inbox_.empty(); --due) {
    Event event = std::move(inbox_.front());
    inbox_.pop_front();
    handle(std::move(event));
    ++done;
  }
  for (const auto& drained : drains) {
    drained();
    ++done;
  }
  for (auto& [peer, why] : std::exchange(lost_, {})) {
    const auto link = links_.find(peer);
    if (link == links_.end() || link->second.open) {
      continue;
    }
    newest_dead_[peer] = std::max(newest_dead_[peer], link->second.remote);
    links_.erase(link);
    links_ended_ = true;
    for (size_t service = 0; service < kServices; ++service) {
      if (handlers_[service] != nullptr) {
        handlers_[service]->on_peer_lost(peer, Error{Errc::kPeerLost, 0, why});
      }
    }
    ++done;
  }
  if (links_ended_) {
    done += fail_operations();
  }
  for (const NodeId peer : std::exchange(writable_, {})) {
    for (size_t service = 0; service < kServices && open_link(peer) != nullptr; ++service) {
      if (handlers_[service] != nullptr) {
        handlers_[service]->on_writable(peer);
      }
    }
    ++done;
  }
  in_progress_ = false;
  return done;
}

void SimTransport::lose(NodeId peer, std::string why) {
  if (Link* link = open_link(peer); link != nullptr) {
    link->open = false;
    lost_.emplace_back(peer, std::move(why));
  }
}

void SimTransport::handle(Event event) {
  switch (event.kind) {
    case Event::Kind::kRequest:
      return;  // the network executes it
    case Event::Kind::kAnswer:
      answered(std::move(event));
      return;
    case Event::Kind::kLost: {
      const Link* link = open_link(event.from);
      const bool meant = link != nullptr &&
                         (event.to_link == link->own ||
                          (event.to_link == 0 && event.from_link != 0 && event.from_link == link->remote));
      if (meant) {
        lose(event.from, std::move(event.text));
      }
      return;
    }
    case Event::Kind::kMessage:
      handle_message(std::move(event));
      return;
  }
}

// The rules of incarnations are those of link_rules.h.
void SimTransport::handle_message(Event event) {
  if (event.tag != options_.cluster_tag) {
    ++counters_.rejected;
    return;
  }
  const NodeId from = event.from;
  Link* link = open_link(from);
  const bool over = event.from_link <= newest_dead_[from];
  const bool stale = over || (link != nullptr && (event.from_link < link->remote ||
                                                  (event.to_link != 0 && event.to_link != link->own)));
  if (stale) {
    ++counters_.rejected;
    if (link != nullptr) {
      Event reset;
      reset.kind = Event::Kind::kLost;
      reset.from = options_.self;
      reset.to = from;
      reset.to_link = event.from_link;
      reset.text = fmt::format("node {} ended the connection", options_.self);
      network_->post(std::move(reset));
    }
    return;
  }
  if (link == nullptr || (link->remote != 0 && link->remote < event.from_link) || held_.contains(from)) {
    if (link != nullptr && link->remote != 0 && link->remote < event.from_link) {
      lose(from, fmt::format("node {} began a new connection", from));
    }
    std::deque<Event>& held = held_[from];
    if (!held.empty() && held.front().from_link < event.from_link) {
      counters_.rejected += held.size();  // of an incarnation that is over
      held.clear();
    }
    if (held.size() >= kHeldMax) {
      counters_.rejected += held.size() + 1;
      newest_dead_[from] = event.from_link;
      held_.erase(from);
    } else {
      held.push_back(std::move(event));
    }
    return;
  }
  link->remote = event.from_link;
  deliver(event);
}

void SimTransport::deliver(const Event& event) {
  Handler* handler = handlers_[static_cast<size_t>(event.service)];
  if (handler == nullptr) {
    ++counters_.rejected;
    return;
  }
  ++counters_.messages_received;
  counters_.bytes_received += event.bytes();
  handler->on_message(event.from, event.header, event.payload);
}

// ---- one-sided operations, where the network says that they exist

Result<RegionKey> SimTransport::register_region(std::span<std::byte> memory) {
  RegionKey key;
  const uint64_t number = next_region_++;
  regions_.emplace(number, memory);
  std::memcpy(key.bytes.data(), &number, sizeof number);
  key.size = sizeof number;
  return key;
}

void SimTransport::deregister_region(const RegionKey& key) {
  uint64_t number = 0;
  std::memcpy(&number, key.bytes.data(), sizeof number);
  regions_.erase(number);
}

Result<std::span<std::byte>> SimTransport::region_bytes(const RegionKey& key, uint64_t offset,
                                                        size_t bytes) const {
  uint64_t number = 0;
  std::memcpy(&number, key.bytes.data(), sizeof number);
  const auto region = regions_.find(number);
  if (region == regions_.end() || offset > region->second.size() || bytes > region->second.size() - offset) {
    return fail(Errc::kInvalid, "node {} has no such memory, or no more", options_.self);
  }
  return region->second.subspan(offset, bytes);
}

// The request stands in line with the messages to the peer and acts there when it is due; the answer is due
// here one more delay later, and the completion runs in our progress().
Result<void> SimTransport::one_sided(bool capable, uint64_t* counter, RemoteAddress at, size_t bytes, Act act,
                                     Operation operation) {
  const Link* link = open_link(operation.peer);
  if (link == nullptr) {
    return fail(Errc::kPeerLost, "node {} is not connected", operation.peer);
  }
  if (!capable || at.key == nullptr) {
    return fail(Errc::kUnsupported,
                "this peer has no such one-sided operation: ask capabilities() and send a message");
  }
  Event request;
  request.kind = Event::Kind::kRequest;
  request.from = options_.self;
  request.to = operation.peer;
  request.from_link = link->own;
  request.operation = next_operation_++;
  request.key = *at.key;
  request.offset = at.offset;
  request.wanted = bytes;
  request.act = std::move(act);
  operation.link = link->own;
  operations_.emplace(request.operation, std::move(operation));
  ++*counter;
  network_->post(std::move(request));
  return {};
}

void SimTransport::answered(Event event) {
  auto found = operations_.extract(event.operation);
  if (found.empty()) {
    return;  // its link was lost meanwhile
  }
  Operation& operation = found.mapped();
  std::copy(event.payload.begin(), event.payload.end(), operation.to.begin());
  operation.done(event.value);
}

int SimTransport::fail_operations() {
  links_ended_ = false;
  std::vector<Operation> failed;
  for (auto i = operations_.begin(); i != operations_.end();) {
    const auto link = links_.find(i->second.peer);
    if (link != links_.end() && link->second.own == i->second.link) {
      ++i;
      continue;
    }
    failed.push_back(std::move(i->second));
    i = operations_.erase(i);
  }
  for (const Operation& operation : failed) {
    operation.done(fail(Errc::kPeerLost, "node {} was lost before the operation was done", operation.peer));
  }
  return static_cast<int>(failed.size());
}

// What has arrived lies in the inbox, which the next progress() hands up as a whole.
Result<void> SimTransport::drain_arrivals(std::function<void()> done) {
  const Capabilities& can = network_->options_.capabilities;
  if (!can.read && !can.write && !can.atomic) {
    return fail(Errc::kUnsupported,
                "peers cannot operate on memory of this node: there is nothing to wait for");
  }
  drains_.push_back(std::move(done));
  signal();
  return {};
}

Result<void> SimTransport::read(NodeId peer, RemoteAddress from, std::span<std::byte> to, Completion done) {
  return one_sided(capabilities(peer).read, &counters_.one_sided_reads, from, to.size(),
                   [](std::span<std::byte> memory, std::vector<std::byte>* out) {
                     out->assign(memory.begin(), memory.end());
                     return uint64_t{0};
                   },
                   {peer, 0, to, std::move(done)});
}

Result<void> SimTransport::write(NodeId peer, std::span<const std::byte> from, RemoteAddress to,
                                 Completion done) {
  return one_sided(
      capabilities(peer).write, &counters_.one_sided_writes, to, from.size(),
      [bytes = std::vector<std::byte>(from.begin(), from.end())](std::span<std::byte> memory, auto*) {
        std::copy(bytes.begin(), bytes.end(), memory.begin());
        return uint64_t{0};
      },
      {peer, 0, {}, std::move(done)});
}

Result<void> SimTransport::fetch_add(NodeId peer, RemoteAddress at, uint64_t addend, Completion done) {
  return one_sided(capabilities(peer).atomic, &counters_.one_sided_atomics, at, sizeof(uint64_t),
                   [addend](std::span<std::byte> memory, auto*) {
                     uint64_t old = 0;
                     std::memcpy(&old, memory.data(), sizeof old);
                     const uint64_t sum = old + addend;
                     std::memcpy(memory.data(), &sum, sizeof sum);
                     return old;
                   },
                   {peer, 0, {}, std::move(done)});
}

Result<void> SimTransport::compare_swap(NodeId peer, RemoteAddress at, uint64_t expected, uint64_t desired,
                                        Completion done) {
  return one_sided(capabilities(peer).atomic, &counters_.one_sided_atomics, at, sizeof(uint64_t),
                   [expected, desired](std::span<std::byte> memory, auto*) {
                     uint64_t old = 0;
                     std::memcpy(&old, memory.data(), sizeof old);
                     if (old == expected) {
                       std::memcpy(memory.data(), &desired, sizeof desired);
                     }
                     return old;
                   },
                   {peer, 0, {}, std::move(done)});
}

}  // namespace kevre::transport::sim
