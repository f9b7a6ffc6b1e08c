#include "bench/raw_ucx.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/clock.h"
#include "base/fd.h"

namespace kevre::bench {
namespace {

enum : unsigned { kRequest = 1, kReply = 2 };

struct Head {  // of requests and replies; work numbers of the client travel in it
  uint64_t reply_bytes = 0;
  uint32_t sleep = 0;  // how the server waits from now on
  uint32_t stop = 0;
  uint64_t want_reply = 1;
  uint64_t serial = 0;
};
static_assert(sizeof(Head) == 32);

tl::unexpected<Error> ucx_error(ucs_status_t status, const char* what) {
  return fail(Errc::kSystem, "raw UCX: {}: {}", what, ucs_status_string(status));
}

// A context, a worker, an endpoint and what arrived.
class Raw {
 public:
  Raw() = default;
  Raw(const Raw&) = delete;
  Raw& operator=(const Raw&) = delete;
  ~Raw() {
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

  Result<void> open(const RawOptions& options);
  Result<void> meet(int socket);  // exchanges addresses and makes the endpoint
  Result<void> send(unsigned id, const Head& head, const std::byte* data, size_t bytes);
  Result<void> flush();
  Result<void> wait(bool sleeping);  // progress; sleeps when there was nothing to do
  size_t under_way() const { return under_way_; }

  uint64_t replies = 0;
  uint64_t requests = 0;
  Head last_request;
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

Result<void> Raw::open(const RawOptions& options) {
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

Result<void> read_all(int socket, void* to, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t got = ::recv(socket, static_cast<char*>(to) + done, bytes - done, 0);
    if (got <= 0) {
      return got == 0 ? fail(Errc::kPeerLost, "raw UCX: the other side went away")
                      : fail_errno("raw UCX: recv");
    }
    done += static_cast<size_t>(got);
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
  const uint64_t bytes = length;
  const bool sent = ::send(socket, &bytes, sizeof bytes, MSG_NOSIGNAL) == ssize_t{sizeof bytes} &&
                    ::send(socket, address, length, MSG_NOSIGNAL) == static_cast<ssize_t>(length);
  ucp_worker_release_address(worker_, address);
  if (!sent) {
    return fail_errno("raw UCX: sending the address");
  }
  uint64_t theirs = 0;
  KEVRE_TRY(read_all(socket, &theirs, sizeof theirs));
  if (theirs == 0 || theirs > 65536) {
    return fail(Errc::kCorrupt, "raw UCX: an address of {} bytes", theirs);
  }
  std::vector<std::byte> remote(theirs);
  KEVRE_TRY(read_all(socket, remote.data(), remote.size()));
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
  ++raw->requests;
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

Result<void> Raw::flush() {
  const Nanos deadline = now_ns() + 5 * kSecond;
  while (under_way_ > 0 && now_ns() < deadline) {
    KEVRE_TRY(wait(false));
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

Result<sockaddr_un> socket_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(Errc::kInvalid, "raw UCX: the socket path '{}' is empty or too long", path);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

Result<UniqueFd> accept_client(const RawOptions& options) {
  KEVRE_ASSIGN(const sockaddr_un address, socket_address(options.socket_path));
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ::unlink(options.socket_path.c_str());
  if (!listener || ::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener.get(), 1) != 0) {
    return fail_errno("raw UCX: listening at {}", options.socket_path);
  }
  pollfd waiting{listener.get(), POLLIN, 0};
  const int ready = ::poll(&waiting, 1, static_cast<int>(options.patience / kMillisecond));
  UniqueFd client(ready == 1 ? ::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC) : -1);
  ::unlink(options.socket_path.c_str());
  if (!client) {
    return fail(Errc::kTimedOut, "raw UCX: no client came to {}", options.socket_path);
  }
  return client;
}

Result<UniqueFd> reach_server(const RawOptions& options) {
  KEVRE_ASSIGN(const sockaddr_un address, socket_address(options.socket_path));
  const Nanos deadline = now_ns() + options.patience;
  while (true) {
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket) {
      return fail_errno("raw UCX: socket");
    }
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      return socket;
    }
    if (now_ns() > deadline) {
      return fail_errno("raw UCX: no server at {}", options.socket_path);
    }
    ::usleep(2000);  // the server is still starting; the deadline bounds it
  }
}

Result<void> one_round(Raw* raw, Head head, bool sleeping) {
  const uint64_t before = raw->replies;
  KEVRE_TRY(raw->send(kRequest, head, nullptr, 0));
  while (raw->replies == before) {
    KEVRE_TRY(raw->wait(sleeping));
  }
  return {};
}

Result<RawResult> round_trips(Raw* raw, const RawWork& work) {
  RawResult result{work, {}, 0};
  Head head;
  head.reply_bytes = work.bytes;
  head.sleep = work.spinning ? 0 : 1;
  for (uint32_t i = 0; i < work.warm_up; ++i) {
    KEVRE_TRY(one_round(raw, head, !work.spinning));
  }
  for (uint32_t i = 0; i < work.rounds; ++i) {
    const Nanos start = now_ns();
    KEVRE_TRY(one_round(raw, head, !work.spinning));
    result.round_trip.record(now_ns() - start);
  }
  result.bytes_per_second =
      static_cast<double>(work.bytes) * 1e9 / static_cast<double>(std::max<uint64_t>(result.median_ns(), 1));
  return result;
}

// A reply of no bytes to every quarter of the window keeps the client from running ahead.
Result<void> stream(Raw* raw, const RawWork& work, uint32_t messages) {
  const uint32_t step = std::max<uint32_t>(work.window / 4, 1);
  const uint64_t first_reply = raw->replies;
  if (raw->out.size() < work.bytes) {
    raw->out.resize(work.bytes);
  }
  uint64_t answers = 0;
  for (uint32_t i = 0; i < messages; ++i) {
    Head head;
    head.sleep = work.spinning ? 0 : 1;
    head.want_reply = (i + 1) % step == 0 || i + 1 == messages ? 1 : 0;
    KEVRE_TRY(raw->send(kRequest, head, raw->out.data(), work.bytes));
    answers += head.want_reply;
    while (i + 1 - (raw->replies - first_reply) * step >= work.window &&
           raw->replies - first_reply < answers) {
      KEVRE_TRY(raw->wait(!work.spinning));
    }
  }
  while (raw->replies - first_reply < answers) {
    KEVRE_TRY(raw->wait(!work.spinning));
  }
  return {};
}

Result<RawResult> streaming(Raw* raw, const RawWork& work) {
  RawResult result{work, {}, 0};
  KEVRE_TRY(stream(raw, work, std::max<uint32_t>(work.warm_up, 1)));
  const Nanos start = now_ns();
  KEVRE_TRY(stream(raw, work, work.rounds));
  result.bytes_per_second = static_cast<double>(work.bytes) * work.rounds * 1e9 /
                            static_cast<double>(std::max<Nanos>(now_ns() - start, 1));
  return result;
}

}  // namespace

OnCpu::OnCpu(int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE || ::sched_getaffinity(0, sizeof before_, &before_) != 0) {
    return;
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(cpu), &one);
  bound_ = ::sched_setaffinity(0, sizeof one, &one) == 0;
}

OnCpu::~OnCpu() {
  if (bound_) {
    ::sched_setaffinity(0, sizeof before_, &before_);
  }
}

Result<void> raw_server(const RawOptions& options) {
  const OnCpu on_cpu(options.cpu);
  KEVRE_ASSIGN(const UniqueFd client, accept_client(options));
  Raw raw;
  KEVRE_TRY(raw.open(options));
  KEVRE_TRY(raw.meet(client.get()));
  Nanos last_look = now_ns();
  uint64_t spins = 0;
  while (raw.last_request.stop == 0) {
    const bool sleeping = raw.last_request.sleep != 0;
    KEVRE_TRY(raw.wait(sleeping));
    // A client that died leaves its UNIX socket closed; look for that now and then.
    if ((sleeping || (++spins & 0xffff) == 0) && now_ns() - last_look > kSecond) {
      last_look = now_ns();
      char byte = 0;
      if (::recv(client.get(), &byte, 1, MSG_DONTWAIT) == 0) {
        return fail(Errc::kPeerLost, "raw UCX: the client went away");
      }
    }
  }
  return raw.flush();
}

Result<std::vector<RawResult>> raw_client(const RawOptions& options, const std::vector<RawWork>& works) {
  const OnCpu on_cpu(options.cpu);
  KEVRE_ASSIGN(const UniqueFd server, reach_server(options));
  Raw raw;
  KEVRE_TRY(raw.open(options));
  KEVRE_TRY(raw.meet(server.get()));
  std::vector<RawResult> results;
  for (const RawWork& work : works) {
    KEVRE_ASSIGN(RawResult result, work.window == 0 ? round_trips(&raw, work) : streaming(&raw, work));
    results.push_back(std::move(result));
  }
  Head stop;
  stop.stop = 1;
  KEVRE_TRY(one_round(&raw, stop, false));
  return results;
}

}  // namespace kevre::bench
