#include "bench/raw_verbs.h"

#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <poll.h>
#include <rdma/rdma_cma.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/clock.h"

namespace kevre::bench {
namespace {

constexpr uint32_t kSlots = 32;  // receive buffers; more than a window and its answers
constexpr uint32_t kSendsMax = 32;
constexpr size_t kSlotBytes = sizeof(Head) + kBytesMax;
constexpr size_t kTargetBytes = kBytesMax * kWindowMax;
enum : uint64_t { kReceived = 0, kSent = 1, kOneSided = 2 };  // wr_id: kind << 32 | slot

struct Remote {  // what each side tells of its memory
  uint64_t address = 0;
  uint32_t key = 0;
  uint32_t atomics = 0;
};

template <class T, int (*kRelease)(T*)>
struct Releaser {
  void operator()(T* thing) const { kRelease(thing); }
};
struct ChannelReleaser {
  void operator()(rdma_event_channel* channel) const { rdma_destroy_event_channel(channel); }
};
struct IdReleaser {
  void operator()(rdma_cm_id* id) const {
    if (id->qp != nullptr) {
      rdma_destroy_qp(id);
    }
    rdma_destroy_id(id);
  }
};

class Verbs final : public Side {
 public:
  ~Verbs() override {  // what was answered last goes out first
    const Nanos deadline = now_ns() + kSecond;
    while (sends_ > 0 && completions_ != nullptr && now_ns() < deadline && wait(false)) {
    }
  }
  Result<void> listen(const Options& options, int socket);
  Result<void> call(const Options& options, int socket);

  Result<void> request(const Head& head, size_t bytes) override { return post_message(head, bytes); }
  Result<void> wait(bool sleeping) override;
  bool can(Verb verb) const override { return verb != Verb::kFetchAdd || remote_.atomics != 0; }
  Result<void> start(Verb verb, size_t bytes, uint32_t slot) override;
  std::string about() const override { return "bare verbs"; }

 private:
  Result<rdma_cm_id*> event(rdma_cm_event_type wanted, Nanos patience);
  Result<void> open(rdma_cm_id* id);
  Result<void> exchange(int socket, bool server);
  Result<void> post_receive(uint32_t slot);
  Result<void> post_message(const Head& head, size_t bytes);
  Result<void> completed(const ibv_wc& completion);
  std::byte* receive_slot(uint32_t slot) { return memory_.data() + slot * kSlotBytes; }
  // RC completes in order, so what was sent kSendsMax ago is done.
  std::byte* send_area(uint64_t serial) { return memory_.data() + (kSlots + serial % kSendsMax) * kSlotBytes; }
  std::byte* target() { return memory_.data() + (kSlots + kSendsMax) * kSlotBytes; }

  std::vector<std::byte> memory_ = std::vector<std::byte>((kSlots + kSendsMax) * kSlotBytes + kTargetBytes);
  std::unique_ptr<rdma_event_channel, ChannelReleaser> events_;
  std::unique_ptr<rdma_cm_id, IdReleaser> listener_;
  std::unique_ptr<ibv_comp_channel, Releaser<ibv_comp_channel, ibv_destroy_comp_channel>> sleeper_;
  std::unique_ptr<ibv_cq, Releaser<ibv_cq, ibv_destroy_cq>> completions_;
  std::unique_ptr<ibv_pd, Releaser<ibv_pd, ibv_dealloc_pd>> domain_;
  std::unique_ptr<ibv_mr, Releaser<ibv_mr, ibv_dereg_mr>> region_;
  std::unique_ptr<rdma_cm_id, IdReleaser> id_;  // its queue pair goes before what it uses
  Remote remote_;
  uint8_t reads_in_flight_ = 1;
  bool atomics_ = false;
  uint32_t sends_ = 0;  // posted, not completed; also reads and atomics
  uint64_t serial_ = 0;
};

Result<rdma_cm_id*> Verbs::event(rdma_cm_event_type wanted, Nanos patience) {
  pollfd waiting{events_->fd, POLLIN, 0};
  if (::poll(&waiting, 1, static_cast<int>(patience / kMillisecond)) != 1) {
    return fail(Errc::kTimedOut, "raw verbs: waiting for {}", rdma_event_str(wanted));
  }
  rdma_cm_event* got = nullptr;
  if (rdma_get_cm_event(events_.get(), &got) != 0) {
    return fail_errno("raw verbs: rdma_get_cm_event");
  }
  const rdma_cm_event_type type = got->event;
  const int status = got->status;
  rdma_cm_id* const id = got->id;
  rdma_ack_cm_event(got);
  if (type != wanted) {
    return fail(Errc::kSystem, "raw verbs: {} ({}) instead of {}", rdma_event_str(type), status, rdma_event_str(wanted));
  }
  return id;
}

Result<void> Verbs::open(rdma_cm_id* id) {
  ibv_context* const device = id->verbs;
  ibv_device_attr attributes{};
  if (device == nullptr || ibv_query_device(device, &attributes) != 0) {
    return fail(Errc::kUnsupported, "raw verbs: no device");
  }
  reads_in_flight_ = static_cast<uint8_t>(
      std::clamp(std::min(attributes.max_qp_rd_atom, attributes.max_qp_init_rd_atom), 1, static_cast<int>(kWindowMax)));
  atomics_ = attributes.atomic_cap != IBV_ATOMIC_NONE;
  sleeper_.reset(ibv_create_comp_channel(device));
  domain_.reset(ibv_alloc_pd(device));
  completions_.reset(sleeper_ == nullptr
                         ? nullptr
                         : ibv_create_cq(device, static_cast<int>(kSlots + kSendsMax), nullptr, sleeper_.get(), 0));
  if (domain_ == nullptr || completions_ == nullptr) {
    return fail_errno("raw verbs: protection domain or completion queue");
  }
  int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ;
  access |= atomics_ ? IBV_ACCESS_REMOTE_ATOMIC : 0;
  region_.reset(ibv_reg_mr(domain_.get(), memory_.data(), memory_.size(), static_cast<unsigned>(access)));
  if (region_ == nullptr) {
    return fail_errno("raw verbs: registering {} KiB (ulimit -l)", memory_.size() >> 10);
  }
  ibv_qp_init_attr pair{};
  pair.send_cq = completions_.get();
  pair.recv_cq = completions_.get();
  pair.qp_type = IBV_QPT_RC;
  pair.cap.max_send_wr = kSendsMax;
  pair.cap.max_recv_wr = kSlots;
  pair.cap.max_send_sge = 2;
  pair.cap.max_recv_sge = 1;
  pair.cap.max_inline_data = 64;
  if (rdma_create_qp(id, domain_.get(), &pair) != 0) {
    return fail_errno("raw verbs: rdma_create_qp");
  }
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    KEVRE_TRY(post_receive(slot));
  }
  return {};
}

Result<void> Verbs::exchange(int socket, bool server) {
  const Remote mine{reinterpret_cast<uint64_t>(target()), region_->rkey, atomics_ ? 1u : 0u};
  if (server) {
    KEVRE_TRY(give(socket, &mine, sizeof mine));
  }
  KEVRE_ASSIGN(const std::vector<std::byte> theirs, take(socket, sizeof remote_));
  if (theirs.size() != sizeof remote_) {
    return fail(Errc::kCorrupt, "raw verbs: the other side is of another version");
  }
  std::memcpy(&remote_, theirs.data(), sizeof remote_);
  return server ? Result<void>{} : give(socket, &mine, sizeof mine);
}

Result<sockaddr_in> address_of(const std::string& text) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  if (::inet_pton(AF_INET, text.c_str(), &address.sin_addr) != 1) {
    return fail(Errc::kInvalid, "raw verbs: '{}' is not the IPv4 address of an RDMA device", text);
  }
  return address;
}

rdma_conn_param parameters(uint8_t reads) {
  rdma_conn_param parameters{};
  parameters.responder_resources = reads;
  parameters.initiator_depth = reads;
  parameters.retry_count = 7;
  parameters.rnr_retry_count = 7;
  return parameters;
}

Result<void> Verbs::listen(const Options& options, int socket) {
  events_.reset(rdma_create_event_channel());
  KEVRE_ASSIGN(sockaddr_in address, address_of(options.bind_address));
  rdma_cm_id* id = nullptr;
  if (events_ == nullptr || rdma_create_id(events_.get(), &id, nullptr, RDMA_PS_TCP) != 0) {
    return fail_errno("raw verbs: rdma_create_id");
  }
  listener_.reset(id);
  if (rdma_bind_addr(id, reinterpret_cast<sockaddr*>(&address)) != 0 || rdma_listen(id, 1) != 0) {
    return fail_errno("raw verbs: listening on {}", options.bind_address);
  }
  address.sin_port = rdma_get_src_port(id);
  KEVRE_TRY(give(socket, &address, sizeof address));
  KEVRE_ASSIGN(rdma_cm_id* const caller, event(RDMA_CM_EVENT_CONNECT_REQUEST, options.patience));
  id_.reset(caller);
  KEVRE_TRY(open(caller));
  rdma_conn_param answer = parameters(reads_in_flight_);
  if (rdma_accept(caller, &answer) != 0) {
    return fail_errno("raw verbs: rdma_accept");
  }
  KEVRE_TRY(event(RDMA_CM_EVENT_ESTABLISHED, options.patience));
  return exchange(socket, true);
}

Result<void> Verbs::call(const Options& options, int socket) {
  events_.reset(rdma_create_event_channel());
  sockaddr_in address{};
  KEVRE_ASSIGN(const std::vector<std::byte> theirs, take(socket, sizeof address));
  rdma_cm_id* id = nullptr;
  if (events_ == nullptr || theirs.size() != sizeof address || rdma_create_id(events_.get(), &id, nullptr, RDMA_PS_TCP) != 0) {
    return fail_errno("raw verbs: rdma_create_id");
  }
  id_.reset(id);
  std::memcpy(&address, theirs.data(), sizeof address);
  if (rdma_resolve_addr(id, nullptr, reinterpret_cast<sockaddr*>(&address), 2000) != 0) {
    return fail_errno("raw verbs: rdma_resolve_addr");
  }
  KEVRE_TRY(event(RDMA_CM_EVENT_ADDR_RESOLVED, options.patience));
  if (rdma_resolve_route(id, 2000) != 0) {
    return fail_errno("raw verbs: rdma_resolve_route");
  }
  KEVRE_TRY(event(RDMA_CM_EVENT_ROUTE_RESOLVED, options.patience));
  KEVRE_TRY(open(id));
  rdma_conn_param wish = parameters(reads_in_flight_);
  if (rdma_connect(id, &wish) != 0) {
    return fail_errno("raw verbs: rdma_connect");
  }
  KEVRE_TRY(event(RDMA_CM_EVENT_ESTABLISHED, options.patience));
  return exchange(socket, false);
}

Result<void> Verbs::post_receive(uint32_t slot) {
  ibv_sge place{reinterpret_cast<uint64_t>(receive_slot(slot)), static_cast<uint32_t>(kSlotBytes), region_->lkey};
  ibv_recv_wr work{};
  work.wr_id = slot;
  work.sg_list = &place;
  work.num_sge = 1;
  ibv_recv_wr* bad = nullptr;
  const int failed = ibv_post_recv(id_->qp, &work, &bad);
  return failed == 0 ? Result<void>{} : fail_errno_text(failed, "raw verbs: ibv_post_recv");
}

Result<void> Verbs::post_message(const Head& head, size_t bytes) {
  while (sends_ >= kSendsMax) {
    KEVRE_TRY(wait(false));
  }
  if (bytes > kBytesMax) {
    return fail(Errc::kInvalid, "raw verbs: {} bytes", bytes);
  }
  std::byte* const area = send_area(serial_++);
  std::memcpy(area, &head, sizeof head);
  ibv_sge place{reinterpret_cast<uint64_t>(area), static_cast<uint32_t>(sizeof head + bytes), region_->lkey};
  ibv_send_wr work{};
  work.wr_id = kSent << 32;
  work.sg_list = &place;
  work.num_sge = 1;
  work.opcode = IBV_WR_SEND;
  work.send_flags = IBV_SEND_SIGNALED | (place.length <= 64 ? static_cast<unsigned>(IBV_SEND_INLINE) : 0u);
  ibv_send_wr* bad = nullptr;
  if (const int failed = ibv_post_send(id_->qp, &work, &bad); failed != 0) {
    return fail_errno_text(failed, "raw verbs: ibv_post_send");
  }
  ++sends_;
  return {};
}

Result<void> Verbs::start(Verb verb, size_t bytes, uint32_t slot) {
  const bool read = verb == Verb::kRead;
  const size_t offset = slot * kBytesMax;
  ibv_sge place{reinterpret_cast<uint64_t>(target() + offset), static_cast<uint32_t>(read ? bytes : 8), region_->lkey};
  ibv_send_wr work{};
  work.wr_id = kOneSided << 32;
  work.sg_list = &place;
  work.num_sge = 1;
  work.opcode = read ? IBV_WR_RDMA_READ : IBV_WR_ATOMIC_FETCH_AND_ADD;
  work.send_flags = IBV_SEND_SIGNALED;
  if (read) {
    work.wr.rdma.remote_addr = remote_.address + offset;
    work.wr.rdma.rkey = remote_.key;
  } else {
    work.wr.atomic.remote_addr = remote_.address;
    work.wr.atomic.rkey = remote_.key;
    work.wr.atomic.compare_add = 1;
  }
  ibv_send_wr* bad = nullptr;
  if (const int failed = ibv_post_send(id_->qp, &work, &bad); failed != 0) {
    return fail_errno_text(failed, "raw verbs: ibv_post_send");
  }
  ++sends_;
  return {};
}

Result<void> Verbs::completed(const ibv_wc& completion) {
  const uint64_t kind = completion.wr_id >> 32;
  if (completion.status != IBV_WC_SUCCESS) {
    return fail(Errc::kPeerLost, "raw verbs: {}", ibv_wc_status_str(completion.status));
  }
  if (kind != kReceived) {
    --sends_;
    finished += kind == kOneSided ? 1 : 0;
    return {};
  }
  const auto slot = static_cast<uint32_t>(completion.wr_id);
  Head head;
  std::memcpy(&head, receive_slot(slot), sizeof head);
  KEVRE_TRY(post_receive(slot));
  if (listener_ == nullptr) {
    ++replies;
    return {};
  }
  last_request = head;
  return head.want_reply != 0 ? post_message(head, head.reply_bytes) : Result<void>{};
}

Result<void> Verbs::wait(bool sleeping) {
  std::array<ibv_wc, 16> done;
  int count = ibv_poll_cq(completions_.get(), done.size(), done.data());
  if (count == 0 && sleeping) {
    if (const int failed = ibv_req_notify_cq(completions_.get(), 0); failed != 0) {
      return fail_errno_text(failed, "raw verbs: ibv_req_notify_cq");
    }
    count = ibv_poll_cq(completions_.get(), done.size(), done.data());
    pollfd waiting{sleeper_->fd, POLLIN, 0};
    if (count == 0 && ::poll(&waiting, 1, 1000) == 1) {
      ibv_cq* which = nullptr;
      void* context = nullptr;
      if (ibv_get_cq_event(sleeper_.get(), &which, &context) == 0) {
        ibv_ack_cq_events(which, 1);
      }
      count = ibv_poll_cq(completions_.get(), done.size(), done.data());
    }
  }
  if (count < 0) {
    return fail(Errc::kSystem, "raw verbs: ibv_poll_cq");
  }
  for (int i = 0; i < count; ++i) {
    KEVRE_TRY(completed(done[static_cast<size_t>(i)]));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Side>> verbs_side(const Options& options, int socket, bool server) {
  auto side = std::make_unique<Verbs>();
  KEVRE_TRY(server ? side->listen(options, socket) : side->call(options, socket));
  return side;
}

}  // namespace kevre::bench
