// SimNetwork: transports in one process over a simulated network, for testing what is built on a Transport.
//
// Everything that happens follows from the seed and the calls: a message takes a random time, never overtakes
// another of the same pair, often overtakes one of another pair. Time is virtual and moves only in advance().
// Nothing is delivered by itself: what is due lies in the receiver's inbox until its progress(), and makes
// its wake_fd() readable. A one-sided operation acts on the peer's memory when it is due, in line with the
// messages to that peer, whether or not the peer has looked into its inbox. A cut connection loses what was
// on its way (a random tail of it), and both ends hear of it.
//
// Owns: what is on its way. The transports refer to the network, which outlives them.
// Threads: one. Tested in tests/transport/conformance_test.cc and sim_test.cc.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/random.h"
#include "transport/transport.h"

namespace kevre::transport::sim {

struct SimOptions {
  uint64_t seed = 1;
  Nanos delay_min = 1'000;
  Nanos delay_max = 50'000;
  Nanos per_kib = 100;  // what size adds to the delay
  Capabilities capabilities{false, false, false, "sim"};
};

class SimTransport;

class SimNetwork {
 public:
  explicit SimNetwork(const SimOptions& options) : options_(options), random_(options.seed) {}
  ~SimNetwork();
  SimNetwork(const SimNetwork&) = delete;
  SimNetwork& operator=(const SimNetwork&) = delete;

  // kExists while a transport with that NodeId lives.
  Result<std::unique_ptr<Transport>> create(const Options& options);

  Nanos now() const { return now_; }
  // To the next event, if there is one: true. What is due then is deliverable.
  bool advance();
  void advance_by(Nanos duration);
  bool idle() const { return events_.empty(); }

  void cut(NodeId a, NodeId b);                 // breaks the connection; both ends are told
  void stall(NodeId from, NodeId to, bool on);  // holds back everything of that direction
  void set_capabilities(const Capabilities& capabilities) { options_.capabilities = capabilities; }

 private:
  friend class SimTransport;
  struct Event {
    // A request acts on the memory of `to` when it is due, without software there; the answer goes back.
    enum class Kind : uint8_t { kMessage, kLost, kRequest, kAnswer } kind = Kind::kMessage;
    NodeId from, to;
    uint64_t from_link = 0, to_link = 0;
    uint64_t tag = 0;
    Service service = Service::kTest;
    std::vector<std::byte> header, payload;
    std::string text;        // kLost: why
    uint64_t operation = 0;  // kRequest, kAnswer: whose; payload: what is written, what was read
    RegionKey key;
    uint64_t offset = 0;
    size_t wanted = 0;  // bytes of the region
    std::function<uint64_t(std::span<std::byte>, std::vector<std::byte>*)>
        act;                               // kRequest; fills what was read
    Result<uint64_t> value = uint64_t{0};  // kAnswer
    size_t bytes() const { return header.size() + payload.size(); }
  };
  using Pair = std::pair<NodeId, NodeId>;

  void post(Event event);
  void deliver_due();
  void execute(Event request);
  void refuse(const Event& event, std::string why);
  Nanos delay(size_t bytes);
  SimTransport* transport_of(NodeId node) const;

  SimOptions options_;
  Random random_;
  Nanos now_ = 0;
  uint64_t serial_ = 0;
  uint64_t last_link_ = 0;
  std::map<std::pair<Nanos, uint64_t>, Event> events_;  // by due time, then by order of sending
  std::map<Pair, Nanos> last_due_;                      // nothing overtakes within a pair
  std::map<Pair, std::vector<Event>> stalled_;
  std::unordered_map<NodeId, SimTransport*> transports_;
};

}  // namespace kevre::transport::sim
