// Events in, the queue between the two parts of the node, and the tables.
#include "dsm/directory.h"

#include <algorithm>

#include "dsm/directory_parts.h"

namespace kevre::dsm {
namespace {

using Kind = PageMessage::Kind;

constexpr size_t kDestroyedKept = 4096;

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

}  // namespace

// Highest random weight: a node that joins or goes moves only the chunks that it wins or had.
NodeId Directory::Parts::rendezvous(const std::vector<NodeId>& nodes, SegmentId segment, uint64_t chunk) {
  const uint64_t key = mix(mix(segment.value + 0x9e3779b97f4a7c15ull) ^ chunk);
  NodeId best;
  uint64_t best_weight = 0;
  for (const NodeId node : nodes) {
    const uint64_t weight = mix(key ^ (uint64_t{node.value} * 0x9e3779b97f4a7c15ull));
    if (best == kNoNode || weight > best_weight) {
      best = node;
      best_weight = weight;
    }
  }
  return best;
}

bool Directory::Parts::PendingView::has(NodeId node) const {
  return std::binary_search(members.begin(), members.end(), node) ||
         std::find(left.begin(), left.end(), node) != left.end();
}

// Tables.

CopyWindow& Directory::Parts::copy_window(SegmentId segment, uint64_t page) {
  std::unique_ptr<CopyWindow>& window = segments[segment].copies[page / kWindowPages];
  if (window == nullptr) {
    window = std::make_unique<CopyWindow>();
  }
  return *window;
}

CopyPage& Directory::Parts::copy(SegmentId segment, uint64_t page) {
  return copy_window(segment, page).pages[page % kWindowPages];
}

const CopyPage* Directory::Parts::find_copy(SegmentId segment, uint64_t page) const {
  const auto table = segments.find(segment);
  if (table == segments.end()) {
    return nullptr;
  }
  const auto window = table->second.copies.find(page / kWindowPages);
  return window == table->second.copies.end() ? nullptr : &window->second->pages[page % kWindowPages];
}

NodeId Directory::Parts::home_of(SegmentId segment, uint64_t page) {
  CopyWindow& window = copy_window(segment, page);
  if (window.home_view != view) {
    window.home = rendezvous(members, segment, page / kChunkPages);
    window.home_view = view;
  }
  return window.home;
}

HomeWindow* Directory::Parts::find_home(SegmentId segment, uint64_t page) {
  const auto table = segments.find(segment);
  if (table == segments.end()) {
    return nullptr;
  }
  const auto window = table->second.homes.find(page / kWindowPages);
  return window == table->second.homes.end() ? nullptr : window->second.get();
}

HomeWindow& Directory::Parts::home_window(SegmentId segment, uint64_t page) {
  std::unique_ptr<HomeWindow>& window = segments[segment].homes[page / kWindowPages];
  if (window == nullptr) {
    window = std::make_unique<HomeWindow>();
  }
  return *window;
}

Directory::Parts::Peer& Directory::Parts::peer(NodeId node) {
  if (node.value >= peers.size()) {
    peers.resize(node.value + size_t{1});
  }
  return peers[node.value];
}

const Directory::Parts::Peer* Directory::Parts::find_peer(NodeId node) const {
  return node.value < peers.size() ? &peers[node.value] : nullptr;
}

bool Directory::Parts::destroyed(SegmentId segment) const {
  return !destroyed_ids.empty() &&
         std::find(destroyed_ids.begin(), destroyed_ids.end(), segment) != destroyed_ids.end();
}

void Directory::Parts::destroy(SegmentId segment) {
  const auto table = segments.find(segment);
  if (table != segments.end()) {
    for (auto& [index, window] : table->second.copies) {
      for (uint64_t i = 0; i < kWindowPages; ++i) {
        if (window->pages[i].want != Access::kNone) {
          poison(segment, index * kWindowPages + i, window->pages[i]);
        }
      }
    }
    for (auto& [index, window] : table->second.homes) {
      for (uint64_t i = 0; i < kWindowPages; ++i) {
        HomePage& h = window->pages[i];
        if (h.work != HomePage::Work::kIdle) {
          answer_lost(h.requester, segment, index * kWindowPages + i);
          set_idle(h);
        }
        forget_waiting(h, segment, index * kWindowPages + i, true);
      }
    }
    segments.erase(table);
  }
  std::erase_if(outgoing, [&](const Known& known) { return known.segment == segment; });
  if (!destroyed(segment)) {
    destroyed_ids.push_back(segment);
    if (destroyed_ids.size() > kDestroyedKept) {
      destroyed_ids.pop_front();
    }
  }
}

// Effects and messages.

Effect& Directory::Parts::emit(Effect::Kind kind, SegmentId segment, uint64_t page, uint64_t mask) {
  Effect& effect = effects->emplace_back();
  effect.kind = kind;
  effect.segment = segment;
  effect.page = page;
  effect.mask = mask;
  return effect;
}

PageMessage Directory::Parts::message(Kind kind, SegmentId segment, uint64_t page, uint64_t mask) const {
  PageMessage m;
  m.kind = kind;
  m.view = view;
  m.segment = segment;
  m.page = page;
  m.mask = mask;
  return m;
}

void Directory::Parts::post(NodeId to, const PageMessage& m) {
  if (to == self) {
    inbox.push_back({self, m});
    return;
  }
  if (to == kNoNode) {
    return;
  }
  Effect& effect = emit(Effect::Kind::kSend, m.segment, m.page, m.mask);
  effect.to = to;
  effect.message = m;
}

// Everything that one event sets off inside this node, in order.
void Directory::Parts::drain() {
  do {
    for (size_t i = 0; i < inbox.size(); ++i) {
      const Internal next = inbox[i];  // dispatch may grow the inbox
      // A view may have started since it was posted: it then belongs to the old one, as it would on a
      // channel.
      if (next.message.view == view) {
        dispatch(next.from, next.message);
      }
    }
    inbox.clear();
    start_views();
  } while (!inbox.empty());
}

void Directory::Parts::dispatch(NodeId from, const PageMessage& m) {
  switch (m.kind) {
    case Kind::kReadRequest:
    case Kind::kWriteRequest:
      return home_request(from, m);
    case Kind::kRevoked:
      return home_revoked(from, m);
    case Kind::kDone:
      return home_done(from, m);
    case Kind::kGrant:
    case Kind::kHandOver:
      return accept_pages(from, m, false);
    case Kind::kRevoke:
      return copies_revoke(from, m);
    case Kind::kForward:
      return copies_forward(from, m);
    case Kind::kLost:
      return copies_lost(m);
    case Kind::kReading:
      return home_reading(from, m);
    case Kind::kReport:
      return apply_report(from, m);
    case Kind::kKnown:
      if (phase != Phase::kReady && !destroyed(m.segment) && home_of(m.segment, m.page) == self) {
        apply_known(m.segment, m.page, m.mask, m.mask2);
      }
      return;
    case Kind::kHole:
      return apply_hole(m);
    case Kind::kReportEnd:
      return on_report_end(peer(from), m);
    case Kind::kReady:
      if (peer(from).ready < view && peer(from).member) {
        peer(from).ready = view;
        --readies_missing;
        maybe_ready();
      }
      return;
    case Kind::kFlush:
      return;
  }
}

// The interface.

Directory::Directory(Options options) : parts_(std::make_unique<Parts>()) {
  parts_->self = options.self;
  parts_->bug = options.bug;
  parts_->hold = options.hold;
  parts_->one_sided = options.one_sided;
  parts_->fetch_unseen = options.fetch_unseen;
}

Directory::~Directory() = default;

namespace {
// The effects list is only known while an event is handled.
class Scope {
 public:
  Scope(std::vector<Effect>** slot, std::vector<Effect>& effects) : slot_(slot) { *slot_ = &effects; }
  ~Scope() { *slot_ = nullptr; }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  std::vector<Effect>** slot_;
};
}  // namespace

void Directory::on_fault(SegmentId segment, uint64_t page, Access want, uint32_t ahead,
                         std::vector<Effect>& effects) {
  Scope scope(&parts_->effects, effects);
  parts_->fault(segment, page, want, ahead);
  parts_->drain();
}

void Directory::on_message(NodeId from, const PageMessage& m, std::vector<Effect>& effects) {
  Parts& p = *parts_;
  Scope scope(&p.effects, effects);
  for (const PageRef& late : p.late_drops) {
    p.emit(Effect::Kind::kDrop, late.segment, late.page, 1);
  }
  p.late_drops.clear();
  if (from == p.self || from == kNoNode) {
    ++p.counters.ignored;
    return;
  }
  Parts::Peer& peer = p.peer(from);
  if (m.kind == Kind::kFlush) {
    p.on_flush(peer, m.view);
  } else if (!peer.participant || p.phase == Parts::Phase::kOutside || m.view > p.view) {
    ++p.counters.ignored;
  } else if (m.view < p.view) {
    // Only bytes matter of what an older view left in the channel (rebuild.cc says why), and only in front of
    // the peer's flush.
    const bool pages = m.kind == Kind::kGrant || m.kind == Kind::kHandOver;
    if (pages && peer.flushed < p.view && p.bug != Options::Bug::kDropLateGrant) {
      p.accept_pages(from, m, true);
    } else {
      ++p.counters.ignored;
    }
  } else if (peer.flushed < p.view) {
    ++p.counters.ignored;  // it must have flushed before it speaks in this view
  } else {
    p.dispatch(from, m);
  }
  p.drain();
}

void Directory::on_hold_over(SegmentId segment, uint64_t page, std::vector<Effect>& effects) {
  Scope scope(&parts_->effects, effects);
  parts_->hold_over(segment, page);
  parts_->drain();
}

void Directory::on_fetched(const PageMessage& asked, uint64_t arrived, std::vector<Effect>& effects) {
  Scope scope(&parts_->effects, effects);
  parts_->fetched(asked, arrived & asked.mask);
  parts_->drain();
}

void Directory::on_closed(const PageMessage& closed, std::vector<Effect>& effects) {
  Scope scope(&parts_->effects, effects);
  parts_->home_closed(closed);
  parts_->drain();
}

void Directory::on_view(ViewId view, std::span<const NodeId> members, std::span<const NodeId> lost,
                        std::span<const NodeId> left, std::vector<Effect>& effects) {
  Parts& p = *parts_;
  Scope scope(&p.effects, effects);
  if (view <= p.view || (!p.views.empty() && view <= p.views.back().view)) {
    return;
  }
  Parts::PendingView next;
  next.view = view;
  next.members.assign(members.begin(), members.end());
  std::sort(next.members.begin(), next.members.end());
  next.left.assign(left.begin(), left.end());
  next.lost_any = !lost.empty() || !left.empty();
  p.views.push_back(std::move(next));
  p.start_views();
  p.drain();
}

void Directory::on_destroy(SegmentId segment, std::vector<Effect>& effects) {
  Scope scope(&parts_->effects, effects);
  parts_->destroy(segment);
  parts_->drain();
}

Access Directory::access(SegmentId segment, uint64_t page) const {
  const CopyPage* c = parts_->find_copy(segment, page);
  return c == nullptr ? Access::kNone : c->state;
}

bool Directory::quiescent() const {
  const Parts& p = *parts_;
  return p.wants_open == 0 && p.works_open == 0 && p.waiting_open == 0 && p.views.empty() &&
         (p.phase == Parts::Phase::kReady || p.phase == Parts::Phase::kOutside);
}

const Directory::Counters& Directory::counters() const {
  return parts_->counters;
}

NodeId Directory::home_of(SegmentId segment, uint64_t page) const {
  return Parts::rendezvous(parts_->members, segment, page / kChunkPages);
}

uint64_t Directory::digest() const {
  const Parts& p = *parts_;
  uint64_t sum = mix(p.view.value * 8ull + static_cast<uint64_t>(p.phase)) ^ mix(p.transactions + 77);
  const auto more = [&sum](uint64_t field) { sum = mix(sum + field + 0x9e3779b97f4a7c15ull); };
  for (const Parts::Peer& peer : p.peers) {
    more(peer.flushed.value);
    more(peer.ended.value);
    more(peer.ready.value * 4u + peer.participant * 2u + peer.member);
  }
  for (const Parts::PendingView& pending : p.views) {
    more(pending.view.value);
  }
  for (const Parts::Known& known : p.outgoing) {
    more(known.window);
    more(known.written);
    more(known.lost);
  }
  for (const auto& [at, hole] : p.holes) {
    more(at.value);
    more(hole.members.word(0) ^ mix(hole.dead.word(0)));
  }
  for (const auto& [segment, table] : p.segments) {
    for (const auto& [index, window] : table.copies) {
      for (uint64_t i = 0; i < kWindowPages; ++i) {
        const CopyPage& c = window->pages[i];
        uint64_t h = mix(segment.value * 1000003 + index * kWindowPages + i + 1);
        for (const uint64_t field :
             {static_cast<uint64_t>(c.state), static_cast<uint64_t>(c.want), static_cast<uint64_t>(c.issued),
              uint64_t{c.held}, uint64_t{c.lost}, static_cast<uint64_t>(c.deferred),
              uint64_t{c.requester.value}, uint64_t{c.transaction} << 32 | c.fetch}) {
          h = mix(h + field + 0x9e3779b97f4a7c15ull);
        }
        sum += h;
      }
      uint64_t known = mix(segment.value * 11000003 + index);
      for (const uint64_t field : {window->hints, uint64_t{window->luck} << 16 | window->publisher.value,
                                   window->published, window->unsafe}) {
        known = mix(known + field + 0x9e3779b97f4a7c15ull);
      }
      sum += known;
    }
    for (const auto& [index, window] : table.homes) {
      for (uint64_t i = 0; i < kWindowPages; ++i) {
        const HomePage& page = window->pages[i];
        uint64_t h = mix(segment.value * 7000003 + index * kWindowPages + i + 1);
        const auto add = [&h](uint64_t field) { h = mix(h + field + 0x9e3779b97f4a7c15ull); };
        page.sharers.for_each([&](NodeId node) { add(node.value); });
        page.noted.for_each([&](NodeId node) { add(131072u + node.value); });
        add(65536u + page.owner.value);
        add(page.requester.value);
        add(page.source.value);
        add(static_cast<uint64_t>(page.work) * 32 + page.upgrade * 16u + static_cast<uint64_t>(page.want) * 4 + page.written * 2u +
            page.lost);
        add(page.transaction);
        for (uint32_t w = page.queue_first; w != 0; w = p.waiting[w].next) {
          add(p.waiting[w].node.value * 4u + static_cast<uint64_t>(p.waiting[w].want));
          add(p.waiting[w].mask);
        }
        sum += h;
      }
    }
  }
  return sum;
}

}  // namespace kevre::dsm
