#include "cluster/door.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"

namespace kevre::cluster {

namespace {

constexpr size_t kUnsentBytesMax = size_t{32} << 20;

sockaddr_in to_sockaddr(const Endpoint& endpoint) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = endpoint.ip;
  address.sin_port = htons(endpoint.port);
  return address;
}

}  // namespace

Result<UniqueFd> listen_on(const Endpoint& endpoint) {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) {
    return fail_errno("a TCP socket");
  }
  const int on = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const sockaddr_in address = to_sockaddr(endpoint);
  const std::string text = to_text(endpoint);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(socket.get(), 128) != 0) {
    switch (errno) {
      case EADDRINUSE:
        return fail(Errc::kExists,
                    "port {} of {} is in use, perhaps by another kevred; stop that or choose another port "
                    "with --listen",
                    endpoint.port, text.substr(0, text.rfind(':')));
      case EADDRNOTAVAIL:
        return fail(Errc::kInvalid, "{} is no address of this machine; give one of `ip addr` with --listen",
                    text.substr(0, text.rfind(':')));
      default:
        return fail_errno("listening on {}", text);
    }
  }
  return socket;
}

Result<Endpoint> local_endpoint(int socket) {
  sockaddr_in address{};
  socklen_t size = sizeof address;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return fail_errno("getsockname");
  }
  return Endpoint{address.sin_addr.s_addr, ntohs(address.sin_port)};
}

Door::Door(EventLoop* loop, const Key& key, UniqueFd socket, Guest* guest)
    : loop_(loop), key_(key), socket_(std::move(socket)), guest_(guest) {}

Door::~Door() {
  loop_->remove(socket_.get());
  for (auto& [id, connection] : connections_) {
    loop_->cancel(connection->timer);
    loop_->remove(connection->socket.get());
  }
}

Result<void> Door::open() {
  KEVRE_ASSIGN(endpoint_, local_endpoint(socket_.get()));
  return loop_->add(socket_.get(), EPOLLIN, [this](uint32_t) { accept_all(); });
}

void Door::accept_all() {
  for (;;) {
    sockaddr_in peer{};
    socklen_t size = sizeof peer;
    UniqueFd socket(
        ::accept4(socket_.get(), reinterpret_cast<sockaddr*>(&peer), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      return;  // nobody waits, or no descriptor is left: the caller's connect then times out
    }
    const Endpoint from{peer.sin_addr.s_addr, ntohs(peer.sin_port)};
    if (connections_.size() >= kConnectionsMax && !make_room()) {
      KEVRE_LOG_WARN("{} nodes are joining at once; closed one more connection from {}", kConnectionsMax,
                     to_text(from));
      continue;
    }
    const int on = 1;
    ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const int fd = socket.get();
    const ConnectionId id = next_++;
    auto connection = std::make_unique<Connection>(std::move(socket), from,
                                                   Handshake(Role::kServer, key_, random_challenge()));
    connection->out = connection->handshake.prelude();
    connection->timer = loop_->after(kSilenceNs, [this, id, from] {
      KEVRE_LOG_WARN("closed a connection from {}: it proved nothing in {} s", to_text(from),
                     kSilenceNs / kSecond);
      close(id);
    });
    connections_.emplace(id, std::move(connection));
    if (!loop_->add(fd, EPOLLIN, [this, id](uint32_t events) { on_event(id, events); })) {
      close(id);
      continue;
    }
    flush(id);
  }
}

// Closes the connection that has proved nothing for the longest time. Not the newest: then strangers who hold
// their connections open would keep out every node with the key, which needs only milliseconds.
bool Door::make_room() {
  for (const auto& [id, connection] : connections_) {
    if (!connection->handshake.proven()) {
      if (!crowded_) {
        KEVRE_LOG_WARN("more than {} connections that proved nothing; the oldest are closed, first {}",
                       kConnectionsMax, to_text(connection->from));
      }
      crowded_ = true;
      close(id);
      return true;
    }
  }
  return false;
}

void Door::on_event(ConnectionId id, uint32_t events) {
  if ((events & EPOLLOUT) != 0) {
    flush(id);
  }
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
    read(id);
  }
}

void Door::read(ConnectionId id) {
  const auto i = connections_.find(id);
  if (i == connections_.end()) {
    return;
  }
  std::byte buffer[16384];
  const ssize_t n = ::read(i->second->socket.get(), buffer, sizeof buffer);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
    return;
  }
  if (n <= 0) {
    close(id);
    return;
  }
  const auto fed = i->second->handshake.feed(std::span(buffer, static_cast<size_t>(n)));
  if (!fed) {
    refuse(id, fed.error());
    return;
  }
  take_frames(id);
}

void Door::take_frames(ConnectionId id) {
  for (;;) {
    const auto i = connections_.find(id);
    if (i == connections_.end() || i->second->last) {
      return;
    }
    const bool proven = i->second->handshake.proven();
    Result<std::optional<Frame>> frame = i->second->handshake.next();
    if (!frame) {
      refuse(id, frame.error());
      return;
    }
    if (!frame->has_value()) {
      return;
    }
    if (!proven) {
      loop_->cancel(i->second->timer);
      i->second->timer = loop_->after(kJoinNs, [this, id] { close(id); });
    }
    const Endpoint from = i->second->from;
    guest_->on_frame(id, from, std::move(**frame));
  }
}

void Door::refuse(ConnectionId id, const Error& why) {
  Connection& connection = *connections_.at(id);
  KEVRE_LOG_WARN("closed a connection from {}: {}", to_text(connection.from), why.text);
  if (why.code != Errc::kDenied || connection.last) {
    close(id);
    return;
  }
  const Bytes denied = denied_frame();
  connection.out.insert(connection.out.end(), denied.begin(), denied.end());
  connection.last = true;
  flush(id);
}

void Door::reply(ConnectionId id, FrameType type, std::span<const std::byte> body, bool last) {
  const auto i = connections_.find(id);
  if (i == connections_.end() || i->second->last) {
    return;
  }
  const Bytes frame = i->second->handshake.seal(type, body);
  if (i->second->out.size() + frame.size() > kUnsentBytesMax) {
    close(id);
    return;
  }
  i->second->out.insert(i->second->out.end(), frame.begin(), frame.end());
  i->second->last = last;
  flush(id);
}

void Door::flush(ConnectionId id) {
  const auto i = connections_.find(id);
  if (i == connections_.end()) {
    return;
  }
  Connection& connection = *i->second;
  while (!connection.out.empty()) {
    const ssize_t n =
        ::send(connection.socket.get(), connection.out.data(), connection.out.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0 && errno == EAGAIN) {
      loop_->modify(connection.socket.get(), EPOLLIN | EPOLLOUT);
      return;
    }
    if (n < 0) {
      close(id);
      return;
    }
    connection.out.erase(connection.out.begin(), connection.out.begin() + n);
  }
  if (connection.last) {
    // Not close(): unread bytes of the peer would make that a reset, which takes the answer away from it.
    ::shutdown(connection.socket.get(), SHUT_WR);
    loop_->cancel(connection.timer);
    connection.timer = loop_->after(kSilenceNs, [this, id] { close(id); });
  }
  loop_->modify(connection.socket.get(), EPOLLIN);
}

void Door::close(ConnectionId id) {
  const auto i = connections_.find(id);
  if (i == connections_.end()) {
    return;
  }
  loop_->cancel(i->second->timer);
  loop_->remove(i->second->socket.get());
  connections_.erase(i);
  crowded_ = crowded_ && connections_.size() >= kConnectionsMax / 2;
  guest_->on_closed(id);
}

}  // namespace kevre::cluster
