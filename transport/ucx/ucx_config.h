// How UCX is set up for kevre: which of its transports, which interface, which limits; and where its log
// goes. Values are put into the UCP configuration, not into the environment; a UCX_* variable that the user
// set wins. Owns nothing. Threads: the caller's, before the first worker. Tested by the conformance suite
// (tests/transport/).
#pragma once

#include <ucp/api/ucp.h>

#include <string>
#include <string_view>

#include "base/result.h"

namespace kevre::transport::ucx {

struct ContextDeleter {
  void operator()(ucp_context_h context) const { ucp_cleanup(context); }
};

// The interface that has `address` (IPv4, dotted), for UCX_NET_DEVICES.
Result<std::string> interface_of(const std::string& address);

// A context with active messages and wake-up. `tls` empty: tcp, shared memory and what else UCX finds, but
// not cma.
Result<ucp_context_h> create_context(const std::string& tls, const std::string& bind_address);

// UCX's own lines go to kevre's log: a peer that dies is an event of ours (debug), not an error for the
// operator. Once per process; a user who set UCX_LOG_LEVEL or UCX_LOG_FILE gets UCX's own output as well.
void redirect_log();

Error error_of(ucs_status_t status, std::string_view what);

// What carries an endpoint's active messages: "tcp", "shm", "rc", "ud", "dc", "self" or "ucx" (wire-up not
// decided yet).
std::string_view carrier_of(ucp_ep_h endpoint);

}  // namespace kevre::transport::ucx
