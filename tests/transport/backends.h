// The backends under the conformance suite: each makes a small cluster of transports in this process.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "base/clock.h"
#include "transport/transport.h"

namespace kevre::transport::testing {

// A set of transports, nodes 1..n, not yet connected. step() lets every one make progress (and simulated time
// pass).
class Cluster {
 public:
  virtual ~Cluster() = default;
  virtual size_t size() const = 0;
  virtual Transport& node(size_t index) = 0;  // 0..n-1; has NodeId index + 1
  virtual void step() = 0;
  virtual void stop(size_t index) = 0;  // destroys that transport
  virtual std::unique_ptr<Transport> make_another(
      const Options& options) = 0;  // the caller makes it progress
  void connect_all();
  virtual int patience() const { return 1; }  // multiplies deadlines: an emulated machine is slow
  // Steps until `condition` or `deadline_ns` passed; the condition's last value.
  bool until(const std::function<bool()>& condition, Nanos deadline_ns = 20 * kSecond);
};

struct Backend {
  std::string name;
  std::string via;  // what capabilities() must say
  std::function<std::unique_ptr<Cluster>(size_t nodes, Options options)> make;
  bool one_sided = false;
};

std::vector<Backend> backends();  // those that this machine can run; says why one is missing

// For failure messages.
inline void PrintTo(const Backend& backend, std::ostream* out) { *out << backend.name; }

// Records what a transport hands up.
struct Message {
  NodeId from;
  std::vector<std::byte> header, payload;
};
class Recorder : public Handler {
 public:
  void on_message(NodeId from, std::span<const std::byte> header,
                  std::span<const std::byte> payload) override;
  void on_peer_lost(NodeId peer, const Error& why) override;
  void on_writable(NodeId peer) override;

  bool keep = true;  // false: only `also` sees the messages
  std::vector<Message> messages;
  std::vector<std::pair<NodeId, std::string>> lost;
  std::vector<NodeId> writable;
  std::function<void(NodeId, std::span<const std::byte>, std::span<const std::byte>)> also;
};

// Bytes that differ by seed and position, so that a wrong, shifted or mixed payload is seen.
std::vector<std::byte> pattern(size_t bytes, uint64_t seed);
std::span<const std::byte> as_bytes(const std::string& text);

}  // namespace kevre::transport::testing
