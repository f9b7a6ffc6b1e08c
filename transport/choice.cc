#include "transport/choice.h"

#include <sys/epoll.h>

#include <algorithm>

#include "base/check.h"

namespace kevre::transport {
namespace {

Result<Choice> choose_or_say(const NodeAddress& here, const NodeAddress& there, const std::string& problem) {
  Choice choice = choose(here, there, problem);
  if (!choice.kind) {
    const char* who = here.address_of(Kind::kUcx) == nullptr ? "this node takes verbs only" : "the peer takes verbs only";
    return fail(Errc::kUnsupported, "no transport in common: {}, and {}; start both with --transport auto", who, choice.why);
  }
  return choice;
}

}  // namespace

Result<void> have_common_transport(std::span<const std::byte> here, std::span<const std::byte> there) {
  KEVRE_ASSIGN(const NodeAddress mine, decode_address(here));
  KEVRE_ASSIGN(const NodeAddress theirs, decode_address(there));
  KEVRE_TRY(choose_or_say(mine, theirs, ""));
  return {};
}

Result<std::unique_ptr<Transport>> ChoiceTransport::create(std::vector<Part> parts, NodeAddress facts, std::string problem) {
  KEVRE_CHECK(!parts.empty(), "no backend");
  KEVRE_CHECK((facts.verbs == VerbsState::kUsable) == (parts.front().kind == Kind::kVerbs || parts.back().kind == Kind::kVerbs),
              "the facts are not those of the backends");
  std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.kind > b.kind; });
  std::unique_ptr<ChoiceTransport> transport(new ChoiceTransport(std::move(parts), std::move(facts), std::move(problem)));
  KEVRE_TRY(transport->start());
  return transport;
}

ChoiceTransport::ChoiceTransport(std::vector<Part> parts, NodeAddress here, std::string problem)
    : parts_(std::move(parts)), here_(std::move(here)), problem_(std::move(problem)) {
  here_.backends.clear();
  for (const Part& part : parts_) {
    here_.backends.push_back({part.kind, part.transport->local_address()});
    name_ += (name_.empty() ? "" : ", ") + std::string(kind_name(part.kind));
  }
}

Result<void> ChoiceTransport::start() {
  if (const size_t bytes = encode_address(here_).size(); bytes > kAddressBytesMax) {
    return fail(Errc::kExhausted, "the transports' addresses have {} bytes, more than {}: name one interface (bind address)",
                bytes, kAddressBytesMax);
  }
  if (parts_.size() == 1) {
    return {};
  }
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) {
    return fail_errno("epoll_create1 (raise the limit of open files)");
  }
  for (const Part& part : parts_) {
    epoll_event event{};
    event.events = EPOLLIN;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, part.transport->wake_fd(), &event) != 0) {
      return fail_errno("epoll_ctl");
    }
  }
  return {};
}

// The first backend goes last: what the others still send may be buffers of its pool.
ChoiceTransport::~ChoiceTransport() {
  while (!parts_.empty()) {
    parts_.pop_back();
  }
}

int ChoiceTransport::progress() {
  int done = 0;
  for (const Part& part : parts_) {
    done += part.transport->progress();
  }
  return done;
}

bool ChoiceTransport::arm() {
  return std::all_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.transport->arm(); });
}

Transport* ChoiceTransport::part_of(Kind kind) const {
  const auto found = std::find_if(parts_.begin(), parts_.end(), [kind](const Part& part) { return part.kind == kind; });
  return found == parts_.end() ? nullptr : found->transport.get();
}

const ChoiceTransport::Route* ChoiceTransport::route_of(NodeId peer) const {
  return peer.value < routes_.size() && routes_[peer.value].via != nullptr ? &routes_[peer.value] : nullptr;
}

Result<Transport*> ChoiceTransport::via(NodeId peer) const {
  const Route* route = route_of(peer);
  if (route == nullptr) {
    return fail(Errc::kPeerLost, "node {} is not connected", peer);
  }
  return route->via;
}

Result<Choice> ChoiceTransport::choice_for(const NodeAddress& there) const { return choose_or_say(here_, there, problem_); }

Result<void> ChoiceTransport::can_reach(std::span<const std::byte> address) const {
  KEVRE_ASSIGN(const NodeAddress there, decode_address(address));
  KEVRE_TRY(choice_for(there));
  return {};
}

Result<void> ChoiceTransport::connect(NodeId peer, std::span<const std::byte> address) {
  KEVRE_ASSIGN(const NodeAddress there, decode_address(address));
  KEVRE_ASSIGN(Choice choice, choice_for(there));
  Transport* const chosen = part_of(*choice.kind);
  if (const Route* route = route_of(peer); route != nullptr && route->via != chosen) {
    route->via->disconnect(peer);  // it started again, with other devices: the old link is dead or dying
  }
  KEVRE_TRY(chosen->connect(peer, *there.address_of(*choice.kind)));
  if (routes_.size() <= peer.value) {
    routes_.resize(size_t{peer.value} + 1);
  }
  routes_[peer.value] = {chosen, *choice.kind, std::move(choice.why)};
  return {};
}

void ChoiceTransport::disconnect(NodeId peer) {
  if (const Route* route = route_of(peer); route != nullptr) {
    route->via->disconnect(peer);
    routes_[peer.value] = {};
  }
}

Capabilities ChoiceTransport::capabilities(NodeId peer) const {
  const Route* route = route_of(peer);
  if (route == nullptr) {
    return {};
  }
  Capabilities can = route->via->capabilities(peer);
  can.backend = kind_name(route->kind);
  can.why = route->why;
  return can;
}

// Straight to the backends: a peer has its link in one of them, so what they report is said once.
void ChoiceTransport::set_handler(Service service, Handler* handler) {
  for (const Part& part : parts_) {
    part.transport->set_handler(service, handler);
  }
}

Result<void> ChoiceTransport::send(NodeId to, Service service, std::span<const std::byte> header,
                                   std::span<const std::byte> payload) {
  KEVRE_ASSIGN(Transport * transport, via(to));
  return transport->send(to, service, header, payload);
}

Result<void> ChoiceTransport::send(NodeId to, Service service, std::span<const std::byte> header, Buffer payload) {
  KEVRE_ASSIGN(Transport * transport, via(to));
  return transport->send(to, service, header, std::move(payload));
}

size_t ChoiceTransport::queued_bytes(NodeId peer) const {
  const Route* route = route_of(peer);
  return route == nullptr ? 0 : route->via->queued_bytes(peer);
}

Result<void> ChoiceTransport::read(NodeId peer, RemoteAddress from, std::span<std::byte> to, Completion done) {
  KEVRE_ASSIGN(Transport * transport, via(peer));
  return transport->read(peer, from, to, std::move(done));
}

Result<void> ChoiceTransport::write(NodeId peer, std::span<const std::byte> from, RemoteAddress to, Completion done) {
  KEVRE_ASSIGN(Transport * transport, via(peer));
  return transport->write(peer, from, to, std::move(done));
}

Result<void> ChoiceTransport::fetch_add(NodeId peer, RemoteAddress at, uint64_t addend, Completion done) {
  KEVRE_ASSIGN(Transport * transport, via(peer));
  return transport->fetch_add(peer, at, addend, std::move(done));
}

Result<void> ChoiceTransport::compare_swap(NodeId peer, RemoteAddress at, uint64_t expected, uint64_t desired,
                                           Completion done) {
  KEVRE_ASSIGN(Transport * transport, via(peer));
  return transport->compare_swap(peer, at, expected, desired, std::move(done));
}

Counters ChoiceTransport::counters() const {
  Counters sum;
  for (const Part& part : parts_) {
    const Counters one = part.transport->counters();
    sum.messages_sent += one.messages_sent;
    sum.messages_received += one.messages_received;
    sum.bytes_sent += one.bytes_sent;
    sum.bytes_received += one.bytes_received;
    sum.rejected += one.rejected;
    sum.one_sided_reads += one.one_sided_reads;
    sum.one_sided_writes += one.one_sided_writes;
    sum.one_sided_atomics += one.one_sided_atomics;
  }
  return sum;
}

}  // namespace kevre::transport
