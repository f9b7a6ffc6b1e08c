// ControlServer: the daemon's side of control.sock. Owns the socket and the connections; a connection lives until its
// peer closes or close() was called and everything is flushed. Threads: the loop's.
// Tested in tests/tools/control_test.cc.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/event_loop.h"
#include "tools/control_wire.h"

namespace kevre::tools {

class ControlConnection {
 public:
  ControlConnection(EventLoop* loop, UniqueFd socket, std::function<void(ControlConnection*)> on_gone);
  ~ControlConnection();
  Result<void> start();

  void send(FrameKind kind, std::span<const std::byte> bytes);  // queued without bound: look at queued_bytes()
  void close();                                                 // after what is queued was sent
  size_t queued_bytes() const { return out_.size() - out_sent_; }

  // Set by whoever serves the connection; called from the loop. on_closed is called once, when the peer is gone.
  std::function<void(FrameKind, std::span<const std::byte>)> on_frame;
  std::function<void()> on_closed;
  std::function<void()> on_drained;  // queued_bytes() fell to 0 after it was more; also from inside send()

 private:
  void on_events(uint32_t events);
  void read_some();
  void write_some();
  void gone();

  EventLoop* loop_;
  UniqueFd socket_;
  std::function<void(ControlConnection*)> on_gone_;
  FrameReader reader_;
  std::vector<std::byte> out_;
  size_t out_sent_ = 0;
  void watch();
  bool watching_write_ = false;
  bool closing_ = false;
  bool gone_ = false;
};

class ControlServer {
 public:
  using OnConnection = std::function<void(ControlConnection&)>;
  static Result<std::unique_ptr<ControlServer>> create(EventLoop* loop, const std::string& path, OnConnection call);
  ~ControlServer();

 private:
  ControlServer() = default;
  void accept_one();

  EventLoop* loop_ = nullptr;
  std::string path_;
  UniqueFd listener_;
  OnConnection on_connection_;
  std::unordered_map<ControlConnection*, std::unique_ptr<ControlConnection>> connections_;
};

}  // namespace kevre::tools
