// The reference for what kevre sends over UCX: UCP active messages, without kevre's transport. Messages only.
// See pair.h for threads and tests.
#pragma once

#include <memory>

#include "bench/pair.h"

namespace kevre::bench {

Result<std::unique_ptr<Side>> ucx_side(const Options& options, int socket);

}  // namespace kevre::bench
