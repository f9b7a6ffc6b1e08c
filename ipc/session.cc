#include "ipc/session.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cstring>

#include "base/log.h"

namespace kevre::ipc {
namespace {
constexpr size_t kRecordBytesMax = sizeof(Call) + kPayloadBytesLimit;
constexpr size_t kQueuedMax = 16;
constexpr int kRecordsPerTurn = 16;
}  // namespace

Session::Session(EventLoop* loop, UniqueFd socket, uint64_t program, Credentials who, Events* events)
    : credentials(std::move(who)),
      loop_(loop),
      socket_(std::move(socket)),
      program_(program),
      events_(events) {}

Session::~Session() {
  *alive_ = false;
  loop_->remove(socket_.get());
}

Result<void> Session::start() {
  return loop_->add(socket_.get(), EPOLLIN, [this](uint32_t events) { on_ready(events); });
}

void Session::on_ready(uint32_t events) {
  const auto alive = alive_;
  if ((events & EPOLLOUT) != 0) {
    flush();
  }
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
    read();
  }
  if (*alive && broken_) {
    events_->on_closed(*this);
  }
}

void Session::read() {
  const auto alive = alive_;
  for (int i = 0; i < kRecordsPerTurn && *alive && !broken_; ++i) {
    std::array<std::byte, kRecordBytesMax> buffer;
    auto received = receive_with_fds(socket_.get(), buffer);
    if (!received) {
      const int error = received.error().sys_errno;
      if (error == EAGAIN) {
        return;
      }
      broken_ = true;
      return;
    }
    if (received->bytes == 0) {
      broken_ = true;
      return;
    }
    const auto decoded = decode_call(std::span<const std::byte>(buffer).first(received->bytes));
    if (!decoded) {
      if (events_->log_limit.allow()) {
        KEVRE_LOG_WARN("ipc: a program is dropped: {}", decoded.error().text);
      }
      broken_ = true;
      return;
    }
    events_->on_call(*this, *decoded, std::move(received->fds));
  }
}

void Session::answer(uint64_t number, const Answer& answer, std::span<const std::byte> data,
                     std::span<const int> fds) {
  if (broken_) {
    return;
  }
  Answer header = answer;
  header.number = number;
  header.payload_bytes = static_cast<uint32_t>(data.size());
  Queued record;
  record.bytes.resize(sizeof header + data.size());
  std::memcpy(record.bytes.data(), &header, sizeof header);
  std::copy(data.begin(), data.end(), record.bytes.begin() + sizeof header);
  if (queue_.empty()) {
    const auto sent = send_with_fds(socket_.get(), record.bytes, fds);
    if (sent) {
      return;
    }
    if (sent.error().sys_errno != EAGAIN) {
      broken_ = true;  // its end is closed: the loop reports it
      return;
    }
  }
  if (queue_.size() >= kQueuedMax) {
    if (events_->log_limit.allow()) {
      KEVRE_LOG_WARN("ipc: a program that does not read its answers is dropped");
    }
    broken_ = true;
    ::shutdown(socket_.get(), SHUT_RDWR);
    return;
  }
  for (const int fd : fds) {
    record.fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  }
  queue_.push_back(std::move(record));
  loop_->modify(socket_.get(), EPOLLIN | EPOLLOUT);
}

void Session::answer_error(uint64_t number, int error) {
  Answer header;
  header.error = error;
  header.value = error != 0 ? -1 : 0;
  answer(number, header);
}

void Session::flush() {
  while (!queue_.empty()) {
    std::vector<int> fds;
    for (const UniqueFd& fd : queue_.front().fds) {
      fds.push_back(fd.get());
    }
    const auto sent = send_with_fds(socket_.get(), queue_.front().bytes, fds);
    if (!sent) {
      broken_ = sent.error().sys_errno != EAGAIN;
      return;
    }
    queue_.pop_front();
  }
  loop_->modify(socket_.get(), EPOLLIN);
}

}  // namespace kevre::ipc
