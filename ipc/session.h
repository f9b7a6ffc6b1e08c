// Session: the connection of one thread of a program. Reads records, decodes them, and sends answers without
// ever waiting: a program that does not read its answers is dropped. Owns the socket. Threads: the loop's.
// Tested in tests/ipc/service_test.cc.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/event_loop.h"
#include "base/fd.h"
#include "ipc/log_limit.h"
#include "ipc/wire.h"

namespace kevre::ipc {

class Session {
 public:
  struct Events {
    // Either may end in the destruction of the session.
    std::function<void(Session& session, const DecodedCall& call, std::vector<UniqueFd> fds)> on_call;
    std::function<void(Session& session)> on_closed;
    LogLimit log_limit;
  };
  struct OpenCall {
    uint64_t program_number = 0;
    uint64_t seat_number = 0;
    bool attaching = false;  // its grant must be given back when nobody waits for it
  };
  struct OpenAttach {
    SegmentId segment;
    uint64_t bytes = 0;
  };

  Session(EventLoop* loop, UniqueFd socket, uint64_t program, Credentials credentials, Events* events);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  Result<void> start();

  // `number`: the program's. Descriptors stay the caller's. False: the session must be closed (see broken()).
  void answer(uint64_t number, const Answer& answer, std::span<const std::byte> data = {},
              std::span<const int> fds = {});
  void answer_error(uint64_t number, int error);
  bool broken() const { return broken_; }

  int socket() const { return socket_.get(); }
  uint64_t program() const { return program_; }

  Credentials credentials;
  uint64_t id = 0;  // not reused
  int32_t thread = 0;
  OpenCall call;        // program_number 0: none
  OpenAttach attach;    // segment 0: none
  uint64_t detach = 0;  // the address of the detach that was started, 0: none

 private:
  struct Queued {
    std::vector<std::byte> bytes;
    std::vector<UniqueFd> fds;
  };
  void on_ready(uint32_t events);
  void read();
  void flush();

  EventLoop* loop_;
  UniqueFd socket_;
  uint64_t program_;
  Events* events_;
  std::deque<Queued> queue_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  bool broken_ = false;
};

}  // namespace kevre::ipc
