#include "transport/choice_address.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace kevre::transport {
namespace {

constexpr uint32_t kMagic = 0x31435645;  // "EVC1"; the digit is the version of this layout

template <class T>
void put(Address& out, T value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof value);
}

// Takes values off the front; after the first that is not there, `good` is false and everything is 0.
struct Reader {
  std::span<const std::byte> rest;
  bool good = true;

  template <class T>
  T take() {
    T value{};
    const auto bytes = take(sizeof value);
    if (good) {
      std::memcpy(&value, bytes.data(), sizeof value);
    }
    return value;
  }
  std::span<const std::byte> take(size_t bytes) {
    if (!good || rest.size() < bytes) {
      good = false;
      return {};
    }
    const auto front = rest.first(bytes);
    rest = rest.subspan(bytes);
    return front;
  }
};

constexpr uint32_t mask_of(uint8_t prefix) { return prefix == 0 ? 0 : ~uint32_t{0} << (32 - prefix); }

bool reaches(const Subnet& a, const Subnet& b, bool same_place) {
  const bool loopback = (a.address >> 24) == 127 || (b.address >> 24) == 127;
  if ((loopback || a.address == b.address) && !same_place) {
    return false;
  }
  return ((a.address ^ b.address) & mask_of(std::max(a.prefix, b.prefix))) == 0;
}

bool share_subnet(const NodeAddress& here, const NodeAddress& there) {
  return std::any_of(here.subnets.begin(), here.subnets.end(), [&](const Subnet& a) {
    return std::any_of(there.subnets.begin(), there.subnets.end(),
                       [&](const Subnet& b) { return reaches(a, b, here.place == there.place); });
  });
}

std::string list_of(const std::vector<Subnet>& subnets) {
  std::string text;
  for (const Subnet& subnet : subnets) {
    text += (text.empty() ? "" : ", ") + to_text(subnet);
  }
  return text.empty() ? "none" : text;
}

std::string why_not(VerbsState state, const std::string& who, const std::string& problem) {
  if (!problem.empty() && state == VerbsState::kUnusable) {
    return who + ": " + problem;
  }
  switch (state) {
    case VerbsState::kNoDevice: return who + " has no RDMA device (see kevre doctor there)";
    case VerbsState::kUnusable: return who + " has an RDMA device that cannot be used (see kevre doctor there)";
    case VerbsState::kNotWanted: return "--transport ucx at " + who;
    case VerbsState::kUsable: break;
  }
  return "";
}

std::string why_not_verbs(const NodeAddress& here, const NodeAddress& there, const std::string& problem) {
  if (here.verbs != VerbsState::kUsable) {
    return why_not(here.verbs, "this node", problem);
  }
  if (there.verbs != VerbsState::kUsable) {
    return why_not(there.verbs, "the peer", "");
  }
  return fmt::format("devices on different subnets: {} here, {} there (give them addresses in one)", list_of(here.subnets),
                     list_of(there.subnets));
}

}  // namespace

std::string_view kind_name(Kind kind) {
  switch (kind) {
    case Kind::kUcx: return "ucx";
    case Kind::kVerbs: return "verbs";
  }
  return "?";
}

const Address* NodeAddress::address_of(Kind kind) const {
  const auto found =
      std::find_if(backends.begin(), backends.end(), [kind](const BackendAddress& one) { return one.kind == kind; });
  return found == backends.end() ? nullptr : &found->bytes;
}

Address encode_address(const NodeAddress& address) {
  KEVRE_CHECK(address.subnets.size() <= kSubnetsMax && address.backends.size() <= kKinds, "{} subnets, {} backends",
              address.subnets.size(), address.backends.size());
  Address out;
  put(out, kMagic);
  put(out, address.place);
  put(out, static_cast<uint8_t>(address.verbs));
  put(out, static_cast<uint8_t>(address.subnets.size()));
  for (const Subnet& subnet : address.subnets) {
    put(out, subnet.address);
    put(out, subnet.prefix);
  }
  put(out, static_cast<uint8_t>(address.backends.size()));
  for (const BackendAddress& backend : address.backends) {
    put(out, static_cast<uint8_t>(backend.kind));
    put(out, static_cast<uint16_t>(backend.bytes.size()));
    out.insert(out.end(), backend.bytes.begin(), backend.bytes.end());
  }
  return out;
}

Result<NodeAddress> decode_address(std::span<const std::byte> bytes) {
  const auto corrupt = [] {
    return fail(Errc::kCorrupt, "not a transport address, or damaged (do all nodes run one version?)");
  };
  Reader in{bytes};
  if (bytes.size() > kAddressBytesMax || in.take<uint32_t>() != kMagic) {
    return corrupt();
  }
  NodeAddress address;
  address.place = in.take<uint64_t>();
  const auto state = in.take<uint8_t>();
  const auto subnets = in.take<uint8_t>();
  if (state < static_cast<uint8_t>(VerbsState::kUsable) || state > static_cast<uint8_t>(VerbsState::kNotWanted) ||
      subnets > kSubnetsMax) {
    return corrupt();
  }
  address.verbs = static_cast<VerbsState>(state);
  for (uint8_t i = 0; i < subnets; ++i) {
    Subnet subnet;
    subnet.address = in.take<uint32_t>();
    subnet.prefix = in.take<uint8_t>();
    if (subnet.prefix > 32) {
      return corrupt();
    }
    address.subnets.push_back(subnet);
  }
  const auto backends = in.take<uint8_t>();
  for (uint8_t i = 0; in.good && i < backends; ++i) {
    const auto kind = in.take<uint8_t>();
    const auto length = in.take<uint16_t>();
    const auto own = in.take(length);
    if (kind < static_cast<uint8_t>(Kind::kUcx) || kind > kKinds || address.address_of(static_cast<Kind>(kind)) != nullptr) {
      return corrupt();
    }
    address.backends.push_back({static_cast<Kind>(kind), {own.begin(), own.end()}});
  }
  // A node that says that it can do verbs says how to reach it.
  const bool consistent = (address.verbs == VerbsState::kUsable) == (address.address_of(Kind::kVerbs) != nullptr);
  if (!in.good || !in.rest.empty() || address.backends.empty() || !consistent) {
    return corrupt();
  }
  return address;
}

Choice choose(const NodeAddress& here, const NodeAddress& there, const std::string& here_problem) {
  const bool both_verbs = here.verbs == VerbsState::kUsable && there.verbs == VerbsState::kUsable;
  if (both_verbs && share_subnet(here, there)) {
    return {Kind::kVerbs, ""};
  }
  Choice choice{std::nullopt, why_not_verbs(here, there, here_problem)};
  if (here.address_of(Kind::kUcx) != nullptr && there.address_of(Kind::kUcx) != nullptr) {
    choice.kind = Kind::kUcx;
  }
  return choice;
}

std::string to_text(const Subnet& subnet) {
  const uint32_t network = subnet.address & mask_of(subnet.prefix);
  return fmt::format("{}.{}.{}.{}/{}", network >> 24, (network >> 16) & 255, (network >> 8) & 255, network & 255,
                     subnet.prefix);
}

}  // namespace kevre::transport
