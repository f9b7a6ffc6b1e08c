#include "transport/sim/sim_network.h"

#include <sys/eventfd.h>

#include <algorithm>

#include "base/check.h"
#include "transport/sim/sim_transport.h"

namespace kevre::transport::sim {

SimNetwork::~SimNetwork() {
  KEVRE_CHECK(transports_.empty(), "{} transports outlive their network", transports_.size());
}

Result<std::unique_ptr<Transport>> SimNetwork::create(const Options& options) {
  if (options.self == kNoNode) {
    return fail(Errc::kInvalid, "transport: node id 0 is no node");
  }
  if (transports_.contains(options.self)) {
    return fail(Errc::kExists, "node {} is in the simulated network already", options.self);
  }
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) {
    return fail_errno("eventfd");
  }
  auto transport = std::make_unique<SimTransport>(this, options, std::move(wake));
  transports_.emplace(options.self, transport.get());
  return transport;
}

SimTransport* SimNetwork::transport_of(NodeId node) const {
  const auto found = transports_.find(node);
  return found == transports_.end() ? nullptr : found->second;
}

Nanos SimNetwork::delay(size_t bytes) {
  const auto random =
      random_.between(static_cast<uint64_t>(options_.delay_min), static_cast<uint64_t>(options_.delay_max));
  return static_cast<Nanos>(random) + static_cast<Nanos>(bytes / 1024) * options_.per_kib;
}

void SimNetwork::post(Event event) {
  const Pair pair{event.from, event.to};
  if (const auto stalled = stalled_.find(pair); stalled != stalled_.end()) {
    stalled->second.push_back(std::move(event));
    return;
  }
  Nanos& last = last_due_[pair];
  last = std::max(last, now_ + delay(event.bytes()));
  events_.emplace(std::pair{last, serial_++}, std::move(event));
}

bool SimNetwork::advance() {
  if (events_.empty()) {
    return false;
  }
  now_ = std::max(now_, events_.begin()->first.first);
  deliver_due();
  return true;
}

void SimNetwork::advance_by(Nanos duration) {
  const Nanos end = now_ + duration;
  while (!events_.empty() && events_.begin()->first.first <= end) {
    advance();
  }
  now_ = end;
}

void SimNetwork::deliver_due() {
  while (!events_.empty() && events_.begin()->first.first <= now_) {
    Event event = std::move(events_.begin()->second);
    events_.erase(events_.begin());
    SimTransport* from = transport_of(event.from);
    SimTransport* to = transport_of(event.to);
    if (from != nullptr && event.kind == Event::Kind::kMessage) {
      from->sent(event.to, event.from_link, event.bytes());
    }
    if (to == nullptr) {
      if (event.kind == Event::Kind::kMessage || event.kind == Event::Kind::kRequest) {
        refuse(event, fmt::format("node {} does not answer", event.to));
      }
    } else if (event.kind == Event::Kind::kRequest) {
      execute(std::move(event));
    } else {
      to->put(std::move(event));
    }
  }
}

// The sender hears of it as of a refused or closed connection.
void SimNetwork::refuse(const Event& event, std::string why) {
  Event lost;
  lost.kind = Event::Kind::kLost;
  lost.from = event.to;
  lost.to = event.from;
  lost.to_link = event.from_link;
  lost.text = std::move(why);
  post(std::move(lost));
}

void SimNetwork::execute(Event request) {
  SimTransport* owner = transport_of(request.to);
  if (request.from_link <= owner->newest_dead_[request.from]) {
    refuse(request, fmt::format("node {} ended the connection", request.to));
    return;
  }
  Event answer;
  answer.kind = Event::Kind::kAnswer;
  answer.from = request.to;
  answer.to = request.from;
  answer.operation = request.operation;
  const auto memory = owner->region_bytes(request.key, request.offset, request.wanted);
  if (memory) {
    answer.value = request.act(*memory, &answer.payload);
  } else {
    answer.value = tl::unexpected(memory.error());
  }
  post(std::move(answer));
}

void SimNetwork::cut(NodeId a, NodeId b) {
  // A random tail of what is on its way is lost; the rest arrives before the news of the loss.
  for (const Pair& pair : {Pair{a, b}, Pair{b, a}}) {
    bool losing = false;
    for (auto i = events_.begin(); i != events_.end();) {
      const Event& event = i->second;
      if (event.from != pair.first || event.to != pair.second ||
          (event.kind != Event::Kind::kMessage && event.kind != Event::Kind::kRequest)) {
        ++i;
        continue;
      }
      losing = losing || random_.one_in(4);
      i = losing ? events_.erase(i) : std::next(i);
    }
    if (const auto stalled = stalled_.find(pair); stalled != stalled_.end()) {
      stalled->second.clear();
    }
    Event lost;
    lost.kind = Event::Kind::kLost;
    lost.from = pair.first;
    lost.to = pair.second;
    lost.text = fmt::format("the connection to node {} broke: cut by the simulator", pair.first);
    SimTransport* to = transport_of(pair.second);
    if (to != nullptr && to->links_.contains(pair.first)) {
      lost.to_link = to->links_[pair.first].own;
      Nanos& last = last_due_[pair];
      last = std::max(last, now_ + delay(0));
      events_.emplace(std::pair{last, serial_++}, std::move(lost));
    }
  }
}

void SimNetwork::stall(NodeId from, NodeId to, bool on) {
  const Pair pair{from, to};
  if (on) {
    stalled_.try_emplace(pair);
    return;
  }
  if (const auto stalled = stalled_.find(pair); stalled != stalled_.end()) {
    std::vector<Event> waiting = std::move(stalled->second);
    stalled_.erase(stalled);
    for (Event& event : waiting) {
      post(std::move(event));
    }
  }
}

}  // namespace kevre::transport::sim
