#include "bench/raw_ucx.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/clock.h"

namespace kevre::bench {
namespace {

enum : unsigned { kRequest = 1, kReply = 2 };

tl::unexpected<Error> ucx_error(ucs_status_t status, const char* what) {
  return fail(Errc::kSystem, "raw UCX: {}: {}", what, ucs_status_string(status));
}

// A context, a worker, an endpoint and what arrived.
class Raw final : public Side {
 public:
  Raw() = default;
  Raw(const Raw&) = delete;
  Raw& operator=(const Raw&) = delete;
  ~Raw() override {
    const Nanos deadline = now_ns() + 5 * kSecond;
    while (under_way_ > 0 && !has_failed_ && now_ns() < deadline) {
      ucp_worker_progress(worker_);
    }
    if (endpoint_ != nullptr) {
      close_endpoint();
    }
    if (worker_ != nullptr) {
      ucp_worker_destroy(worker_);
    }
    if (context_ != nullptr) {
      ucp_cleanup(context_);
    }
  }

  Result<void> open(const Options& options);
  Result<void> meet(int socket);  // exchanges addresses and makes the endpoint
  Result<void> send(unsigned id, const Head& head, const std::byte* data, size_t bytes);
  Result<void> request(const Head& head, size_t bytes) override {
    if (out.size() < bytes) {
      out.resize(bytes);
    }
    return send(kRequest, head, out.data(), bytes);
  }
  Result<void> wait(bool sleeping) override;
  std::string about() const override { return "bare ucx"; }

  std::vector<std::byte> out;  // what is sent

 private:
  struct Posted {
    Raw* raw;
    Head head;
  };
  static ucs_status_t on_request(void* self, const void* head, size_t head_bytes, void*, size_t,
                                 const ucp_am_recv_param_t*);
  static ucs_status_t on_reply(void* self, const void*, size_t, void* data, size_t bytes,
                               const ucp_am_recv_param_t* param);
  static void on_sent(void* request, ucs_status_t status, void* posted);
  void close_endpoint();

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_ep_h endpoint_ = nullptr;
  UniqueFd epoll_;
  size_t under_way_ = 0;
  std::vector<std::unique_ptr<Posted>> all_;
  std::vector<Posted*> free_;
  Error failed_;
  bool has_failed_ = false;
};

std::string interface_of(const std::string& address) {
  std::string name;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) {
    return name;
  }
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr != nullptr && i->ifa_addr->sa_family == AF_INET) {
      sockaddr_in one{};
      std::memcpy(&one, i->ifa_addr, sizeof one);
      char text[INET_ADDRSTRLEN] = {};
      ::inet_ntop(AF_INET, &one.sin_addr, text, sizeof text);
      if (address == text) {
        name = i->ifa_name;
      }
    }
  }
  ::freeifaddrs(list);
  return name;
}

Result<void> Raw::open(const Options& options) {
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) {
    return ucx_error(status, "ucp_config_read");
  }
  const std::unique_ptr<ucp_config_t, decltype(&ucp_config_release)> owner(config, &ucp_config_release);
  if (options.tls.find("tcp") !=
      std::string::npos) {  // as the transport sets it: the reference is UCX at its best
    ucp_config_modify(config, "TX_SEG_SIZE", "128k");
    ucp_config_modify(config, "RX_SEG_SIZE", "128k");
  }
  status = ucp_config_modify(config, "TLS", options.tls.c_str());
  if (status != UCS_OK) {
    return ucx_error(status, "TLS");
  }
  if (!options.bind_address.empty()) {
    const std::string name = interface_of(options.bind_address);
    if (name.empty()) {
      return fail(Errc::kNotFound, "no network interface here has the address {}", options.bind_address);
    }
    ucp_config_modify(config, "NET_DEVICES", name.c_str());
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  status = ucp_init(&params, config, &context_);
  if (status != UCS_OK) {
    return ucx_error(status, "ucp_init");
  }
  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker.thread_mode = UCS_THREAD_MODE_SINGLE;
  status = ucp_worker_create(context_, &worker, &worker_);
  if (status != UCS_OK) {
    return ucx_error(status, "ucp_worker_create");
  }
  int wake = -1;
  status = ucp_worker_get_efd(worker_, &wake);
  if (status != UCS_OK) {
    return ucx_error(status, "ucp_worker_get_efd");
  }
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  if (!epoll_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake, &event) != 0) {
    return fail_errno("raw UCX: epoll");
  }
  for (const unsigned id : {kRequest, kReply}) {
    ucp_am_handler_param_t handler{};
    handler.field_mask =
        UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
    handler.id = id;
    handler.cb = id == kRequest ? &Raw::on_request : &Raw::on_reply;
    handler.arg = this;
    status = ucp_worker_set_am_recv_handler(worker_, &handler);
    if (status != UCS_OK) {
      return ucx_error(status, "ucp_worker_set_am_recv_handler");
    }
  }
  return {};
}

Result<void> Raw::meet(int socket) {
  ucp_address_t* address = nullptr;
  size_t length = 0;
  ucs_status_t status = ucp_worker_get_address(worker_, &address, &length);
  if (status != UCS_OK) {
    return ucx_error(status, "ucp_worker_get_address");
  }
  const Result<void> given = give(socket, address, length);
  ucp_worker_release_address(worker_, address);
  KEVRE_TRY(given);
  KEVRE_ASSIGN(const std::vector<std::byte> remote, take(socket, 65536));
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS;
  params.address = reinterpret_cast<const ucp_address_t*>(remote.data());
  status = ucp_ep_create(worker_, &params, &endpoint_);
  return status == UCS_OK ? Result<void>{} : ucx_error(status, "ucp_ep_create");
}

ucs_status_t Raw::on_request(void* self, const void* head, size_t head_bytes, void*, size_t,
                             const ucp_am_recv_param_t*) {
  Raw* raw = static_cast<Raw*>(self);
  if (head_bytes != sizeof(Head)) {
    return UCS_OK;
  }
  std::memcpy(&raw->last_request, head, sizeof(Head));
  if (raw->last_request.want_reply != 0) {
    if (raw->out.size() < raw->last_request.reply_bytes) {
      raw->out.resize(raw->last_request.reply_bytes);
    }
    if (auto sent = raw->send(kReply, raw->last_request, raw->out.data(), raw->last_request.reply_bytes);
        !sent) {
      raw->failed_ = sent.error();
      raw->has_failed_ = true;
    }
  }
  return UCS_OK;
}

ucs_status_t Raw::on_reply(void* self, const void*, size_t, void*, size_t, const ucp_am_recv_param_t*) {
  ++static_cast<Raw*>(self)->replies;
  return UCS_OK;
}

void Raw::on_sent(void* request, ucs_status_t status, void* user_data) {
  auto* posted = static_cast<Posted*>(user_data);
  Raw* raw = posted->raw;
  --raw->under_way_;
  raw->free_.push_back(posted);
  if (status != UCS_OK) {
    raw->failed_ = Error{Errc::kPeerLost, 0, ucs_status_string(status)};
    raw->has_failed_ = true;
  }
  ucp_request_free(request);
}

Result<void> Raw::send(unsigned id, const Head& head, const std::byte* data, size_t bytes) {
  if (free_.empty()) {
    all_.push_back(std::make_unique<Posted>());
    free_.push_back(all_.back().get());
  }
  Posted* posted = free_.back();
  posted->raw = this;
  posted->head = head;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = &Raw::on_sent;
  param.user_data = posted;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(endpoint_, id, &posted->head, sizeof posted->head, data, bytes, &param);
  if (UCS_PTR_IS_ERR(request)) {
    return ucx_error(UCS_PTR_STATUS(request), "ucp_am_send_nbx");
  }
  if (request != nullptr) {
    free_.pop_back();
    ++under_way_;
  }
  return {};
}

Result<void> Raw::wait(bool sleeping) {
  if (ucp_worker_progress(worker_) == 0 && sleeping) {
    const ucs_status_t status = ucp_worker_arm(worker_);
    if (status == UCS_OK) {
      epoll_event event{};
      ::epoll_wait(epoll_.get(), &event, 1, 1000);
    } else if (status != UCS_ERR_BUSY) {
      return ucx_error(status, "ucp_worker_arm");
    }
  }
  if (has_failed_) {
    return tl::unexpected(failed_);
  }
  return {};
}

void Raw::close_endpoint() {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  void* request = ucp_ep_close_nbx(endpoint_, &param);
  const Nanos deadline = now_ns() + kSecond / 2;
  if (UCS_PTR_IS_PTR(request)) {
    while (ucp_request_check_status(request) == UCS_INPROGRESS && now_ns() < deadline) {
      ucp_worker_progress(worker_);
    }
    ucp_request_free(request);
  }
}

}  // namespace

Result<std::unique_ptr<Side>> ucx_side(const Options& options, int socket) {
  auto raw = std::make_unique<Raw>();
  KEVRE_TRY(raw->open(options));
  KEVRE_TRY(raw->meet(socket));
  return raw;
}

}  // namespace kevre::bench
