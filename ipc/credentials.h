// Who a program is: what the kernel says about the other end of a socket, and about a thread. Threads: any.
// Tested in tests/ipc/service_test.cc.
#pragma once

#include <sys/types.h>

#include "base/result.h"
#include "ipc/namespace.h"

namespace kevre::ipc {

struct Peer {
  pid_t pid = 0;
  Credentials credentials;  // effective ids and groups when it connected
};
Result<Peer> peer_of(int socket);

// Effective ids and groups of a thread now. `thread` that is not of `pid`: the process' first thread.
Result<Credentials> credentials_of(pid_t pid, pid_t thread);

}  // namespace kevre::ipc
