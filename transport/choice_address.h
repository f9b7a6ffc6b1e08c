// The address that a node hands out: the addresses of its backends, and what both ends need to know to choose one of them.
// choose() is a pure function that gives the same backend at both ends, because a link lives in one backend: verbs when
// both ends have a usable device and a subnet in common, else ucx, else nothing.
//
// Wire, little-endian: "EVC1" | place u64 | verbs state u8 | subnets u8 | {address u32, prefix u8}... | backends u8 |
// {kind u8, bytes u16, the backend's own address}...
// Owns nothing; any thread. Tested in tests/transport/choice_test.cc; the decoder is fuzzed by
// tests/fuzz/transport_address_fuzz.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "transport/transport.h"

namespace kevre::transport {

enum class Kind : uint8_t { kUcx = 1, kVerbs = 2 };
inline constexpr uint8_t kKinds = 2;
std::string_view kind_name(Kind kind);

enum class VerbsState : uint8_t {
  kUsable = 1,
  kNoDevice = 2,   // the machine has no RDMA device, or none with an IPv4 address
  kUnusable = 3,   // it has one, and something is in the way: permission, memlock
  kNotWanted = 4,  // --transport ucx
};

struct Subnet {  // of an RDMA device's interface
  uint32_t address = 0;  // IPv4, host byte order
  uint8_t prefix = 0;    // 0..32
  bool operator==(const Subnet&) const = default;
};

struct BackendAddress {
  Kind kind = Kind::kUcx;
  Address bytes;
  bool operator==(const BackendAddress&) const = default;
};

struct NodeAddress {
  uint64_t place = 0;  // machine and network namespace: loopback and equal addresses mean something only within one
  VerbsState verbs = VerbsState::kNoDevice;
  std::vector<Subnet> subnets;           // at most kSubnetsMax
  std::vector<BackendAddress> backends;  // at most one of each kind
  bool operator==(const NodeAddress&) const = default;

  const Address* address_of(Kind kind) const;
};
inline constexpr size_t kSubnetsMax = 8;

Address encode_address(const NodeAddress& address);
Result<NodeAddress> decode_address(std::span<const std::byte> bytes);  // kCorrupt

struct Choice {
  std::optional<Kind> kind;  // the same when the two ends change places
  std::string why;           // why not verbs, as seen from `here`; empty when it is verbs
};
// `here_problem`: what is in the way of verbs at this node, for people; empty: the state says it.
Choice choose(const NodeAddress& here, const NodeAddress& there, const std::string& here_problem = "");

// "10.0.0.5/24" as the subnet "10.0.0.0/24".
std::string to_text(const Subnet& subnet);

}  // namespace kevre::transport
