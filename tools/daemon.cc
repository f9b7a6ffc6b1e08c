#include "tools/daemon.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "base/clock.h"
#include "base/log.h"
#include "cluster/pid_range.h"
#include "tools/doctor.h"
#include "tools/run_session.h"
#include "tools/sockets.h"

namespace kevre::tools {
namespace {

constexpr Nanos kLeaveWithin = 3 * kSecond;

// What serves a peer and what carries it: "ucx" and "tcp", "verbs" and "rc".
std::vector<std::string> transports_of(const transport::Transport& transport, NodeId peer) {
  const transport::Capabilities can = transport.capabilities(peer);
  std::vector<std::string> names;
  for (const std::string_view name : {can.backend, can.via}) {
    if (!name.empty()) {
      names.emplace_back(name);
    }
  }
  return names;
}

nlohmann::json micros(const Histogram& h) {
  const auto us = [&](double fraction) { return static_cast<double>(h.percentile_ns(fraction)) / 1000; };
  return {{"median", us(0.5)}, {"p99", us(0.99)}, {"n", h.count()}};
}

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::create(Options options) {
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(options)));
  Daemon& d = *daemon;
  const Options& o = d.options_;
  KEVRE_ASSIGN(d.loop_, EventLoop::create());
  d.loop_->set_spin(o.spin_ns);
  // What this machine cannot do is said before the cluster hears of this node.
  KEVRE_TRY(check_userfaultfd());
  KEVRE_TRY(d.watch_signals());
  KEVRE_ASSIGN(d.agent_, cluster::Agent::create(o.agent, d.loop_.get()));
  dsm::Node::Options node;
  node.self = d.agent_->self();
  node.spin_ns = o.spin_ns;
  KEVRE_ASSIGN(d.node_, dsm::Node::create(node, d.loop_.get(), &d.agent_->transport()));
  KEVRE_ASSIGN(d.service_, ipc::Service::create({d.agent_->self(), o.node_socket}, d.loop_.get(), &d.agent_->transport(), d.node_.get()));
  d.create_launcher();
  d.node_->set_on_stable([raw = &d](ViewId view) { raw->agent_->set_stable(view); });
  d.agent_->add_on_view([raw = &d](const cluster::View& view) {
    raw->node_->on_view(view);
    raw->service_->on_view(view);
    raw->launcher_->on_view(view);
  });
  d.agent_->set_on_expelled([raw = &d](const Error& why) {
    KEVRE_LOG_ERROR("{}", why.text);
    raw->exit_code_ = 1;
    raw->loop_->stop();
  });
  if (o.agent.pid_first != 0) {
    cluster::PidRange(o.agent.pid_first, o.agent.pid_last).guard(d.loop_.get());
  }
  KEVRE_ASSIGN(d.control_, ControlServer::create(d.loop_.get(), o.control_socket, [raw = &d](ControlConnection& connection) {
                 raw->serve(connection);
               }));
  return daemon;
}

Daemon::~Daemon() = default;

void Daemon::create_launcher() {
  cluster::Launcher::Options launcher;
  launcher.self = agent_->self();
  launcher.open_files = options_.open_files;
  launcher.env = {"KEVRE_SOCKET=" + options_.node_socket, "KEVRE_CONTROL=" + options_.control_socket,
                  "KEVRE_NODE=" + agent_->name(), "LD_PRELOAD=" + options_.preload};
  launcher_ = std::make_unique<cluster::Launcher>(launcher, loop_.get(), &agent_->transport());
}

const std::string& Daemon::address() const { return agent_->listening_on(); }

Result<void> Daemon::watch_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_) {
    return fail_errno("signalfd");
  }
  return loop_->add(signals_.get(), EPOLLIN, [this](uint32_t) {
    signalfd_siginfo info{};
    if (::read(signals_.get(), &info, sizeof info) == sizeof info) {
      leave_and_stop();
    }
  });
}

// A second signal, or a hand-over that takes too long, ends the daemon at once.
void Daemon::leave_and_stop() {
  if (leaving_) {
    loop_->stop();
    return;
  }
  leaving_ = true;
  loop_->after(kLeaveWithin, [this] { loop_->stop(); });
  agent_->leave([this] { loop_->stop(); });
}

void Daemon::run() { loop_->run(); }

void Daemon::serve(ControlConnection& connection) {
  connection.on_frame = [this, &connection](FrameKind kind, std::span<const std::byte> bytes) {
    if (kind != FrameKind::kJson) {
      return;
    }
    const nlohmann::json request = nlohmann::json::parse(as_text(bytes), nullptr, false);
    nlohmann::json answer;
    if (request.is_object() && request.value("do", "") == "run") {
      start_run_session(*launcher_, *agent_, connection, request);
      return;
    }
    answer = request.is_object() ? answer_to(request.value("do", "")) : nlohmann::json{{"error", "the request is not a JSON object"}};
    connection.send(FrameKind::kJson, as_bytes(answer.dump()));
  };
}

nlohmann::json Daemon::answer_to(const std::string& request) const {
  if (request == "describe") {
    return describe();
  }
  if (request == "nodes") {
    return list_nodes();
  }
  if (request == "info") {
    return about();
  }
  return {{"error", "this daemon does not know the request '" + request + "': is it of another version?"}};
}

nlohmann::json Daemon::list_nodes() const {
  auto list = nlohmann::json::array();
  for (const cluster::Member& member : agent_->view().members) {
    const bool self = member.id == agent_->self();
    const auto transports = self ? std::vector<std::string>{"self"} : transports_of(agent_->transport(), member.id);
    list.push_back({{"name", member.name}, {"state", "up"}, {"address", member.address}, {"transports", transports}});
  }
  return list;
}

nlohmann::json Daemon::describe() const {
  auto transports = nlohmann::json::array();
  for (const cluster::Member& member : agent_->view().members) {
    for (const std::string& name : transports_of(agent_->transport(), member.id)) {
      if (std::find(transports.begin(), transports.end(), name) == transports.end()) {
        transports.push_back(name);
      }
    }
  }
  const dsm::NodeStats pages = node_->stats();
  const ipc::ServiceStats calls = service_->stats();
  return {{"name", agent_->name()},
          {"state", leaving_ ? "leaving" : "up"},
          {"address", agent_->listening_on()},
          {"view", agent_->view().id.value},
          {"stable_view", node_->stable_view().value},
          {"transports", transports},
          {"programs", launcher_->list().size()},
          {"faults", pages.faults},
          {"local_faults", pages.local_faults},
          {"fault_us", micros(pages.fault_ns)},
          {"pages_in", pages.pages_in},
          {"pages_out", pages.pages_out},
          {"calls_local", calls.calls_local},
          {"calls_remote", calls.calls_remote}};
}

nlohmann::json Daemon::about() const {
  auto peers = nlohmann::json::array();
  for (const cluster::Member& member : agent_->view().members) {
    if (member.id != agent_->self()) {
      const auto can = agent_->transport().capabilities(member.id);
      peers.push_back({{"name", member.name},
                       {"backend", std::string(can.backend)},
                       {"via", std::string(can.via)},
                       {"one_sided", {{"read", can.read}, {"write", can.write}, {"atomic", can.atomic}}},
                       {"why", std::string(can.why)}});
    }
  }
  return {{"version", KEVRE_VERSION},
          {"node", agent_->name()},
          {"address", agent_->listening_on()},
          {"transport", std::string(agent_->transport().name())},
          {"pages", node_->describe_features()},
          {"note", options_.note},
          {"peers", peers},
          {"counters", count()}};
}

nlohmann::json Daemon::count() const {
  const transport::Counters moved = agent_->transport().counters();
  const dsm::NodeStats pages = node_->stats();
  return {{"messages_sent", moved.messages_sent},
          {"messages_received", moved.messages_received},
          {"bytes_sent", moved.bytes_sent},
          {"bytes_received", moved.bytes_received},
          {"rejected", moved.rejected},
          {"one_sided_reads", moved.one_sided_reads},
          {"one_sided_writes", moved.one_sided_writes},
          {"one_sided_atomics", moved.one_sided_atomics},
          {"pages_in", pages.pages_in},
          {"pages_out", pages.pages_out},
          {"pages_fetched", pages.directory.pages_fetched},
          {"fetches_failed", pages.directory.fetches_failed}};
}

}  // namespace kevre::tools
