// SimTransport: one node of a SimNetwork (sim_network.h), made by SimNetwork::create().
#pragma once

#include <deque>

#include "base/fd.h"
#include "transport/buffer_pool.h"
#include "transport/sim/sim_network.h"

namespace kevre::transport::sim {

class SimTransport final : public Transport {
 public:
  SimTransport(SimNetwork* network, const Options& options, UniqueFd wake);
  ~SimTransport() override;

  int progress() override;
  bool arm() override;
  int wake_fd() const override { return wake_.get(); }

  NodeId self() const override { return options_.self; }
  Address local_address() const override;
  std::string_view name() const override { return "sim"; }
  Result<void> connect(NodeId peer, std::span<const std::byte> address) override;
  void disconnect(NodeId peer) override;
  Capabilities capabilities(NodeId peer) const override;
  void set_handler(Service service, Handler* handler) override;
  Result<void> send(NodeId to, Service service, std::span<const std::byte> header,
                    std::span<const std::byte> payload) override;
  Result<void> send(NodeId to, Service service, std::span<const std::byte> header, Buffer payload) override;
  Buffer buffer(size_t bytes) override { return pool_.take(bytes); }
  size_t queued_bytes(NodeId peer) const override;

  Result<RegionKey> register_region(std::span<std::byte> memory) override;
  void deregister_region(const RegionKey& key) override;
  Result<void> read(NodeId peer, RemoteAddress from, std::span<std::byte> to, Completion done) override;
  Result<void> write(NodeId peer, std::span<const std::byte> from, RemoteAddress to,
                     Completion done) override;
  Result<void> fetch_add(NodeId peer, RemoteAddress at, uint64_t addend, Completion done) override;
  Result<void> compare_swap(NodeId peer, RemoteAddress at, uint64_t expected, uint64_t desired,
                            Completion done) override;
  Result<void> drain_arrivals(std::function<void()> done) override;
  Counters counters() const override { return counters_; }

 private:
  friend class SimNetwork;
  using Event = SimNetwork::Event;
  struct Link {
    uint64_t own = 0;
    uint64_t remote = 0;  // 0 until the peer's first message
    size_t queued_bytes = 0;
    bool open = true;
    bool was_busy = false;
  };

  void put(Event event);  // from the network: due
  void sent(NodeId peer, uint64_t link,
            size_t n);  // from the network: delivered to the peer's inbox, or lost
  void signal();
  void handle(Event event);
  void handle_message(Event event);
  void deliver(const Event& event);
  void lose(NodeId peer, std::string why);
  Link* open_link(NodeId peer);
  using Act = std::function<uint64_t(std::span<std::byte>, std::vector<std::byte>*)>;
  struct Operation {  // one-sided, under way
    NodeId peer;
    uint64_t link = 0;
    std::span<std::byte> to;  // of a read
    Completion done;
  };
  Result<std::span<std::byte>> region_bytes(const RegionKey& key, uint64_t offset, size_t bytes) const;
  Result<void> one_sided(bool capable, uint64_t* counter, RemoteAddress at, size_t bytes, Act act,
                         Operation operation);
  void answered(Event event);
  int fail_operations();  // of links that are gone

  SimNetwork* const network_;
  const Options options_;
  UniqueFd wake_;
  BufferPool pool_;
  std::map<NodeId, Link> links_;
  std::map<NodeId, uint64_t> newest_dead_;    // incarnations up to here are over
  std::map<NodeId, std::deque<Event>> held_;  // arrived before connect()
  std::vector<NodeId> to_deliver_;
  std::deque<Event> inbox_;
  std::vector<NodeId> writable_;
  std::vector<std::pair<NodeId, std::string>> lost_;
  std::map<uint64_t, std::span<std::byte>> regions_;
  std::map<uint64_t, Operation> operations_;  // by number, which is the order they were asked for in
  uint64_t next_operation_ = 1;
  bool links_ended_ = false;  // operations may be without a link
  std::vector<std::function<void()>> drains_;
  uint64_t next_region_ = 1;
  std::array<Handler*, kServices> handlers_{};
  Counters counters_;
  bool in_progress_ = false;
};

}  // namespace kevre::transport::sim
