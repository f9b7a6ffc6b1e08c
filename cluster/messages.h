// Messages between members (transport service kCluster): heartbeats with suspicions, and the agreement on
// views. membership.h says what they mean. One decoder, which refuses whatever encode() cannot have made.
// Threads: any (values). Tested in tests/cluster/handshake_test.cc, fuzzed in tests/fuzz/handshake_fuzz.cc.
#pragma once

#include <compare>
#include <span>
#include <vector>

#include "base/result.h"
#include "cluster/codec.h"
#include "cluster/view.h"

namespace kevre::cluster {

inline constexpr size_t kMembersMax = 1024;
inline constexpr size_t kNameBytesMax = 63;

// Why a node is believed to be gone, from weak to strong.
enum class Evidence : uint8_t {
  kNone = 0,
  kSilent = 1,  // nothing heard for failure_timeout, and its port does not answer
  kBroken = 2,  // the connection broke although both sides live: one of the two must go
  kDead = 3,    // its kernel says that nobody listens on its port any more
};

// Orders the attempts to decide one view. Round 0 belongs to the coordinator alone.
struct Ballot {
  uint32_t round = 0;
  NodeId proposer;
  friend constexpr auto operator<=>(const Ballot&, const Ballot&) = default;
};

struct Suspicion {
  NodeId node;
  Evidence evidence = Evidence::kNone;
};

enum class MessageType : uint8_t {
  kHeartbeat = 1,  // view, suspicions
  kPrepare = 2,    // view id, ballot
  kPromise = 3,    // view id, ballot; accepted (ballot and view) if any
  kAccept = 4,     // ballot, view
  kAccepted = 5,   // view id, ballot
  kCommit = 6,     // view: decided
  kFetch = 7,      // view id: send me what was decided after it
  kLeave = 8,      // I want to leave
  kStable = 9,     // view id: I have handed over for this view
};

struct Message {
  MessageType type = MessageType::kHeartbeat;
  ViewId view_id;  // kHeartbeat, kFetch, kLeave: the sender's view; else the view that is decided
  Ballot ballot;
  std::vector<Suspicion> suspicions;
  bool has_view = false;
  Ballot view_ballot;  // kPromise: under which `view` was accepted
  View view;
};

void write_view(Writer& out, const View& view);
View read_view(Reader& in);
Bytes encode(const View& view);
Result<View> decode_view(std::span<const std::byte> bytes);

Bytes encode(const Message& message);
Result<Message> decode_message(std::span<const std::byte> bytes);

}  // namespace kevre::cluster
