// The reference for what kevre does over verbs: one RC queue pair made with librdmacm, SEND and RDMA READ and fetch-and-add
// with plain libibverbs, without kevre's transport. One completion queue; sleeping is its completion channel.
// See pair.h for threads and tests.
#pragma once

#include <memory>

#include "bench/pair.h"

namespace kevre::bench {

// Options::bind_address: of an RDMA device (the server's). Also after this returned an error nothing is left behind.
Result<std::unique_ptr<Side>> verbs_side(const Options& options, int socket, bool server);

}  // namespace kevre::bench
