// The home part: rules the pages of this node's chunks. It works on one request of a page at a time; the others
// wait in the order in which they came, at most one for each node.
//
// Why no two nodes can disagree about a page (every "channel" is ordered, the inbox of this node included):
//   1. A write is granted only when every other copy has been given up: kRevoked is sent after the copy is
//      dropped, and the last copy moves with the grant (kTake), it is never in two places.
//   2. What the home believes of a holder is what the holder has, or will have before it reads the home's next
//      message: the home's own grants travel on the same channel as its later kRevoke and kForward; grants by
//      others keep the page at work until kDone says that they arrived.
//   3. So a request may be judged by the home's own lists. A write request of a sharer is an upgrade without
//      bytes, whatever kHasCopy says: if the sharer had dropped its copy meanwhile, its kRevoked would have come
//      first and it would be no sharer. A request of a node that has what it asks for needs no answer: it was
//      sent before the grant was read, and the reading resolves it. (If the node had lost the grant again by a
//      kRevoke before it asked, its kRevoked would have come first.)
//   4. Nobody waits for ever: a holder answers kRevoke and kForward at once or after the holding time, which is
//      finite and waits for nobody; each work awaits only such answers; a page's queue is first come, first
//      served. A node that is gone answers nothing: then a change of view ends the work (rebuild.cc).
//   5. A node that fetched a page one-sided holds a copy that is in no list but, perhaps, `noted`: dsm/protocol.h says why
//      every such copy is revoked before a write is granted. Noted nodes become sharers when the revoking begins,
//      and only then: a node that is only noted is sent no kForward, and granted no upgrade.
#include <algorithm>
#include <bit>

#include "dsm/directory_parts.h"

namespace kevre::dsm {

using Kind = PageMessage::Kind;
using Work = HomePage::Work;

namespace {
bool awaits_revoked(const HomePage& h, NodeId sharer) {
  return sharer != h.source && !(h.upgrade && sharer == h.requester);
}
}  // namespace

void Directory::Parts::home_request(NodeId from, const PageMessage& m) {
  if (destroyed(m.segment)) {
    return answer_lost(from, m.segment, m.page);
  }
  if (!is_member(from) || home_of(m.segment, m.page) != self) {
    ++counters.ignored;
    return;
  }
  HomePage& h = home_page(m.segment, m.page);
  if (m.kind == Kind::kReadRequest || !m.has(PageMessage::kHasCopy)) {
    h.noted.remove(from);  // nothing comes any more of what it has noted (protocol.h)
  }
  const Waiting entry{from, m.kind == Kind::kReadRequest ? Access::kRead : Access::kWrite, m.mask, 0};
  // Before the rebuild is complete requests wait: another node may be ready earlier.
  if (phase != Phase::kReady || h.work != Work::kIdle || h.queue_first != 0) {
    return enqueue(h, entry);
  }
  serve(m.segment, m.page, h, entry);
}

void Directory::Parts::enqueue(HomePage& h, const Waiting& entry) {
  for (uint32_t i = h.queue_first; i != 0; i = waiting[i].next) {
    if (waiting[i].node == entry.node) {
      waiting[i].want = std::max(waiting[i].want, entry.want);
      waiting[i].mask |= entry.mask;
      return;
    }
  }
  uint32_t slot = waiting_free;
  if (slot != 0) {
    waiting_free = waiting[slot].next;
  } else {
    slot = static_cast<uint32_t>(waiting.size());
    waiting.emplace_back();
  }
  waiting[slot] = entry;
  if (h.queue_first == 0) {
    h.queue_first = slot;
  } else {
    waiting[h.queue_last].next = slot;
  }
  h.queue_last = slot;
  ++waiting_open;
}

void Directory::Parts::serve_queue(SegmentId segment, uint64_t page, HomePage& h) {
  while (h.work == Work::kIdle && h.queue_first != 0) {
    const uint32_t slot = h.queue_first;
    const Waiting entry = waiting[slot];
    h.queue_first = entry.next;
    if (h.queue_first == 0) {
      h.queue_last = 0;
    }
    waiting[slot].next = waiting_free;
    waiting_free = slot;
    --waiting_open;
    serve(segment, page, h, entry);
  }
}

void Directory::Parts::forget_waiting(HomePage& h, SegmentId segment, uint64_t page, bool answer) {
  while (h.queue_first != 0) {
    const uint32_t slot = h.queue_first;
    h.queue_first = waiting[slot].next;
    if (answer) {
      answer_lost(waiting[slot].node, segment, page);
    }
    waiting[slot].next = waiting_free;
    waiting_free = slot;
    --waiting_open;
  }
  h.queue_last = 0;
}

void Directory::Parts::answer_lost(NodeId to, SegmentId segment, uint64_t page) {
  post(to, message(Kind::kLost, segment, page, 1));
}

// A page that nobody was ever known to write is zero, unless the knowledge itself may have died with its
// home.
bool Directory::Parts::untouched_is_lost(HomeWindow& window, SegmentId segment, uint64_t page) {
  if (window.hole == HomeWindow::Hole::kUnknown) {
    window.hole = in_hole(segment, page / kChunkPages) ? HomeWindow::Hole::kYes : HomeWindow::Hole::kNo;
  }
  return window.hole == HomeWindow::Hole::kYes;
}

void Directory::Parts::serve(SegmentId segment, uint64_t page, HomePage& h, const Waiting& entry) {
  const bool held_by_none = h.owner == kNoNode && h.sharers.empty();
  if (!h.lost && held_by_none &&
      (h.written || untouched_is_lost(home_window(segment, page), segment, page))) {
    h.lost = true;
    ++counters.pages_lost;
  }
  if (h.lost) {
    return answer_lost(entry.node, segment, page);
  }
  if (entry.want == Access::kWrite) {
    serve_write(segment, page, h, entry.node);
  } else {
    serve_read(segment, page, h, entry);
  }
}

void Directory::Parts::serve_read(SegmentId segment, uint64_t page, HomePage& h, const Waiting& entry) {
  const NodeId reader = entry.node;
  if (h.owner == reader || h.sharers.has(reader)) {
    return;  // argument 3 above
  }
  const auto source_of = [this](const HomePage& p) {
    return p.owner != kNoNode ? p.owner : p.sharers.has(self) ? self : p.sharers.first();
  };
  const NodeId source = h.written ? source_of(h) : kNoNode;
  uint64_t zero = h.written ? 0 : 1, ours = source == self ? 1 : 0,
           theirs = source != kNoNode && source != self ? 1 : 0;
  for (uint64_t rest = entry.mask & ~uint64_t{1}; rest != 0; rest &= rest - 1) {
    const int i = std::countr_zero(rest);
    const uint64_t other = page + static_cast<uint64_t>(i);
    HomeWindow& window = home_window(segment, other);
    const HomePage& o = window.pages[other % kWindowPages];
    if (o.work != Work::kIdle || o.lost || o.owner == reader || o.sharers.has(reader)) {
      continue;
    }
    const NodeId other_source = source_of(o);
    if (!o.written) {
      // Zero copies are granted again as long as nobody may write them.
      if (other_source != kNoNode || !untouched_is_lost(window, segment, other)) {
        zero |= uint64_t{1} << i;
      }
    } else if (other_source == self) {
      ours |= uint64_t{1} << i;
    } else if (other_source != kNoNode && other_source == source) {
      theirs |= uint64_t{1} << i;
    }
  }
  counters.pages_prefetched += static_cast<uint64_t>(std::popcount(zero | ours | theirs) - 1);
  if (zero != 0) {
    grant_direct(reader, segment, page, zero, Access::kRead, PageMessage::kZero);
  }
  if (ours != 0) {
    forward(segment, page, ours, self, reader, Access::kRead);
  }
  if (theirs != 0 && reader == self && one_sided) {
    theirs &= ~fetch_home(segment, page, theirs, source);
  }
  if (theirs != 0) {
    forward(segment, page, theirs, source, reader, Access::kRead);
  }
}

void Directory::Parts::serve_write(SegmentId segment, uint64_t page, HomePage& h, NodeId writer) {
  if (h.owner == writer) {
    return;  // argument 3 above
  }
  if (h.owner != kNoNode) {
    return forward(segment, page, 1, h.owner, writer, Access::kWrite);
  }
  h.requester = writer;
  h.want = Access::kWrite;
  h.transaction = ++transactions;
  h.work = Work::kClosing;
  ++works_open;
  const bool unsafe = (copy_window(segment, page).unsafe >> (page % kWindowPages) & 1) != 0;
  if (unsafe) {
    ++counters.closes;
    unpublish(segment, page);
    PageMessage m = message(Kind::kReading, segment, page, 1);
    m.transaction = h.transaction;
    emit(Effect::Kind::kClose, segment, page, 1).message = m;
  }
  if (!unsafe || bug == Options::Bug::kNoDrain) {
    revoke_holders(segment, page, h);
  }
}

// kClose was executed, and all the notes in front of reads that came before it were fed.
void Directory::Parts::home_closed(const PageMessage& m) {
  HomeWindow* window = find_home(m.segment, m.page);
  if (window == nullptr) {
    return;
  }
  HomePage& h = window->pages[m.page % kWindowPages];
  if (m.view != view || h.work != Work::kClosing || h.transaction != m.transaction) {
    return;  // a change of view, or the end of the segment, has ended this work
  }
  copy_window(m.segment, m.page).unsafe &= ~(uint64_t{1} << (m.page % kWindowPages));
  revoke_holders(m.segment, m.page, h);
  serve_queue(m.segment, m.page, h);
}

void Directory::Parts::revoke_holders(SegmentId segment, uint64_t page, HomePage& h) {
  h.work = Work::kRevoking;
  h.upgrade = h.sharers.has(h.requester);
  h.source = kNoNode;  // no bytes needed: an upgrade, or a page that is still zero
  if (h.written && !h.upgrade) {
    h.source = h.sharers.has(self) ? self : h.sharers.first();
  }
  if (bug != Options::Bug::kForgetNote) {
    for (size_t i = 0; i < h.noted.words(); ++i) {
      h.sharers.add_word(i, h.noted.word(i));
    }
  }
  h.noted.clear();
  bool awaited = false;
  h.sharers.for_each([&](NodeId sharer) {
    if (awaits_revoked(h, sharer)) {
      PageMessage m = message(Kind::kRevoke, segment, page, 1);
      m.transaction = h.transaction;
      post(sharer, m);
      ++counters.revokes;
      awaited = true;
    }
  });
  if (!awaited || bug == Options::Bug::kGrantBeforeAcks) {
    finish_write(segment, page, h);
  }
}

void Directory::Parts::home_revoked(NodeId from, const PageMessage& m) {
  HomeWindow* window = find_home(m.segment, m.page);
  if (window == nullptr) {
    ++counters.ignored;
    return;
  }
  HomePage& h = window->pages[m.page % kWindowPages];
  if (h.work != Work::kRevoking || h.transaction != m.transaction || !h.sharers.has(from) ||
      !awaits_revoked(h, from)) {
    ++counters.ignored;
    return;
  }
  h.sharers.remove(from);
  bool awaited = false;
  h.sharers.for_each([&](NodeId sharer) { awaited = awaited || awaits_revoked(h, sharer); });
  if (!awaited) {
    finish_write(m.segment, m.page, h);
    serve_queue(m.segment, m.page, h);
  }
}

// Nobody but the writer and the source of the bytes holds the page any more.
void Directory::Parts::finish_write(SegmentId segment, uint64_t page, HomePage& h) {
  const NodeId writer = h.requester, source = h.source;
  const bool upgrade = h.upgrade;
  set_idle(h);
  if (source != kNoNode) {
    return forward(segment, page, 1, source, writer, Access::kWrite);
  }
  h.sharers.clear();
  h.owner = writer;
  h.written = true;
  grant_direct(writer, segment, page, 1, Access::kWrite,
               upgrade ? PageMessage::kNoBytes : PageMessage::kZero);
}

// A grant without bytes, straight from the home: no kDone is needed (argument 2).
void Directory::Parts::grant_direct(NodeId to, SegmentId segment, uint64_t page, uint64_t mask, Access access,
                                    uint8_t flags) {
  if (access == Access::kRead) {
    for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
      home_page(segment, page + static_cast<uint64_t>(std::countr_zero(rest))).sharers.add(to);
    }
  }
  PageMessage m = message(Kind::kGrant, segment, page, mask);
  m.access = access;
  m.flags = flags;
  post(to, m);
  counters.grants += static_cast<uint64_t>(std::popcount(mask));
}

// The pages stay at work until they have arrived at the requester.
uint32_t Directory::Parts::start_forward(SegmentId segment, uint64_t page, uint64_t mask, NodeId source,
                                         NodeId requester, Access access) {
  const uint32_t transaction = ++transactions;
  for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
    HomePage& h = home_page(segment, page + static_cast<uint64_t>(std::countr_zero(rest)));
    h.work = Work::kForwarded;
    ++works_open;
    h.requester = requester;
    h.source = source;
    h.want = access;
    h.transaction = transaction;
  }
  return transaction;
}

// `source` (perhaps this node itself) sends the pages.
void Directory::Parts::post_forward(SegmentId segment, uint64_t page, uint64_t mask, NodeId source,
                                    NodeId requester, Access access, uint32_t transaction) {
  PageMessage m = message(Kind::kForward, segment, page, mask);
  m.access = access;
  m.requester = requester;
  m.transaction = transaction;
  post(source, m);
  ++counters.forwards;
}

void Directory::Parts::forward(SegmentId segment, uint64_t page, uint64_t mask, NodeId source,
                               NodeId requester, Access access) {
  const uint32_t transaction = start_forward(segment, page, mask, source, requester, access);
  post_forward(segment, page, mask, source, requester, access, transaction);
}

// A one-sided read of these pages comes, or came, behind this message.
void Directory::Parts::home_reading(NodeId from, const PageMessage& m) {
  if (from == self || !is_member(from) || destroyed(m.segment) || home_of(m.segment, m.page) != self) {
    ++counters.ignored;
    return;
  }
  for (uint64_t rest = m.mask; rest != 0; rest &= rest - 1) {
    home_page(m.segment, m.page + static_cast<uint64_t>(std::countr_zero(rest))).noted.add(from);
  }
}

void Directory::Parts::home_done(NodeId from, const PageMessage& m) {
  for (uint64_t rest = m.mask; rest != 0; rest &= rest - 1) {
    const uint64_t page = m.page + static_cast<uint64_t>(std::countr_zero(rest));
    HomeWindow* window = find_home(m.segment, page);
    HomePage* h = window == nullptr ? nullptr : &window->pages[page % kWindowPages];
    if (h == nullptr || h->work != Work::kForwarded || h->transaction != m.transaction ||
        h->requester != from) {
      ++counters.ignored;
      continue;
    }
    if (h->want == Access::kWrite) {
      h->sharers.clear();
      h->owner = from;
    } else {
      if (h->owner != kNoNode) {
        h->sharers.add(h->owner);
        h->owner = kNoNode;
      }
      if (bug != Options::Bug::kForgetSharer) {
        h->sharers.add(from);
      }
    }
    ++counters.grants;
    set_idle(*h);
    serve_queue(m.segment, page, *h);
  }
}

void Directory::Parts::set_idle(HomePage& h) {
  h.work = Work::kIdle;
  h.requester = kNoNode;
  h.source = kNoNode;
  h.want = Access::kNone;
  h.upgrade = false;
  --works_open;
}

}  // namespace kevre::dsm
