#include "cluster/agent.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "cluster/caller.h"
#include "cluster/door.h"
#include "cluster/join.h"
#include "cluster/membership.h"
#include "transport/choice.h"

namespace kevre::cluster {

namespace {

constexpr Nanos kLeaveNs = 30 * kSecond;

// The first IPv4 address of this machine that is not loopback, for a node that listens on all.
uint32_t some_address() {
  uint32_t result = htonl(INADDR_LOOPBACK);
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) {
    return result;
  }
  for (const ifaddrs* i = all; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr != nullptr && i->ifa_addr->sa_family == AF_INET && (i->ifa_flags & IFF_LOOPBACK) == 0) {
      result = reinterpret_cast<const sockaddr_in*>(i->ifa_addr)->sin_addr.s_addr;
      break;
    }
  }
  ::freeifaddrs(all);
  return result;
}

}  // namespace

struct Agent::Parts final : Door::Guest, transport::Handler {
  // A node at the door, between its hello and the view that has it.
  struct Joining {
    NodeId id;
    Hello hello;
    bool admitted = false;  // given to membership
  };

  Parts(Options o, EventLoop* l) : options(std::move(o)), loop(l) {}
  ~Parts() override;

  void start(View first, NodeId id, Endpoint address, UniqueFd socket);
  Result<std::unique_ptr<transport::Transport>> make_transport(NodeId id, const Endpoint& address) const;

  void tick();
  void apply(Membership::Effects effects);
  void connect_to(const View& next);
  void answer_joining();
  void deliver_views();
  void send(NodeId to, const Message& message);

  void on_frame(Door::ConnectionId connection, const Endpoint& from, Frame frame) override;
  void on_closed(Door::ConnectionId connection) override { joining.erase(connection); }
  void on_hello(Door::ConnectionId connection, const Endpoint& from, const Frame& frame);
  void on_ready(Door::ConnectionId connection, Frame frame);
  void refuse(Door::ConnectionId connection, Errc code, std::string text);
  std::string free_name(NodeId id) const;
  bool name_taken(const std::string& name) const;

  void on_message(NodeId from, std::span<const std::byte> header,
                  std::span<const std::byte> payload) override;
  void on_peer_lost(NodeId peer, const Error& why) override;

  void check_left();
  void finish_leave();

  Options options;
  EventLoop* loop;
  NodeId self;
  std::string listening_on;
  std::unique_ptr<transport::Transport> transport;
  std::unique_ptr<Membership> membership;
  std::unique_ptr<Door> door;
  std::unique_ptr<Prober> prober;
  std::map<Door::ConnectionId, Joining> joining;
  EventLoop::TimerId tick_timer = 0, leave_timer = 0;

  View view;  // the last one delivered
  std::deque<View> undelivered;
  bool delivering = false;
  std::vector<std::function<void(const View&)>> listeners;
  std::function<void(const Error&)> on_expelled;
  std::set<NodeId> connected;

  std::function<void()> leave_done;
  bool out = false;  // delivered a view that this node left in
  ViewId stable;     // the newest that this node handed over for
  std::map<NodeId, ViewId> stable_of;
  // Calls that were posted must not reach an agent that is gone.
  std::shared_ptr<bool> alive = std::make_shared<bool>(true);
};

Agent::Parts::~Parts() {
  *alive = false;
  loop->cancel(tick_timer);
  loop->cancel(leave_timer);
  prober.reset();
  door.reset();
  if (transport != nullptr) {
    transport->set_handler(transport::Service::kCluster, nullptr);
    loop->remove_poller(transport.get());
  }
}

Result<std::unique_ptr<Agent>> Agent::create(const Options& options, EventLoop* loop) {
  if (!options.name.empty() && !good_name(options.name)) {
    return fail(Errc::kInvalid,
                "'{}' is no name for a node; use letters, digits, '-', '_' and '.', at most 63",
                options.name);
  }
  KEVRE_ASSIGN(const Endpoint listen, parse_endpoint(options.listen));
  KEVRE_ASSIGN(UniqueFd socket, listen_on(listen));
  KEVRE_ASSIGN(Endpoint address, local_endpoint(socket.get()));
  auto parts = std::make_unique<Parts>(options, loop);

  if (options.join.empty()) {
    if (address.ip == INADDR_ANY) {
      address.ip = some_address();
    }
    KEVRE_ASSIGN(parts->transport, parts->make_transport(NodeId(1), address));
    Member first;
    first.id = NodeId(1);
    first.name = options.name.empty() ? "n1" : options.name;
    first.address = to_text(address);
    first.transport_address = parts->transport->local_address();
    first.pid_first = options.pid_first;
    first.pid_last = options.pid_last;
    parts->options.name = first.name;
    parts->start(Membership::first_view(std::move(first)), NodeId(1), address, std::move(socket));
  } else {
    JoinRequest request;
    request.to = options.join;
    request.hello =
        Hello{options.name, to_text(address), options.transport_kind, options.pid_first, options.pid_last};
    request.listens_on_all = address.ip == INADDR_ANY;
    request.key = options.key;
    request.timeout_ns = options.join_timeout_ns;
    Parts* p = parts.get();
    KEVRE_ASSIGN(Joined joined,
                 join(request, [p](NodeId id, const Endpoint& at) { return p->make_transport(id, at); }));
    parts->transport = std::move(joined.transport);
    parts->options.name = joined.name;
    parts->start(std::move(joined.view), joined.id, joined.address, std::move(socket));
  }
  KEVRE_TRY(parts->door->open());
  KEVRE_TRY(loop->add_poller(parts->transport.get()));
  return std::unique_ptr<Agent>(new Agent(std::move(parts)));
}

Result<std::unique_ptr<transport::Transport>> Agent::Parts::make_transport(NodeId id,
                                                                           const Endpoint& address) const {
  transport::Options o;
  o.self = id;
  o.kind = options.transport_kind;
  o.ucx_tls = options.ucx_tls;
  const std::string text = to_text(address);
  o.bind_address = text.substr(0, text.rfind(':'));
  o.cluster_tag = cluster_tag(options.key);
  return transport::create(o);
}

void Agent::Parts::start(View first, NodeId id, Endpoint address, UniqueFd socket) {
  self = id;
  listening_on = to_text(address);
  membership =
      std::make_unique<Membership>(Membership::Options{id, options.failure_timeout_ns}, first, now_ns());
  transport->set_handler(transport::Service::kCluster, this);
  connect_to(first);
  view = std::move(first);
  door = std::make_unique<Door>(loop, options.key, std::move(socket), this);
  prober =
      std::make_unique<Prober>(loop, options.key, id, [this](NodeId node, ProbeResult result, ViewId theirs) {
        Membership::Effects effects;
        membership->on_probe(node, result, theirs, now_ns(), effects);
        apply(std::move(effects));
      });
  tick_timer = loop->after(membership->tick_ns(), [this] { tick(); });
}

void Agent::Parts::tick() {
  tick_timer = loop->after(membership->tick_ns(), [this] { tick(); });
  Membership::Effects effects;
  membership->tick(now_ns(), effects);
  apply(std::move(effects));
}

void Agent::Parts::connect_to(const View& next) {
  for (const Member& m : next.members) {
    if (m.id == self || !connected.insert(m.id).second) {
      continue;
    }
    const Result<void> result = transport->connect(m.id, m.transport_address);
    if (!result && result.error().code != Errc::kExists) {
      KEVRE_LOG_ERROR("no connection to {} ({}): {}", m.name, m.address, result.error().text);
      loop->post([this, token = alive, id = m.id, why = result.error()] {
        if (*token) {
          on_peer_lost(id, why);
        }
      });
    }
  }
}

void Agent::Parts::send(NodeId to, const Message& message) {
  // A message that does not go out now is said again: heartbeats, fetches and stuck proposals repeat
  // themselves.
  const Result<void> sent = transport->send(to, transport::Service::kCluster, {}, encode(message));
  if (!sent) {
    KEVRE_LOG_DEBUG("cluster message to node {}: {}", to, sent.error().text);
  }
}

void Agent::Parts::apply(Membership::Effects effects) {
  for (View& next : effects.views) {
    connect_to(next);
    undelivered.push_back(next);
  }
  for (const auto& [to, message] : effects.send) {
    send(to, message);
  }
  for (const View& next : effects.views) {
    for (const NodeId lost : next.lost) {
      connected.erase(lost);
      transport->disconnect(lost);
    }
  }
  if (!effects.views.empty()) {
    answer_joining();
  }
  for (const NodeId node : effects.probe) {
    if (const Member* m = membership->view().find(node); m != nullptr) {
      prober->ask(node, m->address, membership->view().id);
    }
  }
  deliver_views();
  if (effects.expelled) {
    loop->post([this, token = alive, why = *effects.expelled] {
      if (*token && on_expelled) {
        on_expelled(Error{Errc::kPeerLost, 0, why});
      }
    });
  }
}

// In order, also when a listener causes the next view.
void Agent::Parts::deliver_views() {
  if (delivering) {
    return;
  }
  delivering = true;
  while (!undelivered.empty()) {
    view = std::move(undelivered.front());
    undelivered.pop_front();
    KEVRE_LOG_INFO("view {}: {} members, {} lost, {} left", view.id, view.members.size(), view.lost.size(),
                   view.left.size());
    for (const NodeId node : view.lost) {
      stable_of.erase(node);
    }
    out = out || std::count(view.left.begin(), view.left.end(), self) > 0;
    for (size_t i = 0; i < listeners.size(); ++i) {
      listeners[i](view);
    }
  }
  delivering = false;
  check_left();
}

void Agent::Parts::on_frame(Door::ConnectionId connection, const Endpoint& from, Frame frame) {
  switch (frame.type) {
    case FrameType::kHello:
      on_hello(connection, from, frame);
      return;
    case FrameType::kReady:
      on_ready(connection, std::move(frame));
      return;
    case FrameType::kProbe: {
      const Result<Probe> probe = decode_probe(frame.body);
      if (probe) {
        const View& current = membership->view();
        const ProbeReply reply{self, current.id, current.has(probe->from) && !membership->ended()};
        door->reply(connection, FrameType::kProbeReply, encode(reply), true);
        return;
      }
      break;
    }
    case FrameType::kWelcome:
    case FrameType::kAdmitted:
    case FrameType::kRefusal:
    case FrameType::kRedirect:
    case FrameType::kProbeReply:
    case FrameType::kDenied:
      break;
  }
  refuse(connection, Errc::kCorrupt, "a frame that has no place here");
}

void Agent::Parts::refuse(Door::ConnectionId connection, Errc code, std::string text) {
  KEVRE_LOG_WARN("refused a node: {}", text);
  joining.erase(connection);
  door->reply(connection, FrameType::kRefusal, encode(Refusal{code, std::move(text)}), true);
}

bool Agent::Parts::name_taken(const std::string& name) const {
  return membership->view().find(name) != nullptr ||
         std::any_of(joining.begin(), joining.end(),
                     [&](const auto& entry) { return entry.second.hello.name == name; });
}

std::string Agent::Parts::free_name(NodeId id) const {
  for (unsigned i = id.value;; ++i) {
    std::string name = fmt::format("n{}", i);
    if (!name_taken(name)) {
      return name;
    }
  }
}

void Agent::Parts::on_hello(Door::ConnectionId connection, const Endpoint& from, const Frame& frame) {
  Result<Hello> hello = decode_hello(frame.body);
  if (!hello || joining.contains(connection)) {
    refuse(connection, Errc::kCorrupt, hello ? "a second hello" : hello.error().text);
    return;
  }
  if (membership->ended() || leave_done) {
    refuse(connection, Errc::kViewChanged, "this node is leaving the cluster; join through another one");
    return;
  }
  const View& current = membership->view();
  if (!membership->coordinates()) {
    const std::string& address = current.members.front().address;
    door->reply(connection, FrameType::kRedirect, std::as_bytes(std::span(address)), true);
    return;
  }
  if (current.members.size() >= kMembersMax) {
    refuse(connection, Errc::kExhausted,
           fmt::format("the cluster has {} nodes already, no more are possible", kMembersMax));
    return;
  }
  if (!hello->name.empty() && name_taken(hello->name)) {
    refuse(connection, Errc::kExists,
           fmt::format("the cluster has a node named '{}' already; choose another --name", hello->name));
    return;
  }
  Joining entry;
  entry.id = membership->reserve_id();
  entry.hello = std::move(*hello);
  if (entry.hello.name.empty()) {
    entry.hello.name = free_name(entry.id);
  }
  KEVRE_LOG_INFO("{} joins from {} as node {}", entry.hello.name, to_text(from), entry.id);
  const Welcome welcome{entry.id, entry.hello.name};
  joining.emplace(connection, std::move(entry));
  door->reply(connection, FrameType::kWelcome, encode(welcome), false);
}

void Agent::Parts::on_ready(Door::ConnectionId connection, Frame frame) {
  const auto i = joining.find(connection);
  Reader in(frame.body);
  Member m;
  const auto transport_address = in.bytes(transport::kAddressBytesMax);
  m.address = in.text(64);
  if (i == joining.end() || i->second.admitted || !in.done() || !parse_endpoint(m.address)) {
    refuse(connection, Errc::kCorrupt, "a malformed request to join");
    return;
  }
  if (!membership->coordinates() || membership->ended()) {
    refuse(connection, Errc::kViewChanged, "the coordinator changed while this node joined; try again");
    return;
  }
  for (const Member& member : membership->view().members) {
    const auto common = transport::have_common_transport(transport_address, member.transport_address);
    if (!common) {
      refuse(connection, common.error().code, fmt::format("with {}: {}", member.name, common.error().text));
      return;
    }
  }
  m.id = i->second.id;
  m.name = i->second.hello.name;
  m.transport_address.assign(transport_address.begin(), transport_address.end());
  m.pid_first = i->second.hello.pid_first;
  m.pid_last = i->second.hello.pid_last;
  i->second.admitted = true;
  Membership::Effects effects;
  membership->admit(std::move(m), now_ns(), effects);
  apply(std::move(effects));
}

// After a new view: those in it may come in, those who asked a node that no longer coordinates must ask
// again.
void Agent::Parts::answer_joining() {
  const View& current = membership->view();
  for (auto i = joining.begin(); i != joining.end();) {
    const auto [connection, entry] = *i++;
    if (current.has(entry.id)) {
      joining.erase(connection);
      door->reply(connection, FrameType::kAdmitted, encode(current), true);
    } else if (!membership->coordinates() || membership->ended()) {
      refuse(connection, Errc::kViewChanged, "the coordinator changed while this node joined; try again");
    } else if (current.find(entry.hello.name) != nullptr) {
      refuse(connection, Errc::kExists,
             fmt::format("the cluster has a node named '{}' already", entry.hello.name));
    }
  }
}

void Agent::Parts::on_message(NodeId from, std::span<const std::byte>, std::span<const std::byte> payload) {
  const Result<Message> message = decode_message(payload);
  if (!message) {
    KEVRE_LOG_WARN("node {} sent {}; ignored", from, message.error().text);
    return;
  }
  if (message->type == MessageType::kStable) {  // also for a node that has left already
    ViewId& known = stable_of[from];
    known = std::max(known, message->view_id);
    check_left();
    return;
  }
  Membership::Effects effects;
  membership->on_message(from, *message, now_ns(), effects);
  apply(std::move(effects));
}

void Agent::Parts::on_peer_lost(NodeId peer, const Error& why) {
  if (!membership->view().has(peer)) {
    connected.erase(peer);
    transport->disconnect(peer);
  } else if (!membership->ended()) {
    KEVRE_LOG_WARN("lost the connection to {}: {}", membership->view().find(peer)->name, why.text);
  }
  Membership::Effects effects;
  membership->on_peer_reset(peer, now_ns(), effects);
  if (out) {
    connected.erase(peer);
    check_left();
  }
  apply(std::move(effects));
}

// After leaving: all that stay have taken over what was here.
void Agent::Parts::check_left() {
  if (!out || !leave_done) {
    return;
  }
  bool all = view.members.empty() || stable >= view.id;
  for (const Member& m : view.members) {
    const auto i = stable_of.find(m.id);
    all = all && (!connected.contains(m.id) || (i != stable_of.end() && i->second >= view.id));
  }
  if (all) {
    finish_leave();
  }
}

void Agent::Parts::finish_leave() {
  loop->cancel(leave_timer);
  loop->post([token = alive, done = std::exchange(leave_done, nullptr)] {
    if (*token && done) {
      done();
    }
  });
}

Agent::Agent(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Agent::~Agent() = default;

NodeId Agent::self() const {
  return parts_->self;
}
const std::string& Agent::name() const {
  return parts_->options.name;
}
const std::string& Agent::listening_on() const {
  return parts_->listening_on;
}
transport::Transport& Agent::transport() {
  return *parts_->transport;
}
const View& Agent::view() const {
  return parts_->view;
}
void Agent::set_on_expelled(std::function<void(const Error& why)> call) {
  parts_->on_expelled = std::move(call);
}

void Agent::add_on_view(std::function<void(const View&)> call) {
  call(parts_->view);
  parts_->listeners.push_back(std::move(call));
}

void Agent::set_stable(ViewId view) {
  Parts& p = *parts_;
  if (view <= p.stable) {
    return;
  }
  p.stable = view;
  if (view == p.view.id && !p.view.left.empty()) {
    Membership::Effects effects;
    std::vector<NodeId> to = p.view.left;
    std::erase(to, p.self);
    p.membership->tell_stable(view, to, effects);
    p.apply(std::move(effects));
  }
  p.check_left();
}

void Agent::leave(std::function<void()> done) {
  Parts& p = *parts_;
  p.leave_done = std::move(done);
  p.leave_timer = p.loop->after(kLeaveNs, [this] {
    if (parts_->leave_done) {
      KEVRE_LOG_WARN("left without the others' word that they took over: none in {} s", kLeaveNs / kSecond);
      parts_->finish_leave();
    }
  });
  Membership::Effects effects;
  p.membership->leave(now_ns(), effects);
  p.apply(std::move(effects));
}

}  // namespace kevre::cluster
