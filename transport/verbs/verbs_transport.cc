#include "transport/verbs/verbs_transport.h"

#include "transport/verbs/probe.h"

namespace kevre::transport::verbs {
Result<std::unique_ptr<Transport>> VerbsTransport::create(const Options& options) {
  const Probe found = probe();
  KEVRE_TRY(choose(found, options.bind_address));
  return fail(Errc::kUnsupported, "transport verbs cannot be used in this build: use --transport ucx (or auto)");
}
}  // namespace kevre::transport::verbs
