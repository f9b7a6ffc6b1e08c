#include "tools/control_server.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "base/log.h"

namespace kevre::tools {

ControlConnection::ControlConnection(EventLoop* loop, UniqueFd socket, std::function<void(ControlConnection*)> on_gone)
    : loop_(loop), socket_(std::move(socket)), on_gone_(std::move(on_gone)) {}

ControlConnection::~ControlConnection() {
  if (!gone_) {
    loop_->remove(socket_.get());
  }
}

Result<void> ControlConnection::start() {
  return loop_->add(socket_.get(), EPOLLIN, [this](uint32_t events) { on_events(events); });
}

void ControlConnection::watch() {
  if (!gone_) {
    loop_->modify(socket_.get(), EPOLLIN | (watching_write_ ? EPOLLOUT : 0u));
  }
}

void ControlConnection::send(FrameKind kind, std::span<const std::byte> bytes) {
  if (gone_ || closing_) {
    return;
  }
  append_frame(out_, kind, bytes);
  write_some();
}

void ControlConnection::close() {
  closing_ = true;
  write_some();
}

void ControlConnection::on_events(uint32_t events) {
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
    read_some();
  }
  if (!gone_ && (events & EPOLLOUT) != 0) {
    write_some();
  }
}

void ControlConnection::read_some() {
  std::array<std::byte, 65536> buffer;
  const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
    return;
  }
  if (got <= 0) {
    gone();
    return;
  }
  const Result<void> fed = reader_.feed(std::span(buffer).first(static_cast<size_t>(got)),
                                        [this](FrameKind kind, std::span<const std::byte> bytes) {
                                          if (on_frame && !closing_) {
                                            const auto call = on_frame;  // it may set another one
                                            call(kind, bytes);
                                          }
                                        });
  if (!fed) {
    KEVRE_LOG_WARN("control connection closed: {}", fed.error().text);
    gone();
  }
}

void ControlConnection::write_some() {
  if (gone_) {
    return;
  }
  while (out_sent_ < out_.size()) {
    const ssize_t sent =
        ::send(socket_.get(), out_.data() + out_sent_, out_.size() - out_sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) {
      continue;
    }
    if (sent < 0 && errno == EAGAIN) {
      watching_write_ = true;
      watch();
      return;
    }
    if (sent < 0) {
      gone();
      return;
    }
    out_sent_ += static_cast<size_t>(sent);
  }
  out_.clear();
  out_sent_ = 0;
  if (watching_write_) {
    // Also when a later send() found room before the loop did: whoever waits must hear of it in any case.
    watching_write_ = false;
    watch();
    if (on_drained) {
      on_drained();
    }
  }
  if (closing_ && out_.empty()) {
    gone();
  }
}

// Frees this object in a later turn, because it is called from the object's own handlers.
void ControlConnection::gone() {
  if (gone_) {
    return;
  }
  gone_ = true;
  loop_->remove(socket_.get());
  socket_.reset();
  if (on_closed) {
    on_closed();
  }
  loop_->after(0, [this, on_gone = on_gone_] { on_gone(this); });
}

Result<std::unique_ptr<ControlServer>> ControlServer::create(EventLoop* loop, const std::string& path,
                                                             OnConnection call) {
  std::unique_ptr<ControlServer> server(new ControlServer);
  server->loop_ = loop;
  server->path_ = path;
  server->on_connection_ = std::move(call);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return fail(Errc::kInvalid, "socket path {} is longer than {} bytes: choose a shorter folder", path,
                sizeof address.sun_path - 1);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  server->listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!server->listener_) {
    return fail_errno("socket");
  }
  ::unlink(path.c_str());
  const mode_t before = ::umask(0177);
  const int bound = ::bind(server->listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int cause = errno;
  ::umask(before);
  if (bound != 0) {
    return fail_errno_text(cause, "bind " + path);
  }
  if (::listen(server->listener_.get(), 64) != 0) {
    return fail_errno("listen on {}", path);
  }
  KEVRE_TRY(loop->add(server->listener_.get(), EPOLLIN, [raw = server.get()](uint32_t) { raw->accept_one(); }));
  return server;
}

ControlServer::~ControlServer() {
  if (listener_) {
    loop_->remove(listener_.get());
    ::unlink(path_.c_str());
  }
}

void ControlServer::accept_one() {
  UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket) {
    return;
  }
  auto connection = std::make_unique<ControlConnection>(loop_, std::move(socket),
                                                        [this](ControlConnection* gone) { connections_.erase(gone); });
  ControlConnection& raw = *connection;
  connections_.emplace(&raw, std::move(connection));
  on_connection_(raw);
  if (const Result<void> started = raw.start(); !started) {
    KEVRE_LOG_WARN("control connection refused: {}", started.error().text);
    connections_.erase(&raw);
  }
}

}  // namespace kevre::tools
