#include "transport/transport.h"

#include <arpa/inet.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <functional>

#include "transport/choice.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/verbs/probe.h"
#include "transport/verbs/verbs_transport.h"

namespace kevre::transport {
namespace {
tl::unexpected<Error> no_one_sided() {
  return fail(Errc::kUnsupported,
              "this transport has no one-sided operations: ask capabilities() and send a message");
}

// This boot of this machine and this network namespace, as a number.
uint64_t place() {
  std::string text;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), text);
  std::array<char, 64> name{};
  if (::readlink("/proc/self/ns/net", name.data(), name.size() - 1) > 0) {
    text += name.data();
  }
  return std::hash<std::string>()(text);
}

// The device of the bind address; when none has it, the first that can be used: its network is one of its own.
Result<void> add_verbs(Options options, const verbs::Probe& found, std::vector<ChoiceTransport::Part>& parts, NodeAddress& facts) {
  facts.verbs = found.devices.empty() ? VerbsState::kNoDevice : VerbsState::kUnusable;
  auto chosen = verbs::choose(found, options.bind_address);
  if (!chosen && chosen.error().code == Errc::kNotFound) {
    chosen = verbs::choose(found, "");
  }
  if (!chosen) {
    return tl::unexpected(std::move(chosen).error());
  }
  const verbs::Subnet subnet = chosen->port->subnet;
  in_addr address{htonl(subnet.address)};
  std::array<char, INET_ADDRSTRLEN> text{};
  options.bind_address = ::inet_ntop(AF_INET, &address, text.data(), text.size());
  KEVRE_ASSIGN(auto transport, verbs::VerbsTransport::create(options));
  parts.push_back({Kind::kVerbs, std::move(transport)});
  facts.verbs = VerbsState::kUsable;
  facts.subnets = {{subnet.address, subnet.prefix}};
  return {};
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
  const bool any = options.kind == "auto";
  if (!any && options.kind != "ucx" && options.kind != "verbs") {
    return fail(Errc::kInvalid, "transport '{}' does not exist: use auto, ucx or verbs", options.kind);
  }
  std::vector<ChoiceTransport::Part> parts;
  NodeAddress facts;
  facts.place = place();
  facts.verbs = VerbsState::kNotWanted;
  std::string problem;
  if (options.kind != "ucx") {
    const verbs::Probe found = verbs::probe();
    if (auto added = add_verbs(options, found, parts, facts); !added) {
      if (!any) {
        return tl::unexpected(std::move(added).error());
      }
      problem = found.usable() ? added.error().text : found.why_not;
    }
  }
  if (options.kind != "verbs") {
    KEVRE_ASSIGN(auto ucx, ucx::UcxTransport::create(options));
    parts.push_back({Kind::kUcx, std::move(ucx)});
  }
  return ChoiceTransport::create(std::move(parts), std::move(facts), std::move(problem));
}

}  // namespace kevre::transport
