// Everything that a stranger or a member can send to the cluster layer: bytes on the daemon's port, as they
// come and as frames of a peer that has the key, and messages between members, given to a real state machine.
#include "cluster/handshake.h"
#include "cluster/membership.h"
#include "cluster/messages.h"

using namespace kevre::cluster;  // a fuzz target has no other names

namespace {

// A proven peer may send any body in any frame.
void feed_frames(std::span<const std::byte> input) {
  static const Key key{};
  Handshake server(Role::kServer, key, Challenge{});
  Handshake client(Role::kClient, key, Challenge{});
  (void)server.feed(client.prelude());
  (void)client.feed(server.prelude());
  (void)server.feed(client.seal(FrameType::kHello, input));
  const auto frame = server.next();
  KEVRE_CHECK(frame && frame->has_value());
  if (const auto hello = decode_hello((*frame)->body)) {
    KEVRE_CHECK(decode_hello(encode(*hello)));
  }
  (void)decode_welcome(input);
  (void)decode_refusal(input);
  (void)decode_probe(input);
  (void)decode_probe_reply(input);
  if (const auto view = decode_view(input)) {
    KEVRE_CHECK(decode_view(encode(*view)));
  }
}

void feed_membership(std::span<const std::byte> input) {
  const auto message = decode_message(input);
  if (!message) {
    return;
  }
  KEVRE_CHECK(encode(*decode_message(encode(*message))) == encode(*message));
  View view;
  view.id = kevre::ViewId(1);
  view.newest = kevre::NodeId(3);
  for (uint16_t i = 1; i <= 3; ++i) {
    view.members.push_back({kevre::NodeId(i), "n" + std::to_string(i), "", {}, 0, 0});
  }
  Membership membership({kevre::NodeId(2), 1000}, view, 0);
  Membership::Effects effects;
  membership.on_message(kevre::NodeId(1), *message, 1, effects);
  membership.on_message(kevre::NodeId(3), *message, 2, effects);
  membership.tick(3, effects);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data), size);
  Handshake raw(Role::kServer, Key{}, Challenge{});
  if (raw.feed(input)) {
    (void)raw.next();
  }
  feed_frames(input.first(std::min<size_t>(size, 2000)));
  feed_membership(input);
  return 0;
}
