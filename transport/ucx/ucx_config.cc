#include "transport/ucx/ucx_config.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <ucs/debug/log_def.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/log.h"

namespace kevre::transport::ucx {
namespace {

struct Setting {
  const char* key;       // as ucp_config_modify() wants it: without the transport's prefix where it is UCT's
  const char* variable;  // as the user would set it
  const char* value;
};

// Segment sizes: 64 KiB round trips fall from 34 to 21 us with 128k segments over tcp (KERNEL.md D).
// ERROR_HANDLING: without it UCX 1.13 does not offer shared memory to endpoints that want to hear of
// failures. KEEPALIVE_INTERVAL: the only way in which UCX sees the death of a shared-memory peer.
// ZCOPY_THRESH: a tcp peer that dies while UCX 1.13 sends without copying aborts *our* process (assertion
// comp->count > 0 in uct_iface.h: the request is completed twice).
// UcxProcess.APeerKilledInTheMiddleOfAStream... shows it.
// MAX_POLL: UCX 1.13 fetches so many socket events at once; handling one may close an endpoint whose event comes later
// in the same batch (peers that die together, or a peer with two lanes), and then it aborts our process (assertion
// conn_state != CLOSED in tcp_iface.c). With one event at a time there is no later event.
constexpr std::array kSettings = {
    Setting{"ZCOPY_THRESH", "UCX_ZCOPY_THRESH", "inf"},
    Setting{"TX_SEG_SIZE", "UCX_TCP_TX_SEG_SIZE", "128k"},
    Setting{"RX_SEG_SIZE", "UCX_TCP_RX_SEG_SIZE", "128k"},
    Setting{"MAX_POLL", "UCX_TCP_MAX_POLL", "1"},
    Setting{"MAX_NUM_EPS", "UCX_TCP_MAX_NUM_EPS", "inf"},
    Setting{"MM_ERROR_HANDLING", "UCX_POSIX_ERROR_HANDLING", "y"},
    Setting{"KEEPALIVE_INTERVAL", "UCX_KEEPALIVE_INTERVAL", "1s"},
};

// cma is slower than copying here and needs ptrace rights over the peer; sysv segments count against the
// limits of the machine's IPC namespace, which kevre virtualises.
constexpr const char* kDefaultTls = "^cma,sysv";

Result<void> apply(ucp_config_t* config, const Setting& setting) {
  if (std::getenv(setting.variable) != nullptr) {
    return {};
  }
  const ucs_status_t status = ucp_config_modify(config, setting.key, setting.value);
  if (status != UCS_OK) {
    return fail(Errc::kInvalid, "UCX does not take {}={}: {}", setting.variable, setting.value,
                ucs_status_string(status));
  }
  return {};
}

ucs_log_func_rc_t log_line(const char* /*file*/, unsigned /*line*/, const char* function,
                           ucs_log_level_t level, const ucs_log_component_config_t* /*component*/,
                           const char* format, va_list arguments) {
  std::array<char, 512> text{};
  va_list copy;
  va_copy(copy, arguments);
  std::vsnprintf(text.data(), text.size(), format, copy);
  va_end(copy);
  if (level <= UCS_LOG_LEVEL_FATAL) {
    return UCS_LOG_FUNC_RC_CONTINUE;  // UCX is about to abort: its own words, on stderr
  }
  if (level == UCS_LOG_LEVEL_ERROR) {
    KEVRE_LOG_INFO("ucx: {}: {}", function, text.data());
  } else if (level == UCS_LOG_LEVEL_WARN) {
    KEVRE_LOG_DEBUG("ucx: {}: {}", function, text.data());
  } else {
    KEVRE_LOG_TRACE("ucx: {}: {}", function, text.data());
  }
  return UCS_LOG_FUNC_RC_STOP;
}

}  // namespace

Result<std::string> interface_of(const std::string& address) {
  in_addr wanted{};
  if (::inet_pton(AF_INET, address.c_str(), &wanted) != 1) {
    return fail(Errc::kInvalid, "'{}' is not an IPv4 address", address);
  }
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) {
    return fail_errno("getifaddrs");
  }
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(list, &::freeifaddrs);
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) {
      continue;
    }
    sockaddr_in socket_address{};
    std::memcpy(&socket_address, i->ifa_addr, sizeof socket_address);
    if (socket_address.sin_addr.s_addr == wanted.s_addr) {
      return std::string(i->ifa_name);
    }
  }
  return fail(Errc::kNotFound, "no network interface here has the address {} (see ip addr)", address);
}

Result<ucp_context_h> create_context(const std::string& tls, const std::string& bind_address) {
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) {
    return tl::unexpected(error_of(status, "reading the UCX_* settings"));
  }
  const std::unique_ptr<ucp_config_t, decltype(&ucp_config_release)> owner(config, &ucp_config_release);
  for (const Setting& setting : kSettings) {
    KEVRE_TRY(apply(config, setting));
  }
  KEVRE_TRY(apply(config, {"TLS", "UCX_TLS", tls.empty() ? kDefaultTls : tls.c_str()}));
  if (!bind_address.empty()) {
    KEVRE_ASSIGN(const std::string interface, interface_of(bind_address));
    KEVRE_TRY(apply(config, {"NET_DEVICES", "UCX_NET_DEVICES", interface.c_str()}));
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.name = "kevre";
  ucp_context_h context = nullptr;
  status = ucp_init(&params, config, &context);
  if (status != UCS_OK) {
    return tl::unexpected(
        error_of(status, fmt::format("ucp_init with TLS '{}' (ucx_info -d lists what there is)",
                                     tls.empty() ? kDefaultTls : tls)));
  }
  return context;
}

void redirect_log() {
  static const bool done = [] {
    if (std::getenv("UCX_LOG_LEVEL") == nullptr && std::getenv("UCX_LOG_FILE") == nullptr) {
      ucs_log_push_handler(&log_line);
    }
    return true;
  }();
  static_cast<void>(done);
}

Error error_of(ucs_status_t status, std::string_view what) {
  Errc code = Errc::kSystem;
  if (status == UCS_ERR_NO_MEMORY || status == UCS_ERR_NO_RESOURCE || status == UCS_ERR_EXCEEDS_LIMIT) {
    code = Errc::kExhausted;
  } else if (status == UCS_ERR_INVALID_PARAM || status == UCS_ERR_INVALID_ADDR) {
    code = Errc::kInvalid;
  } else if (status == UCS_ERR_UNREACHABLE || status == UCS_ERR_CONNECTION_RESET ||
             status == UCS_ERR_NOT_CONNECTED || status == UCS_ERR_ENDPOINT_TIMEOUT ||
             status == UCS_ERR_REJECTED || status == UCS_ERR_CANCELED) {
    code = Errc::kPeerLost;
  } else if (status == UCS_ERR_TIMED_OUT) {
    code = Errc::kTimedOut;
  } else if (status == UCS_ERR_NO_DEVICE || status == UCS_ERR_UNSUPPORTED ||
             status == UCS_ERR_NOT_IMPLEMENTED) {
    code = Errc::kUnsupported;
  }
  return Error{code, 0, fmt::format("{}: {}", what, ucs_status_string(status))};
}

std::string_view carrier_of(ucp_ep_h endpoint) {
  char* text = nullptr;
  size_t size = 0;
  FILE* stream = ::open_memstream(&text, &size);
  if (stream == nullptr) {
    return "ucx";
  }
  ucp_ep_print_info(endpoint, stream);
  std::fclose(stream);
  const std::string info(text, size);
  std::free(text);
  // "#   lane[0]:  3:tcp/lo.0 md[1]   -> md[1]/tcp/sysdev[255] am wireup": the lane that says "am".
  for (size_t at = info.find("lane["); at != std::string::npos; at = info.find("lane[", at + 1)) {
    const std::string line = info.substr(at, info.find('\n', at) - at);
    if ((line + " ").find(" am ") == std::string::npos) {
      continue;
    }
    struct Name {
      std::string_view in_ucx, ours;
    };
    constexpr std::array kNames = {Name{":tcp/", "tcp"},   Name{":posix/", "shm"}, Name{":sysv/", "shm"},
                                   Name{":xpmem/", "shm"}, Name{":rc_", "rc"},     Name{":ud_", "ud"},
                                   Name{":dc_", "dc"},     Name{":self/", "self"}};
    for (const Name& name : kNames) {
      if (line.find(name.in_ucx) != std::string::npos) {
        return name.ours;
      }
    }
  }
  return "ucx";
}

}  // namespace kevre::transport::ucx
