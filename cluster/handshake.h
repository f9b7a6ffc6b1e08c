// Handshake: what two kevred say to each other on the daemon's TCP port, as a state machine over bytes (no
// socket).
//
// Each side sends a prelude {magic, version, role, 32 byte challenge}; after that only sealed frames:
//
//   length u32 | type u8 | body | proof 32      length counts type, body and proof
//   proof = HMAC(key, label | version | sender's role | client's challenge | server's challenge | frame
//   number | type | body)
//
// so a frame proves the key and its own content in one. A proof can be neither replayed (both challenges are
// fresh), nor reflected (the sender's role is in it), nor reordered (the frame number is in it). Not one byte
// of a body is looked at before its proof held; until the first proof a peer can make us keep
// kFirstFrameBytesMax bytes, no more. Frames are authenticated, not secret: names, addresses and views are no
// secrets, the key never travels.
//
//   client: prelude ------>            <------ prelude :server
//           kHello  ------>            <------ kWelcome (id) | kRefusal (why) | kRedirect (coordinator's
//           address) kReady (transport address) ------> <------ kAdmitted (view) | kRefusal kProbe (who asks)
//           ------>          <------ kProbeReply (who answers, is the asker a member)
//
// A server that cannot verify a proof answers kDenied, whose body and proof are empty, and closes: the client
// learns nothing but that the keys differ. Owns: nothing. Threads: one owner. Tested in
// tests/cluster/handshake_test.cc, fuzzed in tests/fuzz/handshake_fuzz.cc.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>

#include "base/ids.h"
#include "base/result.h"
#include "cluster/codec.h"
#include "cluster/key.h"
#include "cluster/view.h"

namespace kevre::cluster {

inline constexpr uint16_t kProtocolVersion = 1;
inline constexpr size_t kChallengeBytes = 32;
inline constexpr size_t kProofBytes = 32;
inline constexpr size_t kPreludeBytes = 8 + 2 + 1 + kChallengeBytes;
inline constexpr size_t kFirstFrameBytesMax = 4096;
inline constexpr size_t kFrameBytesMax = size_t{8}
                                         << 20;  // a view of 1024 members with their transport addresses

enum class Role : uint8_t { kClient = 1, kServer = 2 };
enum class FrameType : uint8_t {
  kHello = 1,
  kWelcome = 2,
  kReady = 3,
  kAdmitted = 4,
  kRefusal = 5,
  kRedirect = 6,
  kProbe = 7,
  kProbeReply = 8,
  kDenied = 9,
};

struct Frame {
  FrameType type = FrameType::kRefusal;
  Bytes body;
};

using Challenge = std::array<std::byte, kChallengeBytes>;
Challenge random_challenge();

// One side of one connection.
class Handshake {
 public:
  Handshake(Role role, const Key& key, const Challenge& challenge);

  Bytes prelude() const;  // send this first
  // Bytes of the peer. An error is final (close the connection): kCorrupt (garbage), kUnsupported (another
  // version), kDenied (another key).
  Result<void> feed(std::span<const std::byte> bytes);
  // The next frame whose proof held.
  Result<std::optional<Frame>> next();
  bool open() const {
    return peer_challenge_.has_value();
  }                                               // the peer's prelude is here: seal() may be called
  bool proven() const { return frames_in_ > 0; }  // the peer has the key
  Bytes seal(FrameType type, std::span<const std::byte> body);

 private:
  using Proof = std::array<unsigned char, kProofBytes>;
  Proof prove(Role sender, uint32_t number, FrameType type, std::span<const std::byte> body) const;
  Result<void> take_prelude();

  Role role_;
  Key key_;
  Challenge challenge_;
  std::optional<Challenge> peer_challenge_;
  uint32_t frames_in_ = 0, frames_out_ = 0;
  Bytes in_;
};

Bytes denied_frame();

// Bodies. Each decode takes exactly what its encode makes; anything else is kCorrupt.
struct Hello {
  std::string name;     // empty: the coordinator chooses
  std::string address;  // where this node listens
  std::string transport_kind;
  uint32_t pid_first = 0, pid_last = 0;
};
struct Welcome {
  NodeId id;
  std::string name;
};
struct Refusal {
  Errc code = Errc::kDenied;
  std::string text;
};
struct Probe {
  NodeId from;
  ViewId view;
};
struct ProbeReply {
  NodeId self;
  ViewId view;
  bool member = false;  // the asker is a member of the answerer's view
};

Bytes encode(const Hello& hello);
Bytes encode(const Welcome& welcome);
Bytes encode(const Refusal& refusal);
Bytes encode(const Probe& probe);
Bytes encode(const ProbeReply& reply);
Result<Hello> decode_hello(std::span<const std::byte> bytes);
Result<Welcome> decode_welcome(std::span<const std::byte> bytes);
Result<Refusal> decode_refusal(std::span<const std::byte> bytes);
Result<Probe> decode_probe(std::span<const std::byte> bytes);
Result<ProbeReply> decode_probe_reply(std::span<const std::byte> bytes);

// A node's name: letters, digits, '-', '_', '.'; at most 63; so it is a hostname and a folder's name too.
bool good_name(std::string_view name);

// "ADDRESS:PORT" and back. IPv4 only, as the transport.
struct Endpoint {
  uint32_t ip = 0;  // network order
  uint16_t port = 0;
};
Result<Endpoint> parse_endpoint(std::string_view text);
std::string to_text(const Endpoint& endpoint);

}  // namespace kevre::cluster
