// Pages by one-sided read: what is published, who knows of it, and what comes of a fetch. Why what was fetched is
// current: dsm/protocol.h. Nothing there depends on the hints: a fetch of a page that is not published fails and the
// page is asked for, which costs a round trip. So hints may be old, and are guessed.
#include <algorithm>
#include <bit>

#include "dsm/directory_parts.h"

namespace kevre::dsm {

using Kind = PageMessage::Kind;
using Work = HomePage::Work;

namespace {
constexpr uint8_t kLuckMax = 3, kLuckToGuess = 2;
constexpr int kHintsToGuess = 48;
}  // namespace

// The pages of a grant are published with it where others may come for them one-sided: at the home, or at a sharer
// that gave them to somebody else than the home. The grant tells those who may read here what else is published.
void Directory::Parts::publish(Effect& send) {
  PageMessage& m = send.message;
  const NodeId home = home_of(m.segment, m.page);
  if (home == self || send.to != home) {
    send.publish = true;
    for (uint64_t rest = m.mask; rest != 0; rest &= rest - 1) {
      const uint64_t page = m.page + static_cast<uint64_t>(std::countr_zero(rest));
      CopyWindow& w = copy_window(m.segment, page);
      w.published |= uint64_t{1} << (page % kWindowPages);
      w.unsafe |= uint64_t{1} << (page % kWindowPages);
    }
  }
  if (home == self || send.to == home) {
    m.mask2 = copy_window(m.segment, m.page).published;
  }
}

void Directory::Parts::unpublish(SegmentId segment, uint64_t page) {
  if (one_sided) {
    copy_window(segment, page).published &= ~(uint64_t{1} << (page % kWindowPages));
  }
}

void Directory::Parts::keep_hints(NodeId from, const PageMessage& grant) {
  const NodeId home = home_of(grant.segment, grant.page);
  if (!one_sided || grant.mask2 == 0 || from == self || (from != home && home != self)) {
    return;
  }
  CopyWindow& w = copy_window(grant.segment, grant.page);
  w.publisher = from;
  w.hints = grant.mask2;
  const bool others_read = (grant.mask2 & ~(grant.mask << (grant.page % kWindowPages))) != 0;
  if (others_read && w.luck == 1) {
    w.luck = kLuckToGuess;
  }
}

// What may be fetched from `publisher`: bit i is page + i, up to the end of the window. A window about which nothing was
// heard is as published as the one before it, where that was worth the while.
uint64_t Directory::Parts::hinted(SegmentId segment, uint64_t page, NodeId publisher) {
  const uint64_t shift = page % kWindowPages;
  CopyWindow& w = copy_window(segment, page);
  if (fetch_unseen) {
    return ~uint64_t{0} >> shift;
  }
  if (w.publisher == kNoNode && page % kChunkPages >= kWindowPages) {
    const auto& windows = segments[segment].copies;
    const auto before = windows.find(page / kWindowPages - 1);
    if (before != windows.end() && before->second->publisher == publisher &&
        before->second->luck >= kLuckToGuess && std::popcount(before->second->hints) >= kHintsToGuess) {
      w.publisher = publisher;
      w.hints = ~uint64_t{0};
    }
  }
  return w.publisher == publisher ? w.hints >> shift : 0;
}

// A program waits for a read copy of this page, and this node is not its home. False: it has to be asked for.
bool Directory::Parts::fetch(SegmentId segment, uint64_t page, uint32_t ahead) {
  const NodeId home = home_of(segment, page);
  if (!one_sided || home == self) {
    return false;
  }
  const uint64_t hints = hinted(segment, page, home);
  if ((hints & 1) == 0) {
    return false;
  }
  uint64_t mask = 1;
  const uint64_t end = std::min<uint64_t>(ahead + uint64_t{1}, kWindowPages - page % kWindowPages);
  for (uint64_t i = 1; i < end; ++i) {
    const CopyPage& next = copy(segment, page + i);
    const bool open = next.state == Access::kNone && next.issued == Access::kNone && next.fetch == 0;
    mask |= open && !next.lost ? hints & uint64_t{1} << i : 0;
  }
  ++counters.read_faults;
  start_fetch(segment, page, mask, home, ++transactions, true);
  return true;
}

// The home itself reads: of the pages in `mask`, which it is about to ask `source` to send, those that it fetches. They
// are at work as if they had been asked for.
uint64_t Directory::Parts::fetch_home(SegmentId segment, uint64_t page, uint64_t mask, NodeId source) {
  const uint64_t candidates = mask & hinted(segment, page, source);
  uint64_t chosen = 0;
  for (uint64_t rest = candidates; rest != 0; rest &= rest - 1) {
    const uint64_t other = page + static_cast<uint64_t>(std::countr_zero(rest));
    const CopyPage& c = copy(segment, other);
    const bool open = c.state == Access::kNone && c.fetch == 0 && !c.lost;
    chosen |= open && home_page(segment, other).owner == kNoNode ? rest & (~rest + 1) : 0;
  }
  if (chosen != 0) {
    const uint32_t transaction = start_forward(segment, page, chosen, source, self, Access::kRead);
    start_fetch(segment, page, chosen, source, transaction, false);
  }
  return chosen;
}

void Directory::Parts::start_fetch(SegmentId segment, uint64_t page, uint64_t mask, NodeId from,
                                   uint32_t transaction, bool note) {
  PageMessage m = message(Kind::kReading, segment, page, mask);
  m.transaction = transaction;
  for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
    copy(segment, page + static_cast<uint64_t>(std::countr_zero(rest))).fetch = transaction;
  }
  Effect& effect = emit(Effect::Kind::kFetch, segment, page, mask);
  effect.to = from;
  effect.message = m;
  effect.note = note && bug != Options::Bug::kNoteAfterRead;
  if (note && !effect.note) {
    post(from, m);
  }
}

// The home has revoked the page: what a fetch brings may be older than what comes after.
void Directory::Parts::spoil(SegmentId segment, uint64_t page, CopyPage& c) {
  if (!one_sided || bug == Options::Bug::kSpoiledFetchInstalled) {
    return;
  }
  CopyWindow& w = copy_window(segment, page);
  if (c.fetch == 0 && w.luck > 0) {
    return;  // it may well be published again before it is read here again
  }
  w.hints &= ~(uint64_t{1} << (page % kWindowPages));
  if (c.fetch != 0) {
    c.fetch = 0;
    ++counters.fetches_failed;
    if (c.want != Access::kNone && c.issued == Access::kNone) {
      issue(segment, page, c, 0, false);
    }
  }
}

void Directory::Parts::fetched(const PageMessage& asked, uint64_t arrived) {
  if (asked.view != view || phase != Phase::kReady || destroyed(asked.segment)) {
    return;  // whoever still waits has asked again, or is told when the new view is ready
  }
  uint64_t ours = 0;
  for (uint64_t rest = asked.mask; rest != 0; rest &= rest - 1) {
    CopyPage& c = copy(asked.segment, asked.page + static_cast<uint64_t>(std::countr_zero(rest)));
    if (c.fetch == asked.transaction && c.state == Access::kNone) {
      c.fetch = 0;
      ours |= rest & (~rest + 1);
    }
  }
  const uint64_t install = ours & arrived, failed = ours & ~arrived;
  CopyWindow& w = copy_window(asked.segment, asked.page);
  if (failed != 0) {
    w.hints &= ~(failed << (asked.page % kWindowPages));
    w.luck = static_cast<uint8_t>(w.luck - (w.luck > 0 ? 1 : 0));
  } else if (install != 0) {
    w.luck = kLuckMax;
  }
  counters.pages_fetched += static_cast<uint64_t>(std::popcount(install));
  counters.fetches_failed += static_cast<uint64_t>(std::popcount(failed));
  for (uint64_t rest = install; rest != 0; rest &= rest - 1) {
    copy(asked.segment, asked.page + static_cast<uint64_t>(std::countr_zero(rest))).state = Access::kRead;
  }
  if (install != 0) {
    Effect& effect = emit(Effect::Kind::kInstall, asked.segment, asked.page, install);
    effect.access = Access::kRead;
    effect.message = asked;
  }
  for (uint64_t rest = install; rest != 0; rest &= rest - 1) {
    const uint64_t page = asked.page + static_cast<uint64_t>(std::countr_zero(rest));
    settle(asked.segment, page, copy(asked.segment, page));
  }
  if (home_of(asked.segment, asked.page) == self) {
    return fetched_home(asked, install);
  }
  for (uint64_t rest = failed; rest != 0; rest &= rest - 1) {
    const uint64_t page = asked.page + static_cast<uint64_t>(std::countr_zero(rest));
    CopyPage& c = copy(asked.segment, page);
    if (c.want != Access::kNone && c.issued == Access::kNone && c.fetch == 0) {
      const int ahead = 63 - std::countl_zero(rest) - std::countr_zero(rest);
      issue(asked.segment, page, c, static_cast<uint32_t>(ahead), false);
    }
  }
}

// The home goes on: with what came as if kDone had come, the rest is sent by the sharer after all.
void Directory::Parts::fetched_home(const PageMessage& asked, uint64_t installed) {
  NodeId source;
  uint64_t missing = 0;
  for (uint64_t rest = asked.mask & ~installed; rest != 0; rest &= rest - 1) {
    const uint64_t page = asked.page + static_cast<uint64_t>(std::countr_zero(rest));
    const HomePage& h = home_page(asked.segment, page);
    if (h.work == Work::kForwarded && h.transaction == asked.transaction && h.requester == self) {
      missing |= rest & (~rest + 1);
      source = h.source;
    }
  }
  if (missing != 0) {
    post_forward(asked.segment, asked.page, missing, source, self, Access::kRead, asked.transaction);
  }
  if (installed != 0) {
    PageMessage done = message(Kind::kDone, asked.segment, asked.page, installed);
    done.transaction = asked.transaction;
    post(self, done);
  }
}

}  // namespace kevre::dsm
