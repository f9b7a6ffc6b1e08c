#include "ipc/setting_writers.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <utility>

#include "base/log.h"

namespace kevre::ipc {
namespace {
constexpr size_t kWritersMax = 64;
}

SettingWriters::~SettingWriters() {
  for (const auto& [fd, writer] : writers_) {
    loop_->remove(fd);
  }
}

void SettingWriters::add(Setting which, UniqueFd writer) {
  const int fd = writer.get();
  if (writers_.size() >= kWritersMax || !loop_->add(fd, EPOLLIN, [this](uint32_t) { drain(); })) {
    return;  // its writes fail with EPIPE
  }
  writers_.emplace(fd, Writer{which, std::move(writer), {}});
}

void SettingWriters::drain() {
  for (auto writer = writers_.begin(); writer != writers_.end();) {
    if (read(writer->second)) {
      ++writer;
    } else {
      loop_->remove(writer->first);
      writer = writers_.erase(writer);
    }
  }
}

// False: closed, or not a setting's text.
bool SettingWriters::read(Writer& writer) {
  std::array<char, kSettingBytesMax> buffer;
  for (;;) {
    const ssize_t got = ::recv(writer.socket.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    const bool more = got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    if (got > 0) {
      writer.line.append(buffer.data(), static_cast<size_t>(got));
      if (writer.line.size() > kSettingBytesMax) {
        return false;
      }
      continue;
    }
    // The kernel takes each write for a whole setting: so does this, as far as they can be told apart.
    if (!writer.line.empty()) {
      set(writer.which, std::exchange(writer.line, {}));
    }
    return more;
  }
}

void SettingWriters::set(Setting which, const std::string& text) {
  Call call;
  call.op = Op::kSettingSet;
  call.index = static_cast<int32_t>(which);
  call.payload_bytes = static_cast<uint32_t>(text.size());
  seat_->call(seat_->next_number(), {0, 0, {}}, call, std::as_bytes(std::span(text.data(), text.size())),
              [which](const Answer& answer, std::span<const std::byte>) {
                if (answer.error != 0) {
                  KEVRE_LOG_DEBUG("ipc: /proc/sys/kernel/{} was not set: {}",
                                  kSettingNames[static_cast<int32_t>(which)], ::strerror(answer.error));
                }
              });
}

}  // namespace kevre::ipc
