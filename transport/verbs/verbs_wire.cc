#include "transport/verbs/verbs_wire.h"

#include <bit>
#include <cstring>

namespace kevre::transport::verbs {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the wire is little-endian: add byte swaps for this machine");

// The last digit is the version of the layout.
constexpr uint32_t kAddressMagic = 0x31415645;  // "EVA1"
constexpr uint32_t kHelloMagic = 0x31485645;    // "EVH1"
constexpr uint32_t kWelcomeMagic = 0x31575645;  // "EVW1"
constexpr uint32_t kRegionMagic = 0x31525645;   // "EVR1"

struct AddressLayout {
  uint32_t magic;
  uint32_t checksum;  // of what follows
  uint32_t ipv4;
  uint16_t port;
  uint16_t node;
  uint8_t prefix;
  uint8_t zero[7];
};
static_assert(sizeof(AddressLayout) == 24);

struct HelloLayout {
  uint32_t magic;
  uint16_t from, to;
  uint64_t tag, from_link, zero;
};
static_assert(sizeof(HelloLayout) == kHelloBytes);

struct WelcomeLayout {
  uint32_t magic;
  uint32_t chunk_bytes;
  uint16_t window;
  uint16_t atomics;
  uint16_t zero[2];
};
static_assert(sizeof(WelcomeLayout) == kWelcomeBytes);

struct RegionLayout {
  uint32_t magic;
  uint32_t rkey;
  uint64_t address, bytes;
  uint16_t owner;
  uint16_t zero[3];
};
static_assert(sizeof(RegionLayout) == 32 && sizeof(RegionLayout) <= sizeof(RegionKey::bytes));

uint32_t checksum(std::span<const std::byte> bytes) {  // FNV-1a
  uint32_t hash = 2166136261u;
  for (const std::byte byte : bytes) {
    hash = (hash ^ static_cast<uint32_t>(byte)) * 16777619u;
  }
  return hash;
}

uint32_t checksum_of(const AddressLayout& wire) {
  return checksum(std::as_bytes(std::span(&wire, 1)).subspan(8));
}

template <class Layout>
std::optional<Layout> take(std::span<const std::byte> data, uint32_t magic) {
  Layout wire{};
  if (data.size() < sizeof wire) {
    return std::nullopt;
  }
  std::memcpy(&wire, data.data(), sizeof wire);
  return wire.magic == magic ? std::optional(wire) : std::nullopt;
}

}  // namespace

Address encode_address(const Endpoint& endpoint) {
  AddressLayout wire{};
  wire.magic = kAddressMagic;
  wire.ipv4 = endpoint.subnet.address;
  wire.port = endpoint.port;
  wire.node = endpoint.node.value;
  wire.prefix = endpoint.subnet.prefix;
  wire.checksum = checksum_of(wire);
  const auto bytes = std::as_bytes(std::span(&wire, 1));
  return Address(bytes.begin(), bytes.end());
}

Result<Endpoint> decode_address(std::span<const std::byte> address) {
  const auto wire = take<AddressLayout>(address, kAddressMagic);
  if (!wire || address.size() != sizeof *wire || wire->checksum != checksum_of(*wire) || wire->port == 0 ||
      wire->prefix > 32) {
    return fail(Errc::kCorrupt,
                "not an address of the verbs transport, or damaged (do all nodes run one version?)");
  }
  return Endpoint{NodeId(wire->node), wire->port, {wire->ipv4, wire->prefix}};
}

std::array<std::byte, kHelloBytes> encode_hello(const Hello& hello) {
  const HelloLayout wire{kHelloMagic, hello.from.value, hello.to.value, hello.tag, hello.from_link, 0};
  return std::bit_cast<std::array<std::byte, kHelloBytes>>(wire);
}

std::optional<Hello> decode_hello(std::span<const std::byte> data) {
  const auto wire = take<HelloLayout>(data, kHelloMagic);
  if (!wire || wire->from == 0 || wire->from == wire->to || wire->from_link == 0) {
    return std::nullopt;
  }
  return Hello{NodeId(wire->from), NodeId(wire->to), wire->tag, wire->from_link};
}

std::array<std::byte, kWelcomeBytes> encode_welcome(const Welcome& welcome) {
  const WelcomeLayout wire{kWelcomeMagic, welcome.chunk_bytes, welcome.window, welcome.atomics, {}};
  return std::bit_cast<std::array<std::byte, kWelcomeBytes>>(wire);
}

std::optional<Welcome> decode_welcome(std::span<const std::byte> data) {
  const auto wire = take<WelcomeLayout>(data, kWelcomeMagic);
  if (!wire || wire->window == 0 || wire->window > kWindowMax) {
    return std::nullopt;
  }
  return Welcome{wire->window, wire->chunk_bytes, wire->atomics != 0};
}

RegionKey encode_region(const Region& region) {
  const RegionLayout wire{kRegionMagic, region.rkey, region.address, region.bytes, region.owner.value, {}};
  RegionKey key;
  std::memcpy(key.bytes.data(), &wire, sizeof wire);
  key.size = sizeof wire;
  return key;
}

std::optional<Region> decode_region(const RegionKey& key) {
  if (key.size != sizeof(RegionLayout)) {
    return std::nullopt;
  }
  const auto wire = take<RegionLayout>(key.bytes, kRegionMagic);
  if (!wire || wire->owner == 0 || wire->address + wire->bytes < wire->address) {
    return std::nullopt;
  }
  return Region{wire->address, wire->bytes, wire->rkey, NodeId(wire->owner)};
}

std::optional<uint64_t> within(const Region& region, uint64_t offset, uint64_t bytes) {
  if (offset > region.bytes || bytes > region.bytes - offset) {
    return std::nullopt;
  }
  return region.address + offset;
}

}  // namespace kevre::transport::verbs
