#include "cluster/handshake.h"

#include <arpa/inet.h>
#include <sodium.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>

#include "cluster/messages.h"

namespace kevre::cluster {

namespace {

constexpr char kMagic[8] = {'K', 'E', 'V', 'R', 'E', '\r', '\n', '\x1a'};
constexpr std::string_view kLabel = "kevre handshake";
constexpr size_t kAddressTextMax = 64;
constexpr size_t kTextMax = 1024;
static_assert(crypto_auth_BYTES == kProofBytes);

}  // namespace

Challenge random_challenge() {
  KEVRE_CHECK(sodium_init() >= 0, "libsodium does not start");
  Challenge challenge;
  randombytes_buf(challenge.data(), challenge.size());
  return challenge;
}

Handshake::Handshake(Role role, const Key& key, const Challenge& challenge)
    : role_(role), key_(key), challenge_(challenge) {}

Bytes Handshake::prelude() const {
  Writer out;
  out.raw(std::as_bytes(std::span(kMagic)));
  out.number(kProtocolVersion).number(static_cast<uint8_t>(role_)).raw(challenge_);
  return out.take();
}

Result<void> Handshake::take_prelude() {
  // Garbage is refused at its first wrong byte, not when 43 of them came.
  const size_t n = std::min(in_.size(), sizeof kMagic);
  if (std::memcmp(in_.data(), kMagic, n) != 0) {
    return fail(Errc::kCorrupt, "this is no kevre node: its first bytes are wrong");
  }
  if (in_.size() < sizeof kMagic + 2) {
    return {};
  }
  uint16_t version = 0;
  std::memcpy(&version, in_.data() + sizeof kMagic, 2);
  if (version != kProtocolVersion) {
    return fail(Errc::kUnsupported,
                "the other side speaks protocol {} and this one {}; install the same kevre on all nodes",
                version, kProtocolVersion);
  }
  if (in_.size() < kPreludeBytes) {
    return {};
  }
  const auto role = static_cast<Role>(in_[sizeof kMagic + 2]);
  if (role == role_ || (role != Role::kClient && role != Role::kServer)) {
    return fail(Errc::kCorrupt, "the other side plays the wrong role");
  }
  peer_challenge_.emplace();
  std::memcpy(peer_challenge_->data(), in_.data() + sizeof kMagic + 3, kChallengeBytes);
  in_.erase(in_.begin(), in_.begin() + kPreludeBytes);
  return {};
}

Result<void> Handshake::feed(std::span<const std::byte> bytes) {
  in_.insert(in_.end(), bytes.begin(), bytes.end());
  if (!peer_challenge_ && !in_.empty()) {
    KEVRE_TRY(take_prelude());
  }
  return {};
}

Handshake::Proof Handshake::prove(Role sender, uint32_t number, FrameType type,
                                  std::span<const std::byte> body) const {
  const Challenge& client = role_ == Role::kClient ? challenge_ : *peer_challenge_;
  const Challenge& server = role_ == Role::kClient ? *peer_challenge_ : challenge_;
  Writer said;
  said.raw(std::as_bytes(std::span(kLabel))).number(kProtocolVersion).number(static_cast<uint8_t>(sender));
  said.raw(client).raw(server).number(number).number(static_cast<uint8_t>(type)).raw(body);
  Proof proof;
  crypto_auth(proof.data(), reinterpret_cast<const unsigned char*>(said.view().data()), said.view().size(),
              key_.bytes.data());
  return proof;
}

Bytes Handshake::seal(FrameType type, std::span<const std::byte> body) {
  KEVRE_CHECK(open(), "sealed before the peer's prelude came");
  const Proof proof = prove(role_, frames_out_++, type, body);
  Writer out;
  out.number(static_cast<uint32_t>(1 + body.size() + kProofBytes))
      .number(static_cast<uint8_t>(type))
      .raw(body);
  out.raw(std::as_bytes(std::span(proof)));
  return out.take();
}

Bytes denied_frame() {
  Writer out;
  out.number(static_cast<uint32_t>(1 + kProofBytes)).number(static_cast<uint8_t>(FrameType::kDenied));
  out.raw(std::array<std::byte, kProofBytes>{});
  return out.take();
}

Result<std::optional<Frame>> Handshake::next() {
  if (!open() || in_.size() < 4) {
    return std::optional<Frame>{};
  }
  uint32_t length = 0;
  std::memcpy(&length, in_.data(), 4);
  const size_t length_max = proven() || role_ == Role::kClient ? kFrameBytesMax : kFirstFrameBytesMax;
  if (length < 1 + kProofBytes || length > length_max) {
    return fail(Errc::kCorrupt, "a frame of {} bytes", length);
  }
  if (in_.size() < 4 + size_t{length}) {
    return std::optional<Frame>{};
  }
  const std::span<const std::byte> all(in_.data() + 4, length);
  const auto type = static_cast<FrameType>(all[0]);
  const auto body = all.subspan(1, length - 1 - kProofBytes);
  const Role sender = role_ == Role::kClient ? Role::kServer : Role::kClient;
  const Proof expected = prove(sender, frames_in_, type, body);
  if (sodium_memcmp(expected.data(), all.data() + 1 + body.size(), kProofBytes) != 0) {
    return fail(Errc::kDenied, "the cluster keys of the two sides differ; copy the key file of the cluster");
  }
  if (type < FrameType::kHello || type > FrameType::kProbeReply) {
    return fail(Errc::kCorrupt, "a frame of unknown type {}", static_cast<int>(type));
  }
  ++frames_in_;
  Frame frame{type, Bytes(body.begin(), body.end())};
  in_.erase(in_.begin(), in_.begin() + 4 + static_cast<ptrdiff_t>(length));
  return std::optional<Frame>(std::move(frame));
}

bool good_name(std::string_view name) {
  return !name.empty() && name.size() <= 63 && name[0] != '.' && name[0] != '-' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.';
         });
}

Result<Endpoint> parse_endpoint(std::string_view text) {
  const size_t colon = text.rfind(':');
  Endpoint endpoint;
  in_addr ip{};
  unsigned port = 0;
  bool good = colon != std::string_view::npos;
  if (good) {
    const std::string_view digits = text.substr(colon + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
    good = error == std::errc{} && end == digits.data() + digits.size() && port <= 65535;
  }
  if (!good || ::inet_pton(AF_INET, std::string(text.substr(0, colon)).c_str(), &ip) != 1) {
    return fail(Errc::kInvalid, "'{}' is no address; write ADDRESS:PORT, for example 10.0.0.1:7711", text);
  }
  endpoint.ip = ip.s_addr;
  endpoint.port = static_cast<uint16_t>(port);
  return endpoint;
}

std::string to_text(const Endpoint& endpoint) {
  char text[INET_ADDRSTRLEN];
  const in_addr ip{endpoint.ip};
  ::inet_ntop(AF_INET, &ip, text, sizeof text);
  return fmt::format("{}:{}", text, endpoint.port);
}

Bytes encode(const Hello& hello) {
  Writer out;
  out.text(hello.name)
      .text(hello.address)
      .text(hello.transport_kind)
      .number(hello.pid_first)
      .number(hello.pid_last);
  return out.take();
}

Result<Hello> decode_hello(std::span<const std::byte> bytes) {
  Reader in(bytes);
  Hello hello;
  hello.name = in.text(kNameBytesMax);
  hello.address = in.text(kAddressTextMax);
  hello.transport_kind = in.text(kNameBytesMax);
  hello.pid_first = in.number<uint32_t>();
  hello.pid_last = in.number<uint32_t>();
  in.require(hello.name.empty() || good_name(hello.name));
  in.require(hello.pid_first <= hello.pid_last);
  if (!in.done()) {
    return fail(Errc::kCorrupt, "a malformed hello");
  }
  return hello;
}

Bytes encode(const Welcome& welcome) {
  Writer out;
  out.number(welcome.id.value).text(welcome.name);
  return out.take();
}

Result<Welcome> decode_welcome(std::span<const std::byte> bytes) {
  Reader in(bytes);
  Welcome welcome;
  welcome.id = NodeId(in.number<uint16_t>());
  welcome.name = in.text(kNameBytesMax);
  in.require(welcome.id != kNoNode && good_name(welcome.name));
  if (!in.done()) {
    return fail(Errc::kCorrupt, "a malformed welcome");
  }
  return welcome;
}

Bytes encode(const Refusal& refusal) {
  Writer out;
  out.number(static_cast<uint8_t>(refusal.code)).text(refusal.text);
  return out.take();
}

Result<Refusal> decode_refusal(std::span<const std::byte> bytes) {
  Reader in(bytes);
  Refusal refusal;
  const auto code = in.number<uint8_t>();
  in.require(code <= static_cast<uint8_t>(Errc::kSystem));
  refusal.code = static_cast<Errc>(code);
  refusal.text = in.text(kTextMax);
  if (!in.done()) {
    return fail(Errc::kCorrupt, "a malformed refusal");
  }
  return refusal;
}

Bytes encode(const Probe& probe) {
  return Writer().number(probe.from.value).number(probe.view.value).take();
}

Result<Probe> decode_probe(std::span<const std::byte> bytes) {
  Reader in(bytes);
  Probe probe;
  probe.from = NodeId(in.number<uint16_t>());
  probe.view = ViewId(in.number<uint32_t>());
  if (!in.done()) {
    return fail(Errc::kCorrupt, "a malformed probe");
  }
  return probe;
}

Bytes encode(const ProbeReply& reply) {
  return Writer()
      .number(reply.self.value)
      .number(reply.view.value)
      .number(static_cast<uint8_t>(reply.member))
      .take();
}

Result<ProbeReply> decode_probe_reply(std::span<const std::byte> bytes) {
  Reader in(bytes);
  ProbeReply reply;
  reply.self = NodeId(in.number<uint16_t>());
  reply.view = ViewId(in.number<uint32_t>());
  const auto member = in.number<uint8_t>();
  in.require(member <= 1);
  reply.member = member == 1;
  if (!in.done()) {
    return fail(Errc::kCorrupt, "a malformed answer to a probe");
  }
  return reply;
}

}  // namespace kevre::cluster
