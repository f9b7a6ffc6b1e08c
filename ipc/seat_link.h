// SeatLink: carries calls to the seat and answers back, wherever the seat is: the namespace in this node when
// this node has the seat, else one message over Service::kIpc. Owns: the namespace, the calls that wait for
// an answer. A call is answered exactly once. When the seat is lost its objects are gone: calls that wait get
// EIDRM. Threads: the loop's. Tested in tests/ipc/seat_link_test.cc.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "cluster/view.h"
#include "ipc/namespace.h"
#include "ipc/wire.h"
#include "transport/transport.h"

namespace kevre::ipc {

class SeatLink final : public transport::Handler {
 public:
  struct Who {
    uint64_t process = 0;
    uint32_t pid = 0;
    Credentials credentials;
  };
  using Done = std::function<void(const Answer& answer, std::span<const std::byte> data)>;
  using OnDestroy = std::function<void(SegmentId segment)>;

  // `transport` may be nullptr in tests of one node.
  SeatLink(NodeId self, transport::Transport* transport, OnDestroy on_destroy);
  ~SeatLink() override;

  uint64_t next_number() { return ++last_number_; }
  // `number` from next_number(). `done` may be called before this returns.
  void call(uint64_t number, const Who& who, const Call& call, std::span<const std::byte> payload, Done done);
  void cancel(uint64_t number, int error);
  void forget(uint64_t number);                 // whoever asked is gone: end the call, tell nobody
  void tell(const Who& who, const Call& call);  // kShmDetach, kShmFork: not answered
  void process_gone(uint64_t process, uint32_t pid);

  void on_view(const cluster::View& view);
  bool has_seat() const { return names_ != nullptr; }
  uint64_t calls_local() const { return calls_local_; }
  uint64_t calls_remote() const { return calls_remote_; }

  void on_message(NodeId from, std::span<const std::byte> header,
                  std::span<const std::byte> payload) override;
  void on_peer_lost(NodeId peer, const Error& why) override;
  void on_writable(NodeId peer) override;

 private:
  struct Record {
    SeatMessage message;
    std::vector<std::byte> payload;
  };
  void send_to_seat(SeatMessage message, std::span<const uint32_t> groups,
                    std::span<const std::byte> payload);
  void send(NodeId to, const SeatMessage& message, std::span<const std::byte> payload);
  bool try_send(NodeId to, const Record& record);
  void rule(NodeId from, const SeatMessage& message, std::span<const uint32_t> groups,
            std::span<const std::byte> payload);
  void execute(std::vector<Effect>& effects);
  void complete(uint64_t number, const Answer& answer, std::span<const std::byte> data);
  void seat_lost();

  NodeId self_;
  transport::Transport* transport_;
  OnDestroy on_destroy_;
  cluster::View view_;
  std::unique_ptr<Namespace> names_;
  uint64_t last_number_ = 0;
  std::map<uint64_t, Done> waiting_;
  std::map<NodeId, std::deque<Record>> outbox_;  // what the transport had no room for
  std::deque<Record> unsent_;                    // before the first view
  struct Held {
    NodeId from;
    SeatMessage message;
    std::vector<std::byte> payload;  // with the groups
  };
  std::deque<Held> held_;  // from nodes that have seen a later view
  uint64_t calls_local_ = 0, calls_remote_ = 0;
};

}  // namespace kevre::ipc
