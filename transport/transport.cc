#include "transport/transport.h"

#include "transport/ucx/ucx_transport.h"
#include "transport/verbs/verbs_transport.h"

namespace kevre::transport {
namespace {
tl::unexpected<Error> no_one_sided() {
  return fail(Errc::kUnsupported,
              "this transport has no one-sided operations: ask capabilities() and send a message");
}
}  // namespace

Result<RegionKey> Transport::register_region(std::span<std::byte> /*memory*/) {
  return no_one_sided();
}
void Transport::deregister_region(const RegionKey& /*key*/) {}

Result<void> Transport::read(NodeId /*peer*/, RemoteAddress /*from*/, std::span<std::byte> /*to*/,
                             Completion /*done*/) {
  return no_one_sided();
}

Result<void> Transport::write(NodeId /*peer*/, std::span<const std::byte> /*from*/, RemoteAddress /*to*/,
                              Completion /*done*/) {
  return no_one_sided();
}

Result<void> Transport::fetch_add(NodeId /*peer*/, RemoteAddress /*at*/, uint64_t /*addend*/,
                                  Completion /*done*/) {
  return no_one_sided();
}

Result<void> Transport::compare_swap(NodeId /*peer*/, RemoteAddress /*at*/, uint64_t /*expected*/,
                                     uint64_t /*desired*/, Completion /*done*/) {
  return no_one_sided();
}

Result<void> Transport::drain_arrivals(std::function<void()> /*done*/) {
  return no_one_sided();
}

Result<std::unique_ptr<Transport>> create(const Options& options) {
  if (options.self == kNoNode) {
    return fail(Errc::kInvalid, "transport: node id 0 is no node");
  }
  if (options.kind == "auto" || options.kind == "ucx") {
    return ucx::UcxTransport::create(options);
  }
  if (options.kind == "verbs") {
    return verbs::VerbsTransport::create(options);
  }
  return fail(Errc::kInvalid, "transport '{}' does not exist: use auto, ucx or verbs", options.kind);
}

}  // namespace kevre::transport
