#include "ipc/service.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "ipc/credentials.h"
#include "ipc/programs.h"
#include "ipc/seat_link.h"
#include "ipc/session.h"
#include "ipc/setting_writers.h"

namespace kevre::ipc {
namespace {
constexpr int kBacklog = 1024;
constexpr Nanos kAcceptPauseNs = 100 * kMillisecond;

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(Errc::kInvalid, "socket path '{}' has {} bytes; 1 to {} are possible", path, path.size(),
                sizeof address.sun_path - 1);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> listen_at(const std::string& path) {
  KEVRE_ASSIGN(const sockaddr_un address, address_of(path));
  const auto* raw = reinterpret_cast<const sockaddr*>(&address);
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) {
    return fail_errno("socket");
  }
  if (::connect(socket.get(), raw, sizeof address) == 0 || errno == EAGAIN) {
    return fail(Errc::kExists, "{} is served by another daemon (stop it, or choose another socket)", path);
  }
  ::unlink(path.c_str());
  if (::bind(socket.get(), raw, sizeof address) != 0) {
    return fail_errno("bind {}", path);
  }
  // Programs of every user connect; what they may do is decided by their credentials.
  if (::chmod(path.c_str(), 0666) != 0 || ::listen(socket.get(), kBacklog) != 0) {
    return fail_errno("listen at {}", path);
  }
  return socket;
}

// An answer that is a text: a read-only descriptor of it.
Result<UniqueFd> text_fd(std::span<const std::byte> text) {
  UniqueFd fd(::memfd_create("sysvipc", MFD_CLOEXEC));
  if (!fd) {
    return fail_errno("memfd_create");
  }
  while (!text.empty()) {
    const ssize_t written = ::write(fd.get(), text.data(), text.size());
    if (written <= 0) {
      return fail_errno("write to a memfd");
    }
    text = text.subspan(static_cast<size_t>(written));
  }
  UniqueFd readable(::open(fmt::format("/proc/self/fd/{}", fd.get()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!readable) {
    return fail_errno("open of a memfd");
  }
  return readable;
}
}  // namespace

struct Service::Parts {
  Parts(const Options& what, EventLoop* the_loop, transport::Transport* transport, dsm::Node* dsm)
      : options(what),
        loop(the_loop),
        node(dsm),
        seat(what.self, transport, [this](SegmentId segment) { node->destroy(segment); }),
        programs(the_loop, dsm, &seat, [this](uint64_t program) { close_sessions(program); }),
        setting_writers(the_loop, &seat) {
    events.on_call = [this](Session& session, const DecodedCall& call, std::vector<UniqueFd> fds) {
      on_call(session, call, std::move(fds));
    };
    events.on_closed = [this](Session& session) { close(session.id); };
  }
  ~Parts() {
    if (listener) {
      loop->remove(listener.get());
      ::unlink(options.socket_path.c_str());
    }
    closing = true;
    while (!sessions.empty()) {
      close(sessions.begin()->first);
    }
  }

  void on_accept();
  void open(UniqueFd socket);
  void close(uint64_t id);
  void close_sessions(uint64_t program);
  void on_call(Session& session, const DecodedCall& call, std::vector<UniqueFd> fds);
  void hello(Session& session, const Call& call);
  void forward(Session& session, const DecodedCall& call);
  void answered(uint64_t id, const Call& call, const Answer& answer, std::span<const std::byte> data);
  void attach_granted(Session& session, const Call& call, const Answer& answer);
  void attached(Session& session, const Call& call, std::vector<UniqueFd> fds);
  void give_up_attach(Session& session);
  bool refresh_credentials(Session& session, const Call& call);

  Options options;
  EventLoop* loop;
  dsm::Node* node;
  SeatLink seat;
  std::map<uint64_t, std::unique_ptr<Session>> sessions;
  uint64_t last_session = 0;
  Session::Events events;
  bool closing = false;
  UniqueFd listener;
  Programs programs;
  SettingWriters setting_writers;
};

void Service::Parts::on_accept() {
  for (;;) {
    UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      open(std::move(socket));
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) {
      continue;
    }
    if (errno != EAGAIN) {
      // Out of descriptors: the programs that wait to be accepted are asked again later, the others are
      // served on.
      if (const int error = errno; events.log_limit.allow()) {
        KEVRE_LOG_WARN("ipc: accept: {} (raise the limit of open files)", std::strerror(error));
      }
      loop->modify(listener.get(), 0);
      loop->after(kAcceptPauseNs, [this] { loop->modify(listener.get(), EPOLLIN); });
    }
    return;
  }
}

void Service::Parts::open(UniqueFd socket) {
  const auto peer = peer_of(socket.get());
  if (!peer) {
    KEVRE_LOG_DEBUG("ipc: a program is refused: {}", peer.error().text);
    return;
  }
  const auto program = programs.of_pid(peer->pid);
  if (!program) {
    KEVRE_LOG_DEBUG("ipc: a program is refused: {}", program.error().text);
    return;
  }
  auto session = std::make_unique<Session>(loop, std::move(socket), *program, peer->credentials, &events);
  session->id = ++last_session;
  if (const auto started = session->start(); !started) {
    if (events.log_limit.allow()) {
      KEVRE_LOG_WARN("ipc: a program is refused: {}", started.error().text);
    }
    return;
  }
  programs.session_opened(*program);
  sessions.emplace(session->id, std::move(session));
}

void Service::Parts::close(uint64_t id) {
  auto closed = sessions.extract(id);
  if (closed.empty()) {
    return;
  }
  Session& session = *closed.mapped();
  if (session.call.program_number != 0 && !session.call.attaching && !closing) {
    seat.forget(session.call.seat_number);
  }
  give_up_attach(session);
  const uint64_t program = session.program();
  if (session.detach != 0 && programs.pid_of(program) != 0) {
    programs.detach_done(program, session.detach);
  }
  closed.mapped().reset();
  if (!closing) {
    programs.session_closed(program);
  }
}

void Service::Parts::close_sessions(uint64_t program) {
  std::vector<uint64_t> ids;
  for (const auto& [id, session] : sessions) {
    if (session->program() == program) {
      ids.push_back(id);
    }
  }
  for (const uint64_t id : ids) {
    close(id);
  }
}

void Service::Parts::give_up_attach(Session& session) {
  if (session.attach.segment.value != 0) {
    programs.tell_detached(programs.pid_of(session.program()), session.attach.segment, 1);
    session.attach = {};
  }
}

// The kernel told who connected; a program that changed its ids since says so, and is not believed without
// looking.
bool Service::Parts::refresh_credentials(Session& session, const Call& call) {
  if (call.uid == session.credentials.uid && call.gid == session.credentials.gid) {
    return true;
  }
  const auto now = credentials_of(static_cast<pid_t>(programs.pid_of(session.program())), session.thread);
  if (!now) {
    return false;
  }
  session.credentials = *now;
  return true;
}

void Service::Parts::hello(Session& session, const Call& call) {
  session.thread = call.id;
  Answer answer;
  if (call.index > 0) {
    if (const auto uffd = programs.claim_fork(session.program(), call.index); uffd && *uffd >= 0) {
      answer.value = 1;
      return session.answer(call.number, answer, {}, std::span(&*uffd, 1));
    }
  }
  session.answer(call.number, answer);
}

void Service::Parts::on_call(Session& session, const DecodedCall& decoded, std::vector<UniqueFd> fds) {
  const Call& call = decoded.call;
  if (call.op == Op::kCancel) {
    if (session.call.program_number == call.number) {
      seat.cancel(session.call.seat_number, call.cmd);
    }
    return;
  }
  if (session.call.program_number != 0 || call.number == 0) {
    if (events.log_limit.allow()) {
      KEVRE_LOG_WARN("ipc: process {} is dropped: a second call on one connection",
                     programs.pid_of(session.program()));
    }
    return close(session.id);
  }
  if (!refresh_credentials(session, call)) {
    return session.answer_error(call.number, EACCES);
  }
  setting_writers.drain();  // what a program wrote before it called
  switch (call.op) {
    case Op::kHello:
      return hello(session, call);
    case Op::kAttached:
      return attached(session, call, std::move(fds));
    case Op::kAttachFailed:
      give_up_attach(session);
      return session.answer_error(call.number, 0);
    case Op::kDetachStart: {
      Answer answer;
      answer.error =
          programs.detach_start(session.program(), static_cast<uint64_t>(call.value), &answer.size);
      session.detach = answer.error == 0 ? static_cast<uint64_t>(call.value) : 0;
      return session.answer(call.number, answer);
    }
    case Op::kDetachDone:
      if (session.detach != 0) {
        programs.detach_done(session.program(), std::exchange(session.detach, 0));
      }
      return session.answer_error(call.number, 0);
    case Op::kSettingWriter: {
      const bool given = !fds.empty();
      const int error = session.credentials.uid != 0 ? EACCES : given ? 0 : EINVAL;
      if (error == 0) {
        setting_writers.add(static_cast<Setting>(call.index), std::move(fds.front()));
      }
      return session.answer_error(call.number, error);
    }
    case Op::kCancel:
    case Op::kShmDetach:
    case Op::kShmFork:
      return session.answer_error(call.number, ENOSYS);
    case Op::kShmGet:
    case Op::kShmAt:
    case Op::kShmCtl:
    case Op::kSemGet:
    case Op::kSemOp:
    case Op::kSemCtl:
    case Op::kSemCount:
    case Op::kMsgGet:
    case Op::kMsgSend:
    case Op::kMsgReceive:
    case Op::kMsgCtl:
    case Op::kProcText:
    case Op::kSettingText:
    case Op::kSettingSet:
      return forward(session, decoded);
  }
}

void Service::Parts::forward(Session& session, const DecodedCall& decoded) {
  give_up_attach(session);
  const uint64_t number = seat.next_number();
  session.call = {decoded.call.number, number, decoded.call.op == Op::kShmAt};
  const uint64_t id = session.id;
  seat.call(number, {session.program(), programs.pid_of(session.program()), session.credentials},
            decoded.call, decoded.payload,
            [this, id, call = decoded.call](const Answer& answer, std::span<const std::byte> data) {
              answered(id, call, answer, data);
            });
}

void Service::Parts::answered(uint64_t id, const Call& call, const Answer& answer,
                              std::span<const std::byte> data) {
  const auto found = sessions.find(id);
  if (found == sessions.end()) {
    if (call.op == Op::kShmAt && answer.error == 0) {
      programs.tell_detached(0, SegmentId(answer.segment), 1);
    }
    return;
  }
  Session& session = *found->second;
  session.call = {};
  if (answer.error != 0) {
    return session.answer_error(call.number, answer.error);
  }
  if (call.op == Op::kShmAt) {
    return attach_granted(session, call, answer);
  }
  if (call.op == Op::kProcText || call.op == Op::kSettingText) {
    const auto fd = text_fd(data);
    if (!fd) {
      return session.answer_error(call.number, ENOMEM);
    }
    const int raw = fd->get();
    return session.answer(call.number, answer, {}, std::span(&raw, 1));
  }
  session.answer(call.number, answer, data);
}

void Service::Parts::attach_granted(Session& session, const Call& call, const Answer& answer) {
  session.attach = {SegmentId(answer.segment), answer.size};
  const auto memory = node->segment_fd(session.attach.segment, answer.size);
  if (!memory) {
    if (events.log_limit.allow()) {
      KEVRE_LOG_WARN("ipc: shmat of {} bytes: {}", answer.size, memory.error().text);
    }
    give_up_attach(session);
    return session.answer_error(call.number, ENOMEM);
  }
  const bool first = !programs.has_space(session.program());
  const int fds[] = {*memory, node->userfaultfd_device()};
  Answer granted = answer;
  granted.value = first ? 1 : 0;
  session.answer(call.number, granted, {}, std::span(fds).first(first ? 2 : 1));
}

void Service::Parts::attached(Session& session, const Call& call, std::vector<UniqueFd> fds) {
  if (session.attach.segment.value == 0) {
    return session.answer_error(call.number, EINVAL);
  }
  const uint64_t bytes = (session.attach.bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  const int error =
      programs.attached(session.program(), session.attach.segment, static_cast<uint64_t>(call.value), bytes,
                        fds.empty() ? UniqueFd() : std::move(fds.front()));
  if (error != 0) {
    give_up_attach(session);
  }
  session.attach = {};
  session.answer_error(call.number, error);
}

Service::Service(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Service::~Service() = default;

Result<std::unique_ptr<Service>> Service::create(const Options& options, EventLoop* loop,
                                                 transport::Transport* transport, dsm::Node* node) {
  auto parts = std::make_unique<Parts>(options, loop, transport, node);
  KEVRE_ASSIGN(parts->listener, listen_at(options.socket_path));
  Parts* raw = parts.get();
  KEVRE_TRY(loop->add(parts->listener.get(), EPOLLIN, [raw](uint32_t) { raw->on_accept(); }));
  return std::unique_ptr<Service>(new Service(std::move(parts)));
}

void Service::on_view(const cluster::View& view) {
  parts_->seat.on_view(view);
}

ServiceStats Service::stats() const {
  return {parts_->programs.count(), parts_->sessions.size(), parts_->seat.calls_local(),
          parts_->seat.calls_remote()};
}

}  // namespace kevre::ipc
