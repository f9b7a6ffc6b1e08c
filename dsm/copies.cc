// The copies part: what this node itself holds, what its programs wait for, and the holding times.
//
// Holding. A page that a program waited for is not given away before on_hold_over; a kRevoke or kForward that
// comes earlier is kept (one at most for a page: its home works on one request at a time). Write grants are
// held so that a node gets work done between two transfers. Read grants are held too, although only until the
// waiting program ran: without that a reader could be revoked each time between the arrival of the page and
// its next instruction, and an instruction that needs two pages (a copy from one to the other) could lose
// each while it fetches the other, on all nodes at once, for ever. A read that was fetched ahead is not held:
// nobody waits for it. Holding cannot block: it ends by itself, and its end needs no other page and no other
// node.
//
// A fetch (fetch.cc) is no request: the home knows of it only by its note. So while one is under way nothing else is asked
// for the page, kRevoke spoils it and is answered at once, and so does the arrival of the page by message.
//
// Faults and grants cross: a page may arrive that was not asked for (fetched ahead), or be asked for while it
// is already on its way. The arrival resolves what it suffices for; the home drops the request that has
// become empty (home.cc, 3).
#include <algorithm>
#include <bit>

#include "dsm/directory_parts.h"

namespace kevre::dsm {

using Kind = PageMessage::Kind;
using Deferred = CopyPage::Deferred;

void Directory::Parts::fault(SegmentId segment, uint64_t page, Access want, uint32_t ahead) {
  CopyPage& c = copy(segment, page);
  if (want == Access::kNone || c.state >= want || c.want >= want) {
    return;
  }
  if (c.lost || destroyed(segment) || phase == Phase::kOutside || (phase == Phase::kReady && !member_self)) {
    if (phase != Phase::kOutside || view.value != 0) {
      return poison(segment, page, c);
    }
  }
  if (c.want == Access::kNone) {
    ++wants_open;
  }
  c.want = want;
  if (c.issued == Access::kNone && c.fetch == 0) {
    issue(segment, page, c, want == Access::kRead ? ahead : 0);
  }
}

// Asks the home. Between views nothing is asked; became_ready() asks for all that is still wanted. A node
// that has not seen the view in which the segment was born waits too: what it touched in an older one would
// count as never touched.
void Directory::Parts::issue(SegmentId segment, uint64_t page, CopyPage& c, uint32_t ahead, bool may_fetch) {
  if (phase != Phase::kReady || !member_self || born(segment) > view) {
    return;
  }
  if (may_fetch && c.want == Access::kRead && fetch(segment, page, ahead)) {
    return;
  }
  c.issued = c.want;
  const bool write = c.want == Access::kWrite;
  PageMessage m = message(write ? Kind::kWriteRequest : Kind::kReadRequest, segment, page, 1);
  if (write) {
    ++counters.write_faults;
    if (c.state == Access::kRead) {
      m.flags = PageMessage::kHasCopy;
      ++counters.upgrades;
    }
  } else {
    ++counters.read_faults;
    const uint64_t in_chunk = kChunkPages - page % kChunkPages;
    const uint64_t end = std::min<uint64_t>({ahead + uint64_t{1}, in_chunk, kPagesMax - page, 64});
    for (uint64_t i = 1; i < end; ++i) {
      const CopyPage* next = find_copy(segment, page + i);
      if (next == nullptr || (next->state == Access::kNone && next->issued == Access::kNone && next->fetch == 0 && !next->lost)) {
        m.mask |= uint64_t{1} << i;
      }
    }
  }
  post(home_of(segment, page), m);
}

// kGrant and kHandOver. `late`: left in the channel by an older view; then there is no home to tell.
void Directory::Parts::accept_pages(NodeId from, const PageMessage& m, bool late) {
  const bool gone = destroyed(m.segment);
  uint64_t install = 0;
  for (uint64_t rest = gone ? 0 : m.mask; rest != 0; rest &= rest - 1) {
    const int i = std::countr_zero(rest);
    CopyPage& c = copy(m.segment, m.page + static_cast<uint64_t>(i));
    c.fetch = 0;
    if (c.lost) {
      ++counters.ignored;
    } else if (m.has(PageMessage::kNoBytes)) {
      if (c.state == Access::kRead) {
        c.state = Access::kWrite;
        unpublish(m.segment, m.page + static_cast<uint64_t>(i));
        emit(Effect::Kind::kUpgrade, m.segment, m.page + static_cast<uint64_t>(i), 1).access = Access::kWrite;
      } else {
        ++counters.ignored;
      }
    } else if (c.state == Access::kNone) {  // never over a copy that is here: it may be newer
      c.state = m.access;
      install |= uint64_t{1} << i;
    }
  }
  if (!gone && !late) {
    keep_hints(from, m);
  }
  if (install != 0) {
    Effect& effect = emit(Effect::Kind::kInstall, m.segment, m.page, install);
    effect.access = m.access;
    effect.zero = m.has(PageMessage::kZero);
    effect.message = m;
  }
  for (uint64_t rest = gone ? 0 : m.mask; rest != 0; rest &= rest - 1) {
    const uint64_t page = m.page + static_cast<uint64_t>(std::countr_zero(rest));
    settle(m.segment, page, copy(m.segment, page));
  }
  if (m.has(PageMessage::kFromOwner) && !late) {
    PageMessage done = message(Kind::kDone, m.segment, m.page, m.mask);
    done.transaction = m.transaction;
    post(home_of(m.segment, m.page), done);
  }
}

// After pages came: who waited is served, what is still missing is asked for.
void Directory::Parts::settle(SegmentId segment, uint64_t page, CopyPage& c) {
  if (c.state == Access::kNone) {
    return;
  }
  if (c.issued <= c.state) {
    c.issued = Access::kNone;
  }
  const bool waited = c.want != Access::kNone;
  if (waited && c.want <= c.state) {
    c.want = Access::kNone;
    --wants_open;
  }
  if (hold && (waited || c.state == Access::kWrite)) {
    c.held = true;
    emit(Effect::Kind::kStartHold, segment, page, 1).access = c.state;
  }
  if (c.want != Access::kNone && c.issued == Access::kNone) {
    issue(segment, page, c, 0);
  }
}

void Directory::Parts::copies_revoke(NodeId from, const PageMessage& m) {
  if (home_of(m.segment, m.page) != from) {
    ++counters.ignored;
    return;
  }
  CopyPage& c = copy(m.segment, m.page);
  if (c.state == Access::kWrite) {
    ++counters.ignored;  // a home that lets this node write has nothing to revoke
  } else if (c.state == Access::kRead && c.held) {
    c.deferred = Deferred::kRevoke;
    ++counters.deferred;
    c.transaction = m.transaction;
  } else {
    revoke_now(m.segment, m.page, c, m.transaction);
  }
}

void Directory::Parts::revoke_now(SegmentId segment, uint64_t page, CopyPage& c, uint32_t transaction) {
  PageMessage m = message(Kind::kRevoked, segment, page, 1);
  m.transaction = transaction;
  const bool drop = c.state == Access::kRead;
  c.state = Access::kNone;
  unpublish(segment, page);
  if (drop && bug == Options::Bug::kAckBeforeDrop) {
    late_drops.push_back({segment, page});
  } else if (drop) {
    emit(Effect::Kind::kDrop, segment, page, 1);
  }
  if (bug == Options::Bug::kDropInvalidationAck && !ack_dropped) {
    ack_dropped = true;
    return;
  }
  post(home_of(segment, page), m);
  spoil(segment, page, c);
}

void Directory::Parts::copies_forward(NodeId from, const PageMessage& m) {
  if (home_of(m.segment, m.page) != from || m.requester == self || !is_member(m.requester)) {
    ++counters.ignored;
    return;
  }
  if (destroyed(m.segment)) {
    return answer_lost(m.requester, m.segment, m.page);
  }
  const bool take = m.access == Access::kWrite;
  uint64_t keep = 0, down = 0, taken = 0;
  for (uint64_t rest = m.mask; rest != 0; rest &= rest - 1) {
    const uint64_t bit = rest & (~rest + 1);
    CopyPage& c = copy(m.segment, m.page + static_cast<uint64_t>(std::countr_zero(rest)));
    if (c.state == Access::kNone) {
      ++counters.ignored;
    } else if (c.held && (take || c.state == Access::kWrite)) {
      c.deferred = take ? Deferred::kWrite : Deferred::kRead;
      ++counters.deferred;
      c.requester = m.requester;
      c.transaction = m.transaction;
    } else {
      (take ? taken : c.state == Access::kWrite ? down : keep) |= bit;
    }
  }
  send_pages(m.segment, m.page, keep, Effect::Frame::kKeep, m.requester, m.transaction);
  send_pages(m.segment, m.page, down, Effect::Frame::kDowngrade, m.requester, m.transaction);
  send_pages(m.segment, m.page, taken, Effect::Frame::kTake, m.requester, m.transaction);
}

void Directory::Parts::send_pages(SegmentId segment, uint64_t page, uint64_t mask, Effect::Frame frame,
                                  NodeId requester, uint32_t transaction) {
  if (mask == 0) {
    return;
  }
  const bool take = frame == Effect::Frame::kTake;
  for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
    const uint64_t sent = page + static_cast<uint64_t>(std::countr_zero(rest));
    copy(segment, sent).state = take ? Access::kNone : Access::kRead;
    if (take) {
      unpublish(segment, sent);
    }
  }
  const bool home_here = home_of(segment, page) == self;
  PageMessage m = message(Kind::kGrant, segment, page, mask);
  m.access = take ? Access::kWrite : Access::kRead;
  m.transaction = transaction;
  m.flags = home_here ? 0 : PageMessage::kFromOwner;
  Effect& effect = emit(Effect::Kind::kSendFrames, segment, page, mask);
  effect.frame = frame;
  effect.to = requester;
  effect.message = m;
  if (one_sided && !take) {
    publish(effect);
  }
  if (home_here) {
    // The home's own channel to the requester carries the pages: what it sends later arrives later.
    PageMessage done = message(Kind::kDone, segment, page, mask);
    done.transaction = transaction;
    inbox.push_back({requester, done});
  }
}

void Directory::Parts::hold_over(SegmentId segment, uint64_t page) {
  if (find_copy(segment, page) == nullptr) {
    return;
  }
  CopyPage& c = copy(segment, page);
  c.held = false;
  const Deferred deferred = c.deferred;
  c.deferred = Deferred::kNothing;
  switch (deferred) {
    case Deferred::kNothing:
      break;
    case Deferred::kRevoke:
      revoke_now(segment, page, c, c.transaction);
      break;
    case Deferred::kRead:
      send_pages(segment, page, 1,
                 c.state == Access::kWrite ? Effect::Frame::kDowngrade : Effect::Frame::kKeep, c.requester,
                 c.transaction);
      break;
    case Deferred::kWrite:
      send_pages(segment, page, 1, Effect::Frame::kTake, c.requester, c.transaction);
      break;
  }
}

void Directory::Parts::copies_lost(const PageMessage& m) {
  CopyPage& c = copy(m.segment, m.page);
  if (c.state != Access::kNone || c.want == Access::kNone) {
    ++counters.ignored;
    return;
  }
  poison(m.segment, m.page, c);
}

void Directory::Parts::poison(SegmentId segment, uint64_t page, CopyPage& c) {
  if (c.want != Access::kNone) {
    --wants_open;
  }
  c.want = Access::kNone;
  c.issued = Access::kNone;
  c.fetch = 0;
  c.lost = true;
  emit(Effect::Kind::kPoison, segment, page, 1);
}

}  // namespace kevre::dsm
