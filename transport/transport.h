// Transport: moves bytes between nodes. The one interface over every backend (verbs, ucx, sim); which one serves a peer is
// chosen at run time (choice.h) and nothing above this file knows it.
//
// Model
//   * A node owns one Transport. Peers are named by NodeId and reached by an opaque Address that the peer's own
//     transport printed (local_address()) and that the cluster layer carried over an authenticated channel.
//   * Messages: per peer in order, exactly once, or the peer is reported lost. No order between different peers.
//     A message is {service, header (at most kHeaderBytesMax, a fixed-layout struct of the service), payload}.
//   * Back-pressure: send() answers Errc::kBusy and takes nothing when more than Options::peer_queue_bytes_max would wait
//     for that peer; Handler::on_writable follows when there is room. Nothing is dropped silently.
//   * A peer lost (connection broken, error on its endpoint, disconnect() by us): Handler::on_peer_lost once, then
//     send() answers Errc::kPeerLost until connect() is called again. What had been sent may or may not have arrived.
//   * One-sided operations exist only where capabilities(peer) says so; otherwise they answer Errc::kUnsupported. They
//     stand in one line with the messages to the same peer: when the peer's memory is read, written or changed, every
//     message that was sent to it before has arrived there (not: has been handed up there).
//   * drain_arrivals() turns that order into knowledge: after memory was changed and drain_arrivals() has answered, the
//     owner of the memory has been handed every message that was sent in front of a read that saw the old contents.
//   * Every message carries the cluster tag (from the cluster key); one with another tag, a bad length or an unknown
//     sender is counted and dropped, never passed up: the ports of a backend are open to the network.
//
// Threads: every call and every handler on the owning thread (the loop's). Handlers run inside progress() and may call
// send(), connect(), disconnect(); they may not call progress().
// Memory: payloads given to send() by span are copied before it returns; a Buffer is moved, not copied, and goes back to
// the pool when it was sent. What a handler is given is valid only during the call.
// Tested in tests/transport/: one conformance suite over every backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.h"
#include "base/ids.h"
#include "base/result.h"

namespace kevre::transport {

// Who a message is for. A service registers one Handler; numbers are part of the wire format.
enum class Service : uint8_t { kCluster = 1, kDsm = 2, kIpc = 3, kLaunch = 4, kBench = 5, kTest = 6 };
inline constexpr size_t kServices = 7;

inline constexpr size_t kHeaderBytesMax = 256;
inline constexpr size_t kPayloadBytesMax = size_t{64} << 20;

using Address = std::vector<std::byte>;  // opaque; at most kAddressBytesMax
inline constexpr size_t kAddressBytesMax = 4096;

struct Capabilities {  // the texts are good until the next connect() or disconnect()
  bool read = false;    // one-sided read without software at the peer
  bool write = false;   // one-sided write
  bool atomic = false;  // 64-bit compare-and-swap, fetch-and-add
  std::string_view via = "";  // what carries this peer's messages, for people: "tcp", "shm", "sim", "rc"
  std::string_view backend = "";  // "ucx", "verbs", "sim"
  std::string_view why = "";  // why a better backend was not taken, with the remedy; empty: there is no better one
};

// A message buffer from the pool; empty after it was moved away.
class Buffer {
 public:
  using Release = void (*)(void* pool, std::byte* data, size_t capacity);
  Buffer() = default;
  Buffer(std::byte* data, size_t size, size_t capacity, void* pool, Release release)
      : data_(data), size_(size), capacity_(capacity), pool_(pool), release_(release) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      free();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
      capacity_ = std::exchange(other.capacity_, 0);
      pool_ = other.pool_;
      release_ = other.release_;
    }
    return *this;
  }
  ~Buffer() { free(); }
  std::span<std::byte> bytes() { return {data_, size_}; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }
  const void* pool() const { return pool_; }  // whose memory it is
  void shrink(size_t size) { size_ = size < size_ ? size : size_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  void free() {
    if (data_ != nullptr) {
      release_(pool_, data_, capacity_);
      data_ = nullptr;
    }
  }
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
  void* pool_ = nullptr;
  Release release_ = nullptr;
};

class Handler {
 public:
  virtual ~Handler() = default;
  virtual void on_message(NodeId from, std::span<const std::byte> header, std::span<const std::byte> payload) = 0;
  virtual void on_peer_lost(NodeId peer, const Error& why) = 0;
  virtual void on_writable(NodeId /*peer*/) {}
};

// One-sided operations (capability): a region that peers may read, write or change atomically.
struct RegionKey {
  std::array<std::byte, 64> bytes{};  // opaque; sent to peers by the service that owns the region
  uint16_t size = 0;
};
struct RemoteAddress {
  const RegionKey* key = nullptr;
  uint64_t offset = 0;  // bytes from the start of the region
};
using Completion = std::function<void(const Result<uint64_t>& value)>;  // atomics: the old value; read, write: 0

struct Counters {  // since start; per transport
  uint64_t messages_sent = 0, messages_received = 0;
  uint64_t bytes_sent = 0, bytes_received = 0;
  uint64_t rejected = 0;  // bad tag, length, sender or order
  uint64_t one_sided_reads = 0, one_sided_writes = 0, one_sided_atomics = 0;
};

class Transport : public Poller {
 public:
  virtual NodeId self() const = 0;
  virtual Address local_address() const = 0;
  virtual std::string_view name() const = 0;  // "ucx", "sim", "verbs"

  // Starts to reach `peer`; messages may be sent at once. Connecting to a peer that is connected already is kExists.
  virtual Result<void> connect(NodeId peer, std::span<const std::byte> address) = 0;
  // Whether connect() could choose a backend for that address: kUnsupported with the remedy when nothing is common.
  virtual Result<void> can_reach(std::span<const std::byte> /*address*/) const { return {}; }
  // Forgets a peer (it left, or the view says that it is lost). No on_peer_lost follows. Unknown peers are ignored.
  virtual void disconnect(NodeId peer) = 0;
  virtual Capabilities capabilities(NodeId peer) const = 0;

  // At most one handler per service, which outlives the transport or is taken away with nullptr.
  virtual void set_handler(Service service, Handler* handler) = 0;

  virtual Result<void> send(NodeId to, Service service, std::span<const std::byte> header,
                            std::span<const std::byte> payload) = 0;
  virtual Result<void> send(NodeId to, Service service, std::span<const std::byte> header, Buffer payload) = 0;
  virtual Buffer buffer(size_t bytes) = 0;  // at most kPayloadBytesMax; contents undefined
  virtual size_t queued_bytes(NodeId peer) const = 0;

  virtual Result<RegionKey> register_region(std::span<std::byte> memory);
  virtual void deregister_region(const RegionKey& key);
  virtual Result<void> read(NodeId peer, RemoteAddress from, std::span<std::byte> to, Completion done);
  virtual Result<void> write(NodeId peer, std::span<const std::byte> from, RemoteAddress to, Completion done);
  virtual Result<void> fetch_add(NodeId peer, RemoteAddress at, uint64_t addend, Completion done);
  virtual Result<void> compare_swap(NodeId peer, RemoteAddress at, uint64_t expected, uint64_t desired,
                                    Completion done);

  // Calls `done`, in a later progress(), once every message that has arrived at this node by now was handed up.
  // kUnsupported where peers cannot operate on memory here: then there is nothing to wait for.
  virtual Result<void> drain_arrivals(std::function<void()> done);

  virtual Counters counters() const = 0;
};

struct Options {
  NodeId self;
  std::string kind = "auto";         // auto | ucx | verbs; auto: all that are here, and one is chosen for each peer
  std::string ucx_tls;               // empty: UCX chooses (tcp, shared memory); else as UCX_TLS
  std::string bind_address;          // IPv4 address whose interface the backend uses; empty: any
  uint64_t cluster_tag = 0;          // from the cluster key
  size_t peer_queue_bytes_max = size_t{128} << 20;
};

// kUnsupported with the remedy when `kind` is not to be had.
Result<std::unique_ptr<Transport>> create(const Options& options);

}  // namespace kevre::transport
