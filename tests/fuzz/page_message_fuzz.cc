// Any bytes as page messages: the decoder refuses or returns what payload_pages() agrees with, and a
// directory that is fed what was let in neither crashes nor sends what the decoder would refuse.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "dsm/directory.h"

using kevre::NodeId;
using kevre::ViewId;
using kevre::dsm::Directory;
using kevre::dsm::Effect;
using kevre::dsm::PageMessage;

namespace {

// `answer`: what becomes of one-sided reads and closed pages.
void check_effects(Directory& directory, uint8_t answer, std::vector<Effect>& effects) {
  std::vector<Effect> answered;
  for (const Effect& effect : effects) {
    if (effect.kind == Effect::Kind::kSend || effect.kind == Effect::Kind::kSendFrames) {
      const std::byte* header = reinterpret_cast<const std::byte*>(&effect.message);
      const size_t bytes = static_cast<size_t>(kevre::dsm::payload_pages(effect.message)) * kevre::kPageBytes;
      KEVRE_CHECK(kevre::dsm::decode({header, sizeof(PageMessage)}, bytes).has_value());
    }
    if (effect.kind == Effect::Kind::kFetch || effect.kind == Effect::Kind::kClose) {
      answered.push_back(effect);
    }
  }
  effects.clear();
  for (const Effect& effect : answered) {
    if (effect.kind == Effect::Kind::kFetch) {
      directory.on_fetched(effect.message, (answer & 1) != 0 ? ~uint64_t{0} : answer, effects);
    } else if ((answer & 2) == 0) {
      directory.on_closed(effect.message, effects);
    }
    check_effects(directory, 0, effects);  // 0: nothing is fetched, so this comes to an end
  }
}

// Small values, so that messages meet the same few pages and nodes.
void tame(PageMessage& m) {
  m.version = 1;
  m.kind = static_cast<PageMessage::Kind>(static_cast<uint8_t>(m.kind) % 17);
  m.access = static_cast<kevre::dsm::Access>(static_cast<uint8_t>(m.access) % 3);
  m.flags = static_cast<uint8_t>(m.flags % 32);
  m.view = ViewId(m.view.value % 4);
  m.segment = kevre::SegmentId(m.segment.value % 3);
  m.page %= 130;
  m.mask %= 16;
  m.mask2 %= 16;
  m.requester = NodeId(m.requester.value % 5);
  m.reserved = 0;
  m.transaction %= 8;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const NodeId members[] = {NodeId(1), NodeId(2), NodeId(3)};
  const bool one_sided = size > 0 && (data[0] & 0x08) != 0;
  Directory directory({.self = NodeId(1), .one_sided = one_sided, .fetch_unseen = one_sided});
  std::vector<Effect> effects;
  directory.on_view(ViewId(1), members, {}, {}, effects);
  effects.clear();
  // Each record: one byte (who speaks, and what else happens), one header.
  constexpr size_t kRecord = 1 + sizeof(PageMessage);
  for (; size >= kRecord; data += kRecord, size -= kRecord) {
    const uint8_t act = data[0];
    PageMessage raw;
    std::memcpy(static_cast<void*>(&raw), data + 1, sizeof raw);
    if ((act & 0x80) != 0) {
      tame(raw);
    }
    const std::byte* header = reinterpret_cast<const std::byte*>(&raw);
    const kevre::Result<PageMessage> message =
        kevre::dsm::decode({header, sizeof(PageMessage)},
                           static_cast<size_t>(kevre::dsm::payload_pages(raw)) * kevre::kPageBytes);
    if (message.has_value()) {
      directory.on_message(NodeId(static_cast<uint16_t>(act % 4 + 1)), *message, effects);
      check_effects(directory, act, effects);
      if ((act & 0x10) != 0 && message->segment.value != 0) {
        directory.on_fault(message->segment, message->page,
                           (act & 0x20) != 0 ? kevre::dsm::Access::kWrite : kevre::dsm::Access::kRead, act,
                           effects);
        check_effects(directory, act, effects);
      }
      if ((act & 0x40) != 0 && message->segment.value != 0) {
        directory.on_hold_over(message->segment, message->page, effects);
        check_effects(directory, act, effects);
      }
    }
    if (act >= 0xfc) {
      directory.on_view(message.has_value() ? message->view : ViewId(2),
                        std::span(members).first(act == 0xfc ? 2 : 3),
                        std::span(members).last(act == 0xfc ? 1 : 0), {}, effects);
      check_effects(directory, act, effects);
    }
  }
  return 0;
}
