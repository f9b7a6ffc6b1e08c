// ChoiceTransport: the backends of this node behind one Transport. Which of them serves a peer is decided in connect() from
// both ends' addresses (choice_address.h), the same way at both ends; from then on calls for that peer go straight to it.
//
// With one backend its wake-up is passed through; with two, one epoll descriptor stands for both. Buffers and regions
// belong to the first backend (verbs where there is one): a Buffer may be sent through either, and only peers of that
// backend can operate on memory here.
// Owns the backends. Threads: see transport.h. Tested in tests/transport/choice_test.cc and, over this machine's backends,
// by the conformance suite.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "transport/choice_address.h"
#include "transport/transport.h"

namespace kevre::transport {

// Whether nodes with these two addresses can talk: kUnsupported with cause and remedy, as the node `here` sees it, when not.
Result<void> have_common_transport(std::span<const std::byte> here, std::span<const std::byte> there);

class ChoiceTransport final : public Transport {
 public:
  struct Part {
    Kind kind;
    std::unique_ptr<Transport> transport;
  };
  // `facts` says all but the backends' addresses; `problem`: what is in the way of verbs here, for people.
  static Result<std::unique_ptr<Transport>> create(std::vector<Part> parts, NodeAddress facts, std::string problem);
  ~ChoiceTransport() override;

  int progress() override;
  bool arm() override;
  int wake_fd() const override { return epoll_ ? epoll_.get() : first().wake_fd(); }

  NodeId self() const override { return first().self(); }
  Address local_address() const override { return encode_address(here_); }
  std::string_view name() const override { return name_; }

  Result<void> connect(NodeId peer, std::span<const std::byte> address) override;
  Result<void> can_reach(std::span<const std::byte> address) const override;
  void disconnect(NodeId peer) override;
  Capabilities capabilities(NodeId peer) const override;
  void set_handler(Service service, Handler* handler) override;

  Result<void> send(NodeId to, Service service, std::span<const std::byte> header,
                    std::span<const std::byte> payload) override;
  Result<void> send(NodeId to, Service service, std::span<const std::byte> header, Buffer payload) override;
  Buffer buffer(size_t bytes) override { return first().buffer(bytes); }
  size_t queued_bytes(NodeId peer) const override;

  Result<RegionKey> register_region(std::span<std::byte> memory) override { return first().register_region(memory); }
  void deregister_region(const RegionKey& key) override { first().deregister_region(key); }
  Result<void> read(NodeId peer, RemoteAddress from, std::span<std::byte> to, Completion done) override;
  Result<void> write(NodeId peer, std::span<const std::byte> from, RemoteAddress to, Completion done) override;
  Result<void> fetch_add(NodeId peer, RemoteAddress at, uint64_t addend, Completion done) override;
  Result<void> compare_swap(NodeId peer, RemoteAddress at, uint64_t expected, uint64_t desired, Completion done) override;
  Result<void> drain_arrivals(std::function<void()> done) override { return first().drain_arrivals(std::move(done)); }

  Counters counters() const override;

 private:
  struct Route {
    Transport* via = nullptr;
    Kind kind = Kind::kUcx;
    std::string why;
  };

  ChoiceTransport(std::vector<Part> parts, NodeAddress here, std::string problem);
  Result<void> start();
  Transport& first() const { return *parts_.front().transport; }
  const Route* route_of(NodeId peer) const;
  Result<Transport*> via(NodeId peer) const;
  Transport* part_of(Kind kind) const;
  Result<Choice> choice_for(const NodeAddress& there) const;

  std::vector<Part> parts_;  // the better one first
  NodeAddress here_;
  const std::string problem_;
  std::string name_;  // "ucx", "verbs", or "verbs, ucx"
  UniqueFd epoll_;    // empty with one backend
  std::vector<Route> routes_;  // by NodeId
};

}  // namespace kevre::transport
