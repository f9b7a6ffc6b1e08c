#include "tools/control_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstring>
#include <optional>

#include "base/clock.h"

namespace kevre::tools {

Result<ControlClient> ControlClient::connect(const std::string& path) {
  ControlClient client;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return fail(Errc::kInvalid, "socket path {} is longer than {} bytes", path, sizeof address.sun_path - 1);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  client.socket_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!client.socket_) {
    return fail_errno("socket");
  }
  if (::connect(client.socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED) {
      return fail(Errc::kNotFound, "no kevre daemon listens on {}: start a cluster with 'kevre cluster up --local 3'",
                  path);
    }
    return fail_errno("connect to {}", path);
  }
  return client;
}

pid_t ControlClient::daemon_pid() const {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(socket_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? peer.pid : 0;
}

Result<void> ControlClient::send(FrameKind kind, std::span<const std::byte> bytes) {
  std::vector<std::byte> frame;
  append_frame(frame, kind, bytes);
  size_t sent = 0;
  while (sent < frame.size()) {
    const ssize_t n = ::send(socket_.get(), frame.data() + sent, frame.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      return fail_errno("the daemon closed the connection");
    }
    sent += static_cast<size_t>(n);
  }
  return {};
}

Result<bool> ControlClient::receive(const FrameReader::OnFrame& on_frame) {
  std::array<std::byte, 65536> buffer;
  const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
  if (got < 0 && errno == EINTR) {
    return true;
  }
  if (got < 0) {
    return fail_errno("reading from the daemon");
  }
  if (got == 0) {
    return false;
  }
  KEVRE_TRY(reader_.feed(std::span(buffer).first(static_cast<size_t>(got)), on_frame));
  return true;
}

Result<nlohmann::json> ControlClient::call(const nlohmann::json& request, int timeout_ms) {
  KEVRE_TRY(send(FrameKind::kJson, as_bytes(request.dump())));
  std::optional<nlohmann::json> answer;
  const Nanos deadline = now_ns() + timeout_ms * kMillisecond;
  while (!answer) {
    const Nanos left = deadline - now_ns();
    pollfd readable{socket_.get(), POLLIN, 0};
    if (left <= 0 || ::poll(&readable, 1, static_cast<int>(left / kMillisecond) + 1) == 0) {
      return fail(Errc::kTimedOut, "the daemon did not answer within {} ms", timeout_ms);
    }
    KEVRE_ASSIGN(const bool open, receive([&](FrameKind kind, std::span<const std::byte> bytes) {
                   if (kind == FrameKind::kJson) {
                     answer = nlohmann::json::parse(as_text(bytes), nullptr, false);
                   }
                 }));
    if (!open && !answer) {
      return fail(Errc::kPeerLost, "the daemon closed the connection without an answer");
    }
  }
  if (answer->is_discarded()) {
    return fail(Errc::kCorrupt, "the daemon's answer is not JSON");
  }
  if (answer->is_object() && answer->contains("error")) {
    return fail(Errc::kSystem, "{}", (*answer)["error"].get<std::string>());
  }
  return *answer;
}

}  // namespace kevre::tools
