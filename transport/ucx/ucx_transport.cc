#include "transport/ucx/ucx_transport.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

namespace kevre::transport::ucx {
namespace {

constexpr unsigned kMessageId = 1;  // UCP active-message id
constexpr Nanos kShutdownFlush = 200 * kMillisecond;
constexpr Nanos kShutdownForce = 300 * kMillisecond;

// An address as we hand it out: magic, checksum, then UCX's own bytes, which UCX trusts blindly.
constexpr uint32_t kAddressMagic = 0x31415845;  // "EXA1"
constexpr size_t kAddressPrefix = 8;

uint32_t checksum(std::span<const std::byte> bytes) {  // FNV-1a
  uint32_t hash = 2166136261u;
  for (const std::byte byte : bytes) {
    hash = (hash ^ static_cast<uint32_t>(byte)) * 16777619u;
  }
  return hash;
}

Address wrap_address(std::span<const std::byte> raw) {
  Address address(kAddressPrefix + raw.size());
  const uint32_t sum = checksum(raw);
  std::memcpy(address.data(), &kAddressMagic, sizeof kAddressMagic);
  std::memcpy(address.data() + 4, &sum, sizeof sum);
  std::memcpy(address.data() + kAddressPrefix, raw.data(), raw.size());
  return address;
}

Result<std::span<const std::byte>> unwrap_address(std::span<const std::byte> address) {
  if (address.size() <= kAddressPrefix || address.size() > kAddressBytesMax) {
    return fail(Errc::kCorrupt, "a transport address of {} bytes", address.size());
  }
  uint32_t magic = 0;
  uint32_t sum = 0;
  std::memcpy(&magic, address.data(), sizeof magic);
  std::memcpy(&sum, address.data() + 4, sizeof sum);
  const auto raw = address.subspan(kAddressPrefix);
  if (magic != kAddressMagic || sum != checksum(raw)) {
    return fail(Errc::kCorrupt,
                "not an address of the ucx transport, or damaged (do all nodes run one version?)");
  }
  return raw;
}

}  // namespace

Result<std::unique_ptr<Transport>> UcxTransport::create(const Options& options) {
  redirect_log();
  std::unique_ptr<UcxTransport> transport(new UcxTransport(options));
  KEVRE_TRY(transport->start());
  return transport;
}

Result<void> UcxTransport::start() {
  KEVRE_ASSIGN(ucp_context_h context, create_context(options_.ucx_tls, options_.bind_address));
  context_.reset(context);
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SINGLE;
  ucs_status_t status = ucp_worker_create(context, &params, &worker_);
  if (status != UCS_OK) {
    worker_ = nullptr;
    return tl::unexpected(error_of(status, "ucp_worker_create"));
  }
  status = ucp_worker_get_efd(worker_, &wake_fd_);
  if (status != UCS_OK) {
    return tl::unexpected(
        error_of(status, "ucp_worker_get_efd: no transport of UCX here can wake a sleeper"));
  }
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG;
  handler.cb = &UcxTransport::on_arrival;
  handler.arg = this;
  status = ucp_worker_set_am_recv_handler(worker_, &handler);
  if (status != UCS_OK) {
    return tl::unexpected(error_of(status, "ucp_worker_set_am_recv_handler"));
  }
  ucp_address_t* address = nullptr;
  size_t length = 0;
  status = ucp_worker_get_address(worker_, &address, &length);
  if (status != UCS_OK) {
    return tl::unexpected(error_of(status, "ucp_worker_get_address"));
  }
  address_ = wrap_address({reinterpret_cast<const std::byte*>(address), length});
  ucp_worker_release_address(worker_, address);
  if (address_.size() > kAddressBytesMax) {
    return fail(Errc::kExhausted,
                "the UCX address has {} bytes, more than {}: name one interface (bind address)",
                address_.size(), kAddressBytesMax);
  }
  return {};
}

Result<void> UcxTransport::connect(NodeId peer, std::span<const std::byte> address) {
  KEVRE_TRY(rules_.may_connect(peer));
  KEVRE_ASSIGN(const auto raw, unwrap_address(address));
  auto link = std::make_unique<Link>();
  link->peer = peer;
  link->own = rules_.next_incarnation();
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(raw.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &UcxTransport::on_endpoint_error;
  params.err_handler.arg = this;
  const ucs_status_t status = ucp_ep_create(worker_, &params, &link->endpoint);
  if (status != UCS_OK) {
    return tl::unexpected(error_of(status, fmt::format("connecting to node {}", peer)));
  }
  rules_.add(std::move(link));
  return {};
}

void UcxTransport::disconnect(NodeId peer) {
  Link* link = link_of(peer);
  if (link == nullptr) {
    return;
  }
  if (link->open) {
    send_reset(link, link->remote);  // over shared memory the peer would not notice
  }
  ended(rules_.take(peer));
}

void UcxTransport::refuse(LinkState* link, uint64_t from_link) {
  send_reset(static_cast<Link*>(link), from_link);
}

void UcxTransport::ended(std::unique_ptr<LinkState> link) {
  ended_.emplace_back(static_cast<Link*>(link.release()));
}

Capabilities UcxTransport::capabilities(NodeId peer) const {
  Capabilities capabilities;
  Link* link = link_of(peer);
  if (link == nullptr || !link->open) {
    return capabilities;
  }
  if (link->via.empty() || link->via == "ucx") {
    link->via = carrier_of(link->endpoint);
  }
  capabilities.via = link->via;
  return capabilities;
}

size_t UcxTransport::queued_bytes(NodeId peer) const {
  const Link* link = link_of(peer);
  return link == nullptr ? 0 : link->queued_bytes;
}

int UcxTransport::progress() {
  KEVRE_CHECK(!in_progress_, "a handler called progress()");
  in_progress_ = true;
  int done = act_on_notes();
  // Once: a second call only to learn that there is no more would cost an epoll_wait in every round trip over
  // tcp.
  done += static_cast<int>(ucp_worker_progress(worker_));
  done += act_on_notes();
  in_progress_ = false;
  return done;
}

bool UcxTransport::arm() {
  if (rules_.has_notes()) {
    return false;
  }
  for (const auto& link : ended_) {
    if (link->closing == nullptr) {
      return false;  // its endpoint is still to be closed
    }
  }
  const ucs_status_t status = ucp_worker_arm(worker_);
  if (status != UCS_OK && status != UCS_ERR_BUSY && !arm_failed_) {
    arm_failed_ = true;
    KEVRE_LOG_ERROR("ucx: cannot sleep, so this node polls: {}", ucs_status_string(status));
  }
  return status == UCS_OK;
}

int UcxTransport::act_on_notes() {
  int done = rules_.act_on_notes();
  if (!ended_.empty()) {
    done += reap_closed();
  }
  return done;
}

void UcxTransport::on_endpoint_error(void* argument, ucp_ep_h endpoint, ucs_status_t status) {
  auto* self = static_cast<UcxTransport*>(argument);
  self->rules_.for_each([&](LinkState* link) {
    if (static_cast<Link*>(link)->endpoint == endpoint) {
      self->rules_.note_lost(link, Error{Errc::kPeerLost, 0,
                                         fmt::format("the connection to node {} broke: {}", link->peer,
                                                     ucs_status_string(status))});
    }
  });
}

void UcxTransport::start_close(Link* link) {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  ucs_status_ptr_t request = ucp_ep_close_nbx(link->endpoint, &param);
  link->endpoint = nullptr;
  link->closing = UCS_PTR_IS_PTR(request) ? request : nullptr;
}

int UcxTransport::reap_closed() {
  int done = 0;
  for (size_t i = 0; i < ended_.size();) {
    Link* link = ended_[i].get();
    if (link->endpoint != nullptr) {
      start_close(link);
      ++done;
    }
    if (link->closing != nullptr && ucp_request_check_status(link->closing) != UCS_INPROGRESS) {
      ucp_request_free(link->closing);
      link->closing = nullptr;
      ++done;
    }
    if (link->closing == nullptr && link->unfinished_sends == 0) {
      ended_[i] = std::move(ended_.back());
      ended_.pop_back();
    } else {
      ++i;
    }
  }
  return done;
}

// What was sent goes out first, as long as peers take it; then every endpoint is closed by force. (Closing
// with a flush waits for the peer to answer, which a peer that is busy or gone does not.)
void UcxTransport::shut_down() {
  rules_.silence();
  std::vector<Link*> links;
  rules_.for_each([&](LinkState* link) { links.push_back(static_cast<Link*>(link)); });
  for (Link* link : links) {
    if (link->open) {
      send_reset(link, link->remote);
    }
  }
  Nanos deadline = now_ns() + kShutdownFlush;
  while (now_ns() < deadline && std::any_of(links.begin(), links.end(), [](const Link* link) {
           return link->open && link->unfinished_sends > 0;
         })) {
    ucp_worker_progress(worker_);
  }
  for (Link* link : links) {
    ended(rules_.take(link->peer));
  }
  deadline = now_ns() + kShutdownForce;
  do {
    reap_closed();
    ucp_worker_progress(worker_);
  } while (!ended_.empty() && now_ns() < deadline);
  for (auto& link : ended_) {
    KEVRE_LOG_WARN("ucx: the connection to node {} did not close in time", link->peer);
    if (link->closing != nullptr) {
      ucp_request_free(link->closing);  // else ucp_worker_destroy() aborts the process
    }
  }
}

UcxTransport::~UcxTransport() {
  if (worker_ != nullptr) {
    shut_down();
    ucp_worker_destroy(worker_);
  }
}

}  // namespace kevre::transport::ucx
