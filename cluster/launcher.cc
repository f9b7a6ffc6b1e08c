#include "cluster/launcher.h"

#include <algorithm>
#include <fstream>

#include "base/log.h"

namespace kevre::cluster {

namespace {

constexpr size_t kFinishedMax = 1024;

constexpr std::string_view kPreload = "LD_PRELOAD=";

// `extra` replaces variables of the same name; but what the user preloads is loaded too, behind ours.
void put_over(std::vector<std::string>& env, const std::vector<std::string>& extra) {
  for (const std::string& variable : extra) {
    const std::string name = variable.substr(0, variable.find('=') + 1);
    std::string value = variable;
    for (const std::string& old : env) {
      if (name == kPreload && old.starts_with(name) && old.size() > name.size() &&
          !old.starts_with(variable)) {
        value += ":" + old.substr(name.size());
      } else if (name == kPreload && old.starts_with(variable)) {
        value = old;  // a program of ours that calls `kevre run`
      }
    }
    std::erase_if(env, [&](const std::string& old) { return old.starts_with(name); });
    env.push_back(std::move(value));
  }
}

char state_of(pid_t pid) {
  std::ifstream stat(fmt::format("/proc/{}/stat", pid));
  std::string line;
  std::getline(stat, line);
  const size_t end = line.rfind(')');  // the command in parentheses may hold anything
  return end == std::string::npos || end + 2 >= line.size() ? '?' : line[end + 2];
}

}  // namespace

Launcher::Launcher(const Options& options, EventLoop* loop, transport::Transport* transport)
    : options_(options), loop_(loop), transport_(transport) {
  transport_->set_handler(transport::Service::kLaunch, this);
}

Launcher::~Launcher() {
  *alive_ = false;
  transport_->set_handler(transport::Service::kLaunch, nullptr);
}

void Launcher::post(void (Launcher::*call)()) {
  loop_->post([this, call, token = alive_] {
    if (*token) {
      (this->*call)();
    }
  });
}

// ---- for callers of this node ----

Result<Launcher::RunId> Launcher::begin(NodeId where, LaunchMessage message, Session* session) {
  const RunId run = next_run_++;
  message.run = run;
  if (where != options_.self) {
    KEVRE_TRY(send(where, message));
  }
  runs_[run] = Run{where, session};
  if (where == options_.self) {
    to_program(options_.self, message);
  }
  return run;
}

Result<Launcher::RunId> Launcher::start(NodeId where, LaunchRequest request, Session* session) {
  if (request.argv.empty()) {
    return fail(Errc::kInvalid, "no program was named");
  }
  LaunchMessage m;
  m.type = LaunchType::kStart;
  m.request = std::move(request);
  return begin(where, std::move(m), session);
}

Result<Launcher::RunId> Launcher::wait(NodeId where, uint32_t pid, Session* session) {
  LaunchMessage m;
  m.type = LaunchType::kWait;
  m.number = pid;
  return begin(where, std::move(m), session);
}

void Launcher::tell_program(RunId run, LaunchMessage message) {
  const auto i = runs_.find(run);
  if (i == runs_.end()) {
    return;
  }
  message.run = run;
  if (i->second.where == options_.self) {
    to_program(options_.self, message);
  } else {
    (void)send(i->second.where, message);  // a node that is lost ends the run by itself
  }
}

void Launcher::write_input(RunId run, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const size_t n = std::min(bytes.size(), kChunkBytesMax);
    LaunchMessage m;
    m.type = LaunchType::kData;
    m.data.assign(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(n));
    tell_program(run, std::move(m));
    bytes = bytes.subspan(n);
  }
}

void Launcher::end_input(RunId run) {
  LaunchMessage m;
  m.type = LaunchType::kInputEnd;
  tell_program(run, std::move(m));
}

void Launcher::consumed(RunId run, Stream stream, size_t bytes) {
  LaunchMessage m;
  m.type = LaunchType::kCredit;
  m.stream = stream;
  m.number = static_cast<uint32_t>(bytes);
  tell_program(run, std::move(m));
}

void Launcher::signal(RunId run, int signal) {
  LaunchMessage m;
  m.type = LaunchType::kSignal;
  m.number = static_cast<uint32_t>(signal);
  tell_program(run, std::move(m));
}

void Launcher::resize(RunId run, WindowSize window) {
  LaunchMessage m;
  m.type = LaunchType::kResize;
  m.window = window;
  tell_program(run, std::move(m));
}

void Launcher::cancel(RunId run) {
  LaunchMessage m;
  m.type = LaunchType::kCancel;
  tell_program(run, std::move(m));
  runs_.erase(run);
}

void Launcher::from_program(NodeId where, const LaunchMessage& m) {
  const auto i = runs_.find(m.run);
  if (i == runs_.end() || i->second.where != where) {
    return;  // cancelled meanwhile
  }
  Session* session = i->second.session;
  switch (m.type) {
    case LaunchType::kStarted:
      session->on_started(m.number);
      break;
    case LaunchType::kData:
      session->on_output(m.stream, m.data);
      break;
    case LaunchType::kCredit:
      session->on_input_consumed(m.number);
      break;
    case LaunchType::kExit:
      runs_.erase(i);
      session->on_exit(m.status);
      break;
    case LaunchType::kStart:
    case LaunchType::kInputEnd:
    case LaunchType::kSignal:
    case LaunchType::kResize:
    case LaunchType::kCancel:
    case LaunchType::kWait:
      break;
  }
}

void Launcher::deliver_local() {
  std::deque<std::pair<NodeId, LaunchMessage>> now = std::exchange(local_, {});
  for (const auto& [where, message] : now) {
    from_program(where, message);
  }
}

// ---- between the two ----

Result<void> Launcher::send(NodeId to, const LaunchMessage& message) {
  Bytes bytes = encode(message);
  std::deque<Bytes>& queue = waiting_[to];
  if (queue.empty()) {
    const Result<void> sent = transport_->send(to, transport::Service::kLaunch, {}, bytes);
    if (sent || sent.error().code != Errc::kBusy) {
      return sent;
    }
  }
  queue.push_back(std::move(bytes));
  return {};
}

void Launcher::on_writable(NodeId peer) {
  std::deque<Bytes>& queue = waiting_[peer];
  while (!queue.empty()) {
    const Result<void> sent = transport_->send(peer, transport::Service::kLaunch, {}, queue.front());
    if (!sent && sent.error().code == Errc::kBusy) {
      return;
    }
    queue.pop_front();
  }
}

void Launcher::to_caller(NodeId caller, LaunchMessage message) {
  if (caller == options_.self) {
    if (local_.empty()) {
      post(&Launcher::deliver_local);
    }
    local_.emplace_back(options_.self, std::move(message));
  } else {
    (void)send(caller, message);  // a caller that is lost is noticed by on_peer_lost()
  }
}

void Launcher::on_message(NodeId from, std::span<const std::byte>, std::span<const std::byte> payload) {
  const Result<LaunchMessage> message = decode_launch(payload);
  if (!message) {
    KEVRE_LOG_WARN("node {} sent {}; ignored", from, message.error().text);
    return;
  }
  const LaunchMessage& m = *message;
  const bool from_a_program = m.type == LaunchType::kStarted || m.type == LaunchType::kExit ||
                              (m.type == LaunchType::kData && m.stream != Stream::kInput) ||
                              (m.type == LaunchType::kCredit && m.stream == Stream::kInput);
  if (from_a_program) {
    from_program(from, m);
  } else {
    to_program(from, m);
  }
}

void Launcher::on_peer_lost(NodeId peer, const Error& why) {
  node_gone(peer, why.text);
}

void Launcher::on_view(const View& view) {
  std::vector<NodeId> gone = view.lost;
  for (const auto& [run, record] : runs_) {
    if (!view.has(record.where) && std::count(view.left.begin(), view.left.end(), record.where) == 0) {
      gone.push_back(record.where);
    }
  }
  for (const NodeId node : gone) {
    node_gone(node, "it was declared lost");
  }
}

void Launcher::node_gone(NodeId node, const std::string& why) {
  waiting_.erase(node);
  for (const auto& [run, record] : runs_) {
    if (record.where == node && node != options_.self) {
      if (local_.empty()) {
        post(&Launcher::deliver_local);
      }
      LaunchMessage m;
      m.type = LaunchType::kExit;
      m.run = run;
      m.status = ExitStatus{ExitStatus::Kind::kLost, 1, fmt::format("the program's node is gone: {}", why)};
      local_.emplace_back(node, std::move(m));
    }
  }
  for (const auto& [key, program] : programs_) {
    if (key.first == node && node != options_.self) {
      program->hang_up();
    }
  }
  std::erase_if(waiters_, [&](const auto& entry) { return entry.second.first == node; });
}

// ---- for programs on this node ----

void Launcher::to_program(NodeId caller, const LaunchMessage& m) {
  if (m.type == LaunchType::kStart) {
    start_program(caller, m);
  } else if (m.type == LaunchType::kWait) {
    wait_program(caller, m);
  } else if (const auto i = programs_.find({caller, m.run}); i != programs_.end()) {
    i->second->on_message(m);
  } else if (m.type == LaunchType::kCancel) {
    std::erase_if(waiters_, [&](const auto& entry) { return entry.second == ProgramKey(caller, m.run); });
  }
}

void Launcher::start_program(NodeId caller, const LaunchMessage& m) {
  const ProgramKey key(caller, m.run);
  if (programs_.contains(key)) {
    KEVRE_LOG_WARN("node {} used the run number {} twice; ignored", caller, m.run);
    return;
  }
  LaunchRequest request = m.request;
  put_over(request.env, options_.env);
  request.open_files = options_.open_files;
  auto program =
      std::make_unique<Program>(loop_, m.run, std::move(request), [this, key](LaunchMessage message) {
        const bool last = message.type == LaunchType::kExit;
        const ExitStatus status = message.status;
        to_caller(key.first, std::move(message));
        if (last) {
          program_ended(key, status);
        }
      });
  Program* p = program.get();
  programs_.emplace(key, std::move(program));
  p->start();
}

void Launcher::wait_program(NodeId caller, const LaunchMessage& m) {
  const auto running = std::find_if(programs_.begin(), programs_.end(), [&](const auto& entry) {
    return entry.second->request().detach && static_cast<uint32_t>(entry.second->pid()) == m.number;
  });
  if (running != programs_.end()) {
    waiters_.emplace(m.number, ProgramKey(caller, m.run));
    return;
  }
  LaunchMessage reply;
  reply.type = LaunchType::kExit;
  reply.run = m.run;
  reply.status =
      ExitStatus{ExitStatus::Kind::kFailed, 1, fmt::format("no detached program with pid {} here", m.number)};
  for (const auto& [pid, status] : finished_) {
    if (pid == m.number) {
      reply.status = status;
    }
  }
  to_caller(caller, std::move(reply));
}

void Launcher::program_ended(ProgramKey key, const ExitStatus& status) {
  const auto i = programs_.find(key);
  if (i == programs_.end()) {
    return;
  }
  const auto pid = static_cast<uint32_t>(i->second->pid());
  if (i->second->request().detach && pid != 0) {
    finished_.emplace_back(pid, status);
    if (finished_.size() > kFinishedMax) {
      finished_.pop_front();
    }
    const auto [first, last] = waiters_.equal_range(pid);
    for (auto w = first; w != last; ++w) {
      LaunchMessage m;
      m.type = LaunchType::kExit;
      m.run = w->second.second;
      m.status = status;
      to_caller(w->second.first, std::move(m));
    }
    waiters_.erase(first, last);
  }
  ended_.push_back(std::move(i->second));
  programs_.erase(i);
  loop_->post([this, token = alive_] {
    if (*token) {
      ended_.clear();
    }
  });
}

std::vector<Launcher::Running> Launcher::list() const {
  std::vector<Running> result;
  for (const auto& [key, program] : programs_) {
    Running r;
    r.pid = static_cast<uint32_t>(program->pid());
    for (const std::string& argument : program->request().argv) {
      r.command += (r.command.empty() ? "" : " ") + argument;
    }
    r.state = state_of(program->pid());
    r.uid = program->request().uid;
    r.caller = key.first;
    r.detached = program->request().detach;
    result.push_back(std::move(r));
  }
  return result;
}

}  // namespace kevre::cluster
