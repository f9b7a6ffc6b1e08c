// kevre's own transport as one side of a pair: what transport::create() gives a daemon, driven by an event loop when it
// sleeps. See pair.h for threads and tests.
#pragma once

#include <memory>

#include "bench/pair.h"

namespace kevre::bench {

// `kind`: auto, ucx or verbs.
Result<std::unique_ptr<Side>> kevre_side(const Options& options, const std::string& kind, int socket, bool server);

}  // namespace kevre::bench
