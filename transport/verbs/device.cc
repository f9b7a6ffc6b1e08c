#include "transport/verbs/device.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "transport/verbs/flow.h"

namespace kevre::transport::verbs {
namespace {

constexpr int kBacklog = 128;
constexpr uint32_t kCompletionsAtStart = 1024;
constexpr uint32_t kSendQueueMax = 128;
constexpr uint32_t kReceiveBuffersMax = 4096;
constexpr uint32_t kReceiveBuffersMin = 16;
constexpr int kReadsInFlightMax = 16;
constexpr size_t kPoolBytesMax = size_t{256} << 20;
constexpr size_t kPageMask = kPageBytes - 1;

}  // namespace

Slab& Slab::operator=(Slab&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Slab::~Slab() {
  if (data_ != nullptr) {
    ::munmap(data_, size_);
  }
}

Result<void> set_nonblocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    return fail_errno("making a descriptor of the RDMA device non-blocking");
  }
  return {};
}

Result<std::unique_ptr<OpenDevice>> OpenDevice::open(const Options& options) {
  const Probe found = probe();
  KEVRE_ASSIGN(const Choice choice, choose(found, options.bind_address));
  std::unique_ptr<OpenDevice> device(new OpenDevice);
  KEVRE_TRY(device->bind(options, choice));
  KEVRE_TRY(device->ask_limits());
  KEVRE_TRY(device->create_queues());
  return device;
}

Result<void> OpenDevice::bind(const Options& /*options*/, const Choice& choice) {
  name_ = choice.device->name;
  subnet_ = choice.port->subnet;
  channel_.reset(rdma_create_event_channel());
  if (channel_ == nullptr) {
    return fail_errno("rdma_create_event_channel");
  }
  KEVRE_TRY(set_nonblocking(channel_->fd));
  rdma_cm_id* id = nullptr;
  if (rdma_create_id(channel_.get(), &id, nullptr, RDMA_PS_TCP) != 0) {
    return fail_errno("rdma_create_id");
  }
  listener_.reset(id);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(subnet_.address);
  if (rdma_bind_addr(id, reinterpret_cast<sockaddr*>(&address)) != 0 || id->verbs == nullptr) {
    return fail_errno("binding to {} of device {}", subnet_.text(), name_);
  }
  if (rdma_listen(id, kBacklog) != 0) {
    return fail_errno("listening on {} of device {}", subnet_.text(), name_);
  }
  port_ = ntohs(rdma_get_src_port(id));
  return {};
}

Result<void> OpenDevice::ask_limits() {
  ibv_device_attr_ex all{};
  ibv_port_attr port{};
  int failed = ibv_query_device_ex(context(), nullptr, &all);
  failed = failed != 0 ? failed : ibv_query_port(context(), listener_->port_num, &port);
  if (failed != 0) {
    return fail_errno_text(failed, fmt::format("asking device {} what it can do", name_));
  }
  const ibv_device_attr& device = all.orig_attr;
  limits_.atomics = device.atomic_cap != IBV_ATOMIC_NONE;
  limits_.reads_in_flight =
      static_cast<uint8_t>(std::clamp(device.max_qp_init_rd_atom, 0, kReadsInFlightMax));
  limits_.reads_answered = static_cast<uint8_t>(std::clamp(device.max_qp_rd_atom, 0, kReadsInFlightMax));
  limits_.send_queue = std::min(kSendQueueMax, static_cast<uint32_t>(std::max(device.max_qp_wr, 0)));
  limits_.message_bytes = port.max_msg_sz;
  limits_.region_bytes = device.max_mr_size;
  completions_max_ = static_cast<uint32_t>(std::max(device.max_cqe, 0));
  const Memlock lock = memlock();
  const uint64_t quarter = lock.limit_bytes / 4;
  limits_.pool_bytes = lock.unlimited ? kPoolBytesMax : std::min<uint64_t>(quarter, kPoolBytesMax);
  const uint64_t buffers = lock.unlimited ? kReceiveBuffersMax : quarter / kChunkBytes;
  limits_.receive_buffers = static_cast<uint32_t>(std::min<uint64_t>(
      {buffers, kReceiveBuffersMax, static_cast<uint64_t>(std::max(device.max_srq_wr, 0))}));
  if (limits_.receive_buffers < kReceiveBuffersMin || limits_.send_queue < 16 ||
      limits_.reads_in_flight == 0 || limits_.reads_answered == 0 || limits_.message_bytes < kChunkBytes) {
    return fail(
        Errc::kUnsupported,
        "device {} is too small for kevre: {} receive buffers, {} requests a queue, {} reads in flight",
        name_, limits_.receive_buffers, limits_.send_queue, limits_.reads_in_flight);
  }
  return {};
}

Result<void> OpenDevice::create_queues() {
  pd_.reset(ibv_alloc_pd(context()));
  if (pd_ == nullptr) {
    return fail_errno("ibv_alloc_pd on device {}", name_);
  }
  completions_.reset(ibv_create_comp_channel(context()));
  if (completions_ == nullptr) {
    return fail_errno("ibv_create_comp_channel on device {}", name_);
  }
  KEVRE_TRY(set_nonblocking(completions_->fd));
  KEVRE_TRY(set_nonblocking(context()->async_fd));
  const uint32_t at_start = std::min(kCompletionsAtStart, completions_max_);
  cq_.reset(ibv_create_cq(context(), static_cast<int>(at_start), nullptr, completions_.get(), 0));
  if (cq_ == nullptr) {
    return fail_errno("ibv_create_cq on device {} (ulimit -l unlimited may help)", name_);
  }
  ibv_srq_init_attr srq{};
  srq.attr.max_wr = limits_.receive_buffers;
  srq.attr.max_sge = 1;
  srq_.reset(ibv_create_srq(pd_.get(), &srq));
  if (srq_ == nullptr) {
    return fail_errno("ibv_create_srq on device {} (ulimit -l unlimited may help)", name_);
  }
  return {};
}

OpenDevice::~OpenDevice() = default;

Result<void> OpenDevice::make_room(uint32_t completions) {
  const uint32_t needed = completions_promised_ + completions;
  if (needed > completions_max_) {
    return fail(Errc::kExhausted, "the completion queue of device {} has room for {} only: too many peers",
                name_, completions_max_);
  }
  if (needed > static_cast<uint32_t>(cq_->cqe)) {
    const uint32_t wanted = std::min(completions_max_, std::max(needed, 2 * static_cast<uint32_t>(cq_->cqe)));
    if (const int failed = ibv_resize_cq(cq_.get(), static_cast<int>(wanted)); failed != 0) {
      return fail_errno_text(failed, fmt::format("a completion queue of {} on device {}", wanted, name_));
    }
  }
  completions_promised_ = needed;
  return {};
}

Result<ibv_mr*> OpenDevice::add(std::span<std::byte> memory, int access, bool region) {
  if (memory.empty() || memory.size() > limits_.region_bytes) {
    return fail(Errc::kUnsupported, "device {} registers 1 to {} bytes at once, not {}", name_,
                limits_.region_bytes, memory.size());
  }
  Owned<ibv_mr, ibv_dereg_mr> mr(ibv_reg_mr(pd_.get(), memory.data(), memory.size(), access));
  if (mr == nullptr && (errno == ENOMEM || errno == EAGAIN || errno == EPERM)) {
    return fail(Errc::kExhausted,
                "cannot register {} KiB with device {}: the memlock limit is {} KiB; ulimit -l unlimited, or "
                "LimitMEMLOCK=infinity in the service",
                memory.size() / 1024, name_, memlock().limit_bytes / 1024);
  }
  if (mr == nullptr) {
    return fail_errno("registering {} KiB with device {}", memory.size() / 1024, name_);
  }
  ibv_mr* const raw = mr.get();
  registered_.emplace(reinterpret_cast<uintptr_t>(memory.data()), Registration{std::move(mr), region});
  return raw;
}

Result<std::span<std::byte>> OpenDevice::new_slab(size_t bytes) {
  bytes = (bytes + kPageMask) & ~kPageMask;
  void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    return fail_errno("mapping {} KiB", bytes / 1024);
  }
  Slab slab(static_cast<std::byte*>(mapped), bytes);
  ::madvise(mapped, bytes, MADV_DONTFORK);
  const std::span<std::byte> memory(slab.data(), bytes);
  KEVRE_TRY(add(memory, IBV_ACCESS_LOCAL_WRITE, false));
  slabs_.push_back(std::move(slab));
  return memory;
}

Result<ibv_mr*> OpenDevice::register_region(std::span<std::byte> memory) {
  int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
  access |= limits_.atomics ? IBV_ACCESS_REMOTE_ATOMIC : 0;
  return add(memory, access, true);
}

bool OpenDevice::deregister_region(uint64_t address, uint32_t rkey) {
  auto [first, last] = registered_.equal_range(address);
  for (; first != last; ++first) {
    if (first->second.region && first->second.mr->rkey == rkey) {
      registered_.erase(first);
      return true;
    }
  }
  return false;
}

std::optional<uint32_t> OpenDevice::key_of(const std::byte* data, size_t bytes) const {
  const auto at = reinterpret_cast<uintptr_t>(data);
  auto found = registered_.upper_bound(at);
  if (found == registered_.begin()) {
    return std::nullopt;
  }
  --found;
  const size_t offset = at - found->first;
  const size_t length = found->second.mr->length;
  if (offset > length || bytes > length - offset) {
    return std::nullopt;
  }
  return found->second.mr->lkey;
}

}  // namespace kevre::transport::verbs
