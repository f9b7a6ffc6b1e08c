#include "cluster/caller.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "cluster/door.h"

namespace kevre::cluster {

namespace {

constexpr Nanos kRetryNs = 50 * kMillisecond;

// Starts a connection; EINPROGRESS is no error.
Result<UniqueFd> start_connect(const std::string& text) {
  KEVRE_ASSIGN(const Endpoint to, parse_endpoint(text));
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) {
    return fail_errno("a TCP socket");
  }
  const int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = to.ip;
  address.sin_port = htons(to.port);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
      errno != EINPROGRESS) {
    return fail_errno("connecting to {}", text);
  }
  return socket;
}

int socket_error(int socket) {
  int error = 0;
  socklen_t size = sizeof error;
  return ::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

// Waits for `events`; false at the deadline.
bool wait_for(int fd, short events, Nanos deadline) {
  for (;;) {
    const Nanos left = std::max<Nanos>(0, deadline - now_ns());
    pollfd p{fd, events, 0};
    const int n = ::poll(&p, 1, static_cast<int>(left / kMillisecond) + 1);
    if (n > 0) {
      return true;
    }
    if (now_ns() >= deadline) {
      return false;
    }
  }
}

}  // namespace

Result<Call> Call::open(const std::string& address, const Key& key, Nanos deadline) {
  KEVRE_ASSIGN(UniqueFd socket, start_connect(address));
  if (!wait_for(socket.get(), POLLOUT, deadline)) {
    return fail(Errc::kTimedOut, "no answer from {}; is the node up, and no firewall between?", address);
  }
  if (const int error = socket_error(socket.get()); error != 0) {
    if (error == ECONNREFUSED) {
      return fail(Errc::kPeerLost,
                  "nobody listens on {}; start kevred there first, or mend the address of --join", address);
    }
    return fail_errno_text(error, fmt::format("connecting to {}", address));
  }
  Call call(address, std::move(socket), Handshake(Role::kClient, key, random_challenge()));
  KEVRE_TRY(call.send_all(call.handshake_.prelude(), deadline));
  while (!call.handshake_.open()) {
    KEVRE_TRY(call.receive_some(deadline));
  }
  return call;
}

Result<Endpoint> Call::local() const {
  return local_endpoint(socket_.get());
}

Result<void> Call::send_all(std::span<const std::byte> bytes, Nanos deadline) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      if (!wait_for(socket_.get(), POLLOUT, deadline)) {
        return fail(Errc::kTimedOut, "no answer from {} in time", address_);
      }
    } else if (errno != EINTR) {
      return fail(Errc::kPeerLost, "{} closed the connection", address_);
    }
  }
  return {};
}

Result<void> Call::receive_some(Nanos deadline) {
  if (!wait_for(socket_.get(), POLLIN, deadline)) {
    return fail(Errc::kTimedOut, "no answer from {} in time; is a kevred of this cluster there?", address_);
  }
  std::byte buffer[16384];
  const ssize_t n = ::read(socket_.get(), buffer, sizeof buffer);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
    return {};
  }
  if (n <= 0) {
    return fail(Errc::kPeerLost, "{} closed the connection; its log says why", address_);
  }
  auto fed = handshake_.feed(std::span(buffer, static_cast<size_t>(n)));
  if (!fed) {
    return fail(fed.error().code, "{}: {}", address_, fed.error().text);
  }
  return {};
}

Result<Frame> Call::ask(FrameType type, std::span<const std::byte> body, Nanos deadline) {
  KEVRE_TRY(send_all(handshake_.seal(type, body), deadline));
  for (;;) {
    auto frame = handshake_.next();
    if (!frame) {
      return fail(frame.error().code, "{}: {}", address_, frame.error().text);
    }
    if (frame->has_value()) {
      if ((*frame)->type == FrameType::kRefusal) {
        KEVRE_ASSIGN(const Refusal refusal, decode_refusal((*frame)->body));
        return tl::unexpected(Error{refusal.code, 0, refusal.text});
      }
      return std::move(**frame);
    }
    KEVRE_TRY(receive_some(deadline));
  }
}

Prober::Prober(EventLoop* loop, const Key& key, NodeId self, Done done)
    : loop_(loop), key_(key), self_(self), done_(std::move(done)) {}

Prober::~Prober() {
  for (auto& [node, question] : questions_) {
    loop_->cancel(question->timer);
    loop_->remove(question->socket.get());
  }
}

void Prober::ask(NodeId node, const std::string& address, ViewId view) {
  if (questions_.contains(node)) {
    return;
  }
  auto question = std::make_unique<Question>(key_);
  question->probe = Probe{self_, view};
  question->address = address;
  question->deadline = now_ns() + kDeadlineNs;
  questions_.emplace(node, std::move(question));
  connect(node);
}

void Prober::connect(NodeId node) {
  Question& question = *questions_.at(node);
  question.handshake = Handshake(Role::kClient, key_, random_challenge());
  question.asked = false;
  Result<UniqueFd> socket = start_connect(question.address);
  if (!socket) {
    on_error(node, socket.error().sys_errno);
    return;
  }
  question.socket = std::move(*socket);
  const Nanos left = std::max<Nanos>(0, question.deadline - now_ns());
  question.timer = loop_->after(left, [this, node] { finish(node, ProbeResult::kNoAnswer, ViewId()); });
  if (!loop_->add(question.socket.get(), EPOLLIN | EPOLLOUT,
                  [this, node](uint32_t events) { on_event(node, events); })) {
    loop_->cancel(question.timer);
    question.timer = loop_->after(0, [this, node] { finish(node, ProbeResult::kNoAnswer, ViewId()); });
  }
}

// Refused is the answer we look for. A reset may come from a daemon that is just dying: asked again until the
// deadline.
void Prober::on_error(NodeId node, int error) {
  Question& question = *questions_.at(node);
  loop_->cancel(question.timer);
  if (question.socket) {
    loop_->remove(question.socket.get());
    question.socket.reset();
  }
  if (error == ECONNREFUSED) {
    // Through the loop: nobody is called back while it asks.
    question.timer = loop_->after(0, [this, node] { finish(node, ProbeResult::kRefused, ViewId()); });
  } else if (now_ns() + kRetryNs < question.deadline) {
    question.timer = loop_->after(kRetryNs, [this, node] { connect(node); });
  } else {
    question.timer = loop_->after(0, [this, node] { finish(node, ProbeResult::kNoAnswer, ViewId()); });
  }
}

void Prober::on_event(NodeId node, uint32_t events) {
  Question& question = *questions_.at(node);
  if (const int error = socket_error(question.socket.get()); error != 0) {
    on_error(node, error);
    return;
  }
  if ((events & EPOLLOUT) != 0) {
    const Bytes prelude = question.handshake.prelude();
    if (::send(question.socket.get(), prelude.data(), prelude.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(prelude.size())) {
      on_error(node, ECONNRESET);
      return;
    }
    loop_->modify(question.socket.get(), EPOLLIN);
  }
  if ((events & (EPOLLIN | EPOLLHUP)) == 0) {
    return;
  }
  std::byte buffer[4096];
  const ssize_t n = ::read(question.socket.get(), buffer, sizeof buffer);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
    return;
  }
  if (n <= 0) {
    on_error(node, ECONNRESET);
    return;
  }
  Result<void> fed = question.handshake.feed(std::span(buffer, static_cast<size_t>(n)));
  const auto reply = fed ? advance(question) : Result<std::optional<ProbeReply>>(tl::unexpected(fed.error()));
  if (!reply) {
    finish(node, ProbeResult::kRefused, ViewId());  // something else listens there now: the member is gone
  } else if (reply->has_value()) {
    const ProbeReply& answer = **reply;
    const ProbeResult result = answer.self != node ? ProbeResult::kRefused
                               : answer.member     ? ProbeResult::kMember
                                                   : ProbeResult::kNoMember;
    finish(node, result, answer.view);
  }
}

Result<std::optional<ProbeReply>> Prober::advance(Question& question) {
  if (question.handshake.open() && !question.asked) {
    question.asked = true;
    const Bytes frame = question.handshake.seal(FrameType::kProbe, encode(question.probe));
    if (::send(question.socket.get(), frame.data(), frame.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(frame.size())) {
      return std::optional<ProbeReply>{};  // the read that follows says what happened
    }
  }
  KEVRE_ASSIGN(const std::optional<Frame> frame, question.handshake.next());
  if (!frame) {
    return std::optional<ProbeReply>{};
  }
  if (frame->type != FrameType::kProbeReply) {
    return fail(Errc::kCorrupt, "an answer of another kind");
  }
  KEVRE_ASSIGN(const ProbeReply reply, decode_probe_reply(frame->body));
  return std::optional<ProbeReply>(reply);
}

void Prober::finish(NodeId node, ProbeResult result, ViewId view) {
  const auto i = questions_.find(node);
  loop_->cancel(i->second->timer);
  if (i->second->socket) {
    loop_->remove(i->second->socket.get());
  }
  questions_.erase(i);
  done_(node, result, view);
}

}  // namespace kevre::cluster
