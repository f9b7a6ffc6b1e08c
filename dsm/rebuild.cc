// The change of view: a node joins, leaves or is lost; all three go the same way.
//
//   1. start    Nothing is asked any more. The homes forget the requests in work and in the queues (who waits
//               asks again) and keep what they know of written and lost pages. kFlush to every participant of the
//               new view (its members and the nodes that leave): "nothing of an older view follows from me".
//   2. report   When kFlush has come from all, nothing of an older view is under way to this node: what it holds
//               is settled. It tells the new homes what it holds (kReport) and hands on what it knew as a home
//               (kKnown, kHole); a node that leaves sends its pages themselves (kHandOver). Then kReportEnd.
//   3. ready    When kReportEnd has come from all, the home knows every holder of its pages and starts to work.
//               A node that leaves may go when every member has told it kReady: what was only sent could die
//               with it.
//
// Nothing is lost between living nodes: the bytes of a page are in a frame or in a message (kGrant, kHandOver) to
// a participant, who takes them until the sender's kFlush, and reports after that. (A page that was given to a
// node which then died goes with it, also when the bytes never reached it, or when the others dropped their
// copies for its upgrade: it was granted, and nobody can tell whether it was written.)
//
// The other messages of the old view can be ignored, because none of them changes what somebody holds:
//   * kRevoke, kForward unread: the holder keeps its copy and reports it; their work is forgotten.
//   * kRevoked, kDone unread: the home would only have gone on with a work that is forgotten. The copy that was
//     given up had another holder: the last copy is never revoked, it moves with a message (kTake).
//   * A grant without bytes that is taken late (upgrade, zero) was sent after all other copies were gone, and no
//     other copy can have been granted since: its home sent nothing for that page after it but on this channel.
//
// A page cannot be granted twice, by the old and by the new home: a new home grants only after step 3, which needs
// the kReportEnd of all, which comes after the kFlush of all: no old home grants any more, no grant is under way.
//
// Messages of a view that this node has not started need not be kept: its peers do not pass step 1 without its
// kFlush, so they can say nothing before but kFlush; the newest one of each peer is remembered. Requests of a peer
// that was ready earlier do come before this home is ready: they wait in the queues of their pages.
//
// Several changes in a row. If all participants of the view in force are still there, the hand-over is brought to
// its end first and the next view waits. If one is gone it cannot end: it is given up, the next one begins. Bytes and
// holders are safe as before (late grants of *all* older views are taken until the flush). What may be incomplete
// is the knowledge about pages that nobody holds:
//
// Holes. A home answers zero for a page that nobody ever wrote. That is knowledge, and it dies with the home. A hole is
// a change of view at which some homes of the view before were gone, or had not become ready (what they should have
// known may have been under way). A page of a chunk whose home was one of them, of a segment born before, not
// known as written and held by nobody, is lost, not zero: its only writer may have gone too. Every node keeps the
// list of holes and tells it at each change of view.
// Claim: a home that is ready knows every hole of its chunks, and every written page outside them. By induction
// over the views, for the home that the chunk had in the view before: it is gone (then every participant of both
// views adds the hole itself); or it had not become ready (then it adds the hole, and tells it); or it was ready, knew
// all, and told all before its kReportEnd. If no participant was in the view before, everything born before is a hole.
#include <algorithm>

#include "dsm/directory_parts.h"

namespace kevre::dsm {

using Kind = PageMessage::Kind;

bool Directory::Parts::doomed() const {
  const PendingView& newest = views.back();
  const auto gone = [&](NodeId node) { return node != self && !newest.has(node); };
  return std::any_of(members.begin(), members.end(), gone) || std::any_of(left.begin(), left.end(), gone);
}

void Directory::Parts::start_views() {
  while (!views.empty()) {
    if ((phase == Phase::kFlushing || phase == Phase::kReporting) && !doomed()) {
      return;
    }
    const PendingView next = std::move(views.front());
    views.pop_front();
    start(next);
  }
}

void Directory::Parts::start(const PendingView& next) {
  in_view_before = view.value != 0;
  if (in_view_before) {
    note_holes(next);
  }
  for (Peer& p : peers) {
    p.participant = false;
    p.member = false;
  }
  view = next.view;
  members = next.members;
  left = next.left;
  std::erase(left, self);
  member_self = std::binary_search(members.begin(), members.end(), self);
  lost_any = next.lost_any;
  others_were = false;
  if (!next.has(self)) {
    return go_outside();
  }
  phase = Phase::kFlushing;
  flushes_missing = ends_missing = readies_missing = 0;
  reset_copies();
  reset_homes();
  PageMessage m;
  m.kind = Kind::kFlush;
  m.view = view;
  const auto meet = [&](NodeId node, bool member) {
    if (node == self || node == kNoNode) {
      return;
    }
    Peer& p = peer(node);
    if (p.participant) {
      return;
    }
    p.participant = true;
    p.member = member;
    flushes_missing += p.flushed < view ? 1 : 0;
    ends_missing += p.ended < view ? 1 : 0;
    readies_missing += member && p.ready < view ? 1 : 0;
    post(node, m);
  };
  for (const NodeId node : members) {
    meet(node, true);
  }
  for (const NodeId node : left) {
    meet(node, false);
  }
  maybe_report();
}

// What is not known any more after this change, as far as this node can tell: it was in the view before.
void Directory::Parts::note_holes(const PendingView& next) {
  const bool self_was_ready = phase == Phase::kReady;
  Hole hole;
  bool any = false;
  for (const NodeId node : members) {
    hole.members.add(node);
    if (node == self ? !self_was_ready : !next.has(node)) {
      hole.dead.add(node);
      any = true;
    }
  }
  if (any) {
    Hole& kept = holes[next.view];
    for (size_t i = 0; i < hole.members.words(); ++i) {
      kept.members.add_word(i, hole.members.word(i));
      kept.dead.add_word(i, hole.dead.word(i));
    }
  }
}

void Directory::Parts::reset_copies() {
  for (auto& [segment, table] : segments) {
    for (auto& [index, window] : table.copies) {
      window->publisher = kNoNode;
      window->hints = 0;
      window->luck = 1;
      for (CopyPage& c : window->pages) {
        c.issued = Access::kNone;
        c.fetch = 0;
        c.deferred = CopyPage::Deferred::kNothing;  // asked by a home that has forgotten it
      }
    }
  }
}

// Windows that this node rules in the new view stay, with what is known and without holders; the others wait
// in `outgoing` for the report.
void Directory::Parts::reset_homes() {
  for (auto& [segment, table] : segments) {
    for (auto i = table.homes.begin(); i != table.homes.end();) {
      Known known{segment, i->first, 0, 0};
      for (uint64_t k = 0; k < kWindowPages; ++k) {
        HomePage& h = i->second->pages[k];
        known.written |= h.written ? uint64_t{1} << k : 0;
        known.lost |= h.lost ? uint64_t{1} << k : 0;
        forget_waiting(h, segment, i->first * kWindowPages + k, false);
        if (h.work != HomePage::Work::kIdle) {
          set_idle(h);
        }
        h.sharers.clear();
        h.noted.clear();
        h.owner = kNoNode;
      }
      i->second->hole = HomeWindow::Hole::kUnknown;
      if (home_of(segment, i->first * kWindowPages) == self) {
        ++i;
        continue;
      }
      if ((known.written | known.lost) != 0) {
        outgoing.push_back(known);
      }
      i = table.homes.erase(i);
    }
  }
}

// The others have gone on without this node: it may neither ask nor answer any more.
void Directory::Parts::go_outside() {
  phase = Phase::kOutside;
  reset_copies();
  for (auto& [segment, table] : segments) {
    for (auto& [index, window] : table.homes) {
      for (uint64_t i = 0; i < kWindowPages; ++i) {
        HomePage& h = window->pages[i];
        forget_waiting(h, segment, index * kWindowPages + i, false);
        if (h.work != HomePage::Work::kIdle) {
          set_idle(h);
        }
      }
    }
    table.homes.clear();
    for (auto& [index, window] : table.copies) {
      for (uint64_t i = 0; i < kWindowPages; ++i) {
        if (window->pages[i].want != Access::kNone) {
          poison(segment, index * kWindowPages + i, window->pages[i]);
        }
      }
    }
  }
  outgoing.clear();
}

void Directory::Parts::on_flush(Peer& from, ViewId flushed) {
  if (flushed <= from.flushed) {
    return;
  }
  const bool awaited = from.participant && from.flushed < view && flushed >= view;
  from.flushed = flushed;
  if (awaited && phase == Phase::kFlushing) {
    --flushes_missing;
    maybe_report();
  }
}

void Directory::Parts::maybe_report() {
  if (phase != Phase::kFlushing || flushes_missing != 0) {
    return;
  }
  phase = Phase::kReporting;
  send_reports();
  maybe_ready();
}

void Directory::Parts::send_reports() {
  std::vector<Known> known;
  known.swap(outgoing);
  for (const Known& k : known) {
    const uint64_t page = k.window * kWindowPages;
    const NodeId home = home_of(k.segment, page);
    if (home == self) {
      apply_known(k.segment, page, k.written, k.lost);
      continue;
    }
    PageMessage m = message(Kind::kKnown, k.segment, page, k.written);
    m.mask2 = k.lost;
    post(home, m);
  }
  send_holes();
  for (auto& [segment, table] : segments) {
    for (auto& [index, window] : table.copies) {
      if (member_self) {
        report_window(segment, index, *window);
      } else {
        hand_over_window(segment, index, *window);
      }
    }
  }
  PageMessage end;
  end.kind = Kind::kReportEnd;
  end.view = view;
  if (in_view_before) {
    end.flags = PageMessage::kComplete;
  }
  for (const NodeId node : members) {
    if (node != self) {
      post(node, end);
    }
  }
  for (const NodeId node : left) {
    post(node, end);
  }
}

void Directory::Parts::send_holes() {
  for (const auto& [at, hole] : holes) {
    for (size_t i = 0; i < hole.members.words(); ++i) {
      if (hole.members.word(i) == 0) {
        continue;
      }
      PageMessage m;
      m.kind = Kind::kHole;
      m.view = view;
      m.transaction = at.value;
      m.page = i * 64;
      m.mask = hole.members.word(i);
      m.mask2 = hole.dead.word(i);
      for (const NodeId node : members) {
        if (node != self) {
          post(node, m);
        }
      }
    }
  }
}

void Directory::Parts::report_window(SegmentId segment, uint64_t window, CopyWindow& w) {
  const uint64_t page = window * kWindowPages;
  uint64_t write = 0, read = 0;
  for (uint64_t i = 0; i < kWindowPages; ++i) {
    write |= w.pages[i].state == Access::kWrite ? uint64_t{1} << i : 0;
    read |= w.pages[i].state == Access::kRead ? uint64_t{1} << i : 0;
  }
  const NodeId home = home_of(segment, page);
  if (home == self || (write | read) == 0) {
    return;  // its own home looks at the copies itself, in rebuild()
  }
  PageMessage m = message(Kind::kReport, segment, page, write);
  m.mask2 = read;
  post(home, m);
}

// Read copies are handed over too: this node cannot know whether it is the last one that holds them.
void Directory::Parts::hand_over_window(SegmentId segment, uint64_t window, CopyWindow& w) {
  const uint64_t page = window * kWindowPages;
  const NodeId home = home_of(segment, page);
  for (const Access access : {Access::kRead, Access::kWrite}) {
    uint64_t mask = 0;
    for (uint64_t i = 0; i < kWindowPages; ++i) {
      CopyPage& c = w.pages[i];
      if (c.state == access && home != kNoNode) {
        mask |= uint64_t{1} << i;
        c.state = Access::kNone;
        c.held = false;
        unpublish(segment, page + i);
      }
    }
    if (mask != 0) {
      Effect& effect = emit(Effect::Kind::kSendFrames, segment, page, mask);
      effect.frame = Effect::Frame::kTake;
      effect.to = home;
      effect.message = message(Kind::kHandOver, segment, page, mask);
      effect.message.access = access;
    }
  }
}

void Directory::Parts::apply_report(NodeId from, const PageMessage& m) {
  if (phase == Phase::kReady || destroyed(m.segment) || home_of(m.segment, m.page) != self) {
    ++counters.ignored;
    return;
  }
  for (uint64_t rest = m.mask | m.mask2; rest != 0; rest &= rest - 1) {
    const int i = std::countr_zero(rest);
    HomePage& h = home_page(m.segment, m.page + static_cast<uint64_t>(i));
    if ((m.mask >> i & 1) != 0) {
      h.owner = from;
    } else {
      h.sharers.add(from);
    }
  }
}

void Directory::Parts::apply_known(SegmentId segment, uint64_t page, uint64_t written, uint64_t lost) {
  for (uint64_t rest = written | lost; rest != 0; rest &= rest - 1) {
    const int i = std::countr_zero(rest);
    HomePage& h = home_page(segment, page + static_cast<uint64_t>(i));
    h.written = h.written || (written >> i & 1) != 0;
    h.lost = h.lost || (lost >> i & 1) != 0;
  }
}

void Directory::Parts::apply_hole(const PageMessage& m) {
  if (phase == Phase::kReady || m.transaction == 0 || m.transaction > view.value) {
    ++counters.ignored;
    return;
  }
  Hole& hole = holes[ViewId(m.transaction)];
  hole.members.add_word(m.page / 64, m.mask);
  hole.dead.add_word(m.page / 64, m.mask2);
}

void Directory::Parts::on_report_end(Peer& from, const PageMessage& m) {
  if (from.ended >= view) {
    ++counters.ignored;
    return;
  }
  from.ended = view;
  others_were = others_were || m.has(PageMessage::kComplete);
  --ends_missing;
  maybe_ready();
}

void Directory::Parts::maybe_ready() {
  if (phase != Phase::kReporting) {
    return;
  }
  if (member_self) {
    if (ends_missing == 0) {
      rebuild();
      became_ready();
    }
  } else if (readies_missing == 0) {
    became_ready();
  }
}

void Directory::Parts::rebuild() {
  if (!in_view_before && !others_were && lost_any) {
    holes[view].members.add(self);  // rendezvous over this one node is always this node: everything
    holes[view].dead.add(self);
  }
  for (auto& [segment, table] : segments) {
    for (auto& [index, window] : table.copies) {
      if (home_of(segment, index * kWindowPages) != self) {
        continue;
      }
      for (uint64_t i = 0; i < kWindowPages; ++i) {
        if (window->pages[i].state == Access::kNone) {
          continue;
        }
        HomePage& h = home_page(segment, index * kWindowPages + i);
        if (window->pages[i].state == Access::kWrite) {
          h.owner = self;
        } else {
          h.sharers.add(self);
        }
      }
    }
    for (auto& [index, window] : table.homes) {
      for (HomePage& h : window->pages) {
        if (h.owner != kNoNode) {
          h.sharers.clear();
        }
        const bool held = h.owner != kNoNode || !h.sharers.empty();
        if (!held && h.written && !h.lost) {
          h.lost = true;
          ++counters.pages_lost;
        }
        h.written = h.written || held;
      }
    }
  }
}

bool Directory::Parts::in_hole(SegmentId segment, uint64_t chunk) const {
  for (auto i = holes.upper_bound(born(segment)); i != holes.end(); ++i) {
    std::vector<NodeId> nodes;
    i->second.members.for_each([&](NodeId node) { nodes.push_back(node); });
    if (i->second.dead.has(rendezvous(nodes, segment, chunk))) {
      return true;
    }
  }
  return false;
}

void Directory::Parts::became_ready() {
  phase = Phase::kReady;
  PageMessage m;
  m.kind = Kind::kReady;
  m.view = view;
  for (const NodeId node : left) {
    if (member_self) {
      post(node, m);
    }
  }
  emit(Effect::Kind::kStable, SegmentId{}, 0, 0).view = view;
  if (!views.empty()) {
    return;  // the next view starts at once: nothing is asked and nothing granted in this one
  }
  for (auto& [segment, table] : segments) {
    for (auto& [index, window] : table.copies) {
      for (uint64_t i = 0; i < kWindowPages; ++i) {
        CopyPage& c = window->pages[i];
        if (c.want != Access::kNone && !member_self) {
          poison(segment, index * kWindowPages + i, c);
        } else if (c.want != Access::kNone) {
          issue(segment, index * kWindowPages + i, c, 0);
        }
      }
    }
    if (member_self) {
      // No entry is added meanwhile: serving a page touches tables of its own chunk only through copies of
      // known pages.
      std::vector<uint64_t> queued;
      for (auto& [index, window] : table.homes) {
        for (uint64_t i = 0; i < kWindowPages; ++i) {
          if (window->pages[i].queue_first != 0) {
            queued.push_back(index * kWindowPages + i);
          }
        }
      }
      for (const uint64_t page : queued) {
        serve_queue(segment, page, home_page(segment, page));
      }
    }
  }
}

}  // namespace kevre::dsm
