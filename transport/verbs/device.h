// The opened RDMA device of one transport: listener, protection domain, completion queue, shared receive
// queue, and every piece of memory that was registered with it.
//
// What the device can do is asked once (ibv_query_device_ex) and obeyed; how much memory may be registered
// follows from the memlock limit. Registering fails with an error that names the remedy.
//
// Owns: all verbs objects but the connections, which are destroyed before it. Threads: the transport's.
// Tested with a device only (label rdma), by the conformance suite.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "transport/transport.h"
#include "transport/verbs/probe.h"

namespace kevre::transport::verbs {

template <auto kDestroy>
struct Destroyer {
  template <class T>
  void operator()(T* object) const {
    kDestroy(object);
  }
};
template <class T, auto kDestroy>
using Owned = std::unique_ptr<T, Destroyer<kDestroy>>;

// Memory of our own, mapped and registered: not inherited by fork(), so that no child's copy can take its
// place.
class Slab {
 public:
  Slab() = default;
  Slab(std::byte* data, size_t size) : data_(data), size_(size) {}
  Slab(Slab&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  Slab& operator=(Slab&& other) noexcept;
  ~Slab();
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

struct DeviceLimits {
  bool atomics = false;
  uint8_t reads_in_flight = 1;    // of one connection, as the one who reads
  uint8_t reads_answered = 1;     // ... and as the one who is read
  uint32_t send_queue = 16;       // work requests of a connection
  uint32_t receive_buffers = 16;  // of kChunkBytes each, of all connections together
  uint64_t message_bytes = 0;     // of one work request
  uint64_t region_bytes = 0;
  size_t pool_bytes = 0;  // registered memory for message buffers
};

class OpenDevice {
 public:
  static Result<std::unique_ptr<OpenDevice>> open(const Options& options);
  ~OpenDevice();
  OpenDevice(const OpenDevice&) = delete;
  OpenDevice& operator=(const OpenDevice&) = delete;

  const DeviceLimits& limits() const { return limits_; }
  const Subnet& subnet() const { return subnet_; }
  uint16_t port() const { return port_; }
  ibv_context* context() const { return listener_->verbs; }
  rdma_event_channel* channel() const { return channel_.get(); }
  rdma_cm_id* listener() const { return listener_.get(); }
  ibv_pd* pd() const { return pd_.get(); }
  ibv_comp_channel* completions() const { return completions_.get(); }
  ibv_cq* cq() const { return cq_.get(); }
  ibv_srq* srq() const { return srq_.get(); }

  // The completion queue must have room for what all connections can complete at once.
  Result<void> make_room(uint32_t completions);
  void give_room_back(uint32_t completions) { completions_promised_ -= completions; }

  // Mapped, registered for local access; lives as long as the device.
  Result<std::span<std::byte>> new_slab(size_t bytes);
  Result<ibv_mr*> register_region(std::span<std::byte> memory);  // for peers
  bool deregister_region(uint64_t address, uint32_t rkey);
  // The local key of memory that lies within a slab or a region as a whole.
  std::optional<uint32_t> key_of(const std::byte* data, size_t bytes) const;

 private:
  struct Registration {
    Owned<ibv_mr, ibv_dereg_mr> mr;
    bool region = false;
  };
  OpenDevice() = default;
  Result<void> bind(const Options& options, const Choice& choice);
  Result<void> ask_limits();
  Result<void> create_queues();
  Result<ibv_mr*> add(std::span<std::byte> memory, int access, bool region);

  DeviceLimits limits_;
  Subnet subnet_;
  uint16_t port_ = 0;
  std::string name_;
  Owned<rdma_event_channel, rdma_destroy_event_channel> channel_;
  Owned<rdma_cm_id, rdma_destroy_id> listener_;
  Owned<ibv_pd, ibv_dealloc_pd> pd_;
  std::vector<Slab> slabs_;
  std::multimap<uintptr_t, Registration> registered_;  // by first address; gone before the slabs are unmapped
  Owned<ibv_comp_channel, ibv_destroy_comp_channel> completions_;
  Owned<ibv_cq, ibv_destroy_cq> cq_;
  Owned<ibv_srq, ibv_destroy_srq> srq_;
  uint32_t completions_promised_ = 0;
  uint32_t completions_max_ = 0;
};

Result<void> set_nonblocking(int fd);

}  // namespace kevre::transport::verbs
