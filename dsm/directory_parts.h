// The inside of Directory, shared by the files that implement it and by nobody else:
//   directory.cc  events in, the queue between the two parts of the node, tables
//   home.cc       home part: serialises the requests of a page
//   copies.cc     copies part: what this node holds, holding times, faults
//   fetch.cc      pages by one-sided read: publishing, hints, what comes and what does not
//   rebuild.cc    change of view: flush, reports, holes
// A message for this node itself goes through `inbox`, which is emptied before the event ends: no recursion,
// and the same order as a channel between two nodes has.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "dsm/directory.h"
#include "dsm/node_set.h"

namespace kevre::dsm {

inline constexpr uint64_t kWindowPages =
    64;  // pages that share a table entry and a report; divides kChunkPages

// What this node holds of a page, and what its programs wait for.
struct CopyPage {
  enum class Deferred : uint8_t { kNothing, kRevoke, kRead, kWrite };
  Access state = Access::kNone;
  Access want = Access::kNone;    // a program waits for it
  Access issued = Access::kNone;  // asked of the home in this view and not answered
  bool held = false;              // not to be taken before on_hold_over
  bool lost = false;
  Deferred deferred =
      Deferred::kNothing;  // what the home asked for meanwhile (one at most: it works on one request)
  NodeId requester;
  uint32_t transaction = 0;
  uint32_t fetch = 0;  // transaction of the fetch under way; only without a copy. 0: none, or it is spoiled
};
struct CopyWindow {
  ViewId home_view;
  NodeId home;
  NodeId publisher;        // whom the hints are about; of this view
  uint8_t luck = 1;        // what became of the last fetches here: 0 bad .. 3 good
  uint64_t hints = 0;      // bit i: page i of the window was published there
  uint64_t published = 0;  // one-sided reads may have these read copies
  uint64_t unsafe = 0;     // were published after their last on_closed: one-sided reads may have had them
  std::array<CopyPage, kWindowPages> pages;
};

// What the home knows of a page.
struct HomePage {
  enum class Work : uint8_t {
    kIdle,
    kClosing,    // waits for on_closed; then the holders are revoked
    kRevoking,   // waits for kRevoked of every sharer but `source` and, if it is an upgrade, `requester`
    kForwarded,  // `source` sends the page to `requester`, whose kDone is awaited (or this node itself fetches it)
  };
  NodeSet sharers;   // empty while there is an owner
  NodeSet noted;     // may have fetched it
  NodeId owner;      // may write
  NodeId requester;  // of the work in progress
  NodeId source;
  Work work = Work::kIdle;
  Access want = Access::kNone;
  bool written =
      false;  // ever granted for writing, or reported by a holder: its bytes are not zero for certain
  bool lost = false;
  bool upgrade = false;  // of the write in progress
  uint32_t transaction = 0;
  uint32_t queue_first = 0, queue_last = 0;  // indices in Parts::waiting; 0: none
};
struct HomeWindow {
  enum class Hole : uint8_t { kUnknown, kNo, kYes } hole = Hole::kUnknown;
  std::array<HomePage, kWindowPages> pages;
};
struct SegmentTable {
  std::unordered_map<uint64_t, std::unique_ptr<CopyWindow>> copies;  // by page / kWindowPages
  std::unordered_map<uint64_t, std::unique_ptr<HomeWindow>> homes;
};

struct Directory::Parts {
  enum class Phase : uint8_t { kOutside, kFlushing, kReporting, kReady };
  struct Peer {
    ViewId flushed, ended, ready;  // the newest view that the peer named in kFlush, kReportEnd, kReady
    bool participant = false;      // of the view in force: member or leaving
    bool member = false;
  };
  struct Waiting {
    NodeId node;
    Access want = Access::kNone;
    uint64_t mask = 0;
    uint32_t next = 0;
  };
  struct PendingView {
    ViewId view;
    std::vector<NodeId> members, left;
    bool lost_any = false;
    bool has(NodeId node) const;
  };
  // Chunks whose home, among `members` of the view before, was one of `dead`: what was granted there nobody
  // knows.
  struct Hole {
    NodeSet members, dead;
  };
  struct Known {
    SegmentId segment;
    uint64_t window = 0;
    uint64_t written = 0, lost = 0;
  };
  struct Internal {
    NodeId from;
    PageMessage message;
  };

  // directory.cc
  void drain();
  void dispatch(NodeId from, const PageMessage& m);
  void post(NodeId to, const PageMessage& m);  // to a peer, or to this node's other part
  Effect& emit(Effect::Kind kind, SegmentId segment, uint64_t page, uint64_t mask);
  PageMessage message(PageMessage::Kind kind, SegmentId segment, uint64_t page, uint64_t mask) const;
  Peer& peer(NodeId node);
  const Peer* find_peer(NodeId node) const;
  bool is_member(NodeId node) const {
    return node == self ? member_self : find_peer(node) != nullptr && find_peer(node)->member;
  }
  bool destroyed(SegmentId segment) const;
  CopyPage& copy(SegmentId segment, uint64_t page);
  const CopyPage* find_copy(SegmentId segment, uint64_t page) const;
  CopyWindow& copy_window(SegmentId segment, uint64_t page);
  HomeWindow* find_home(SegmentId segment, uint64_t page);
  HomeWindow& home_window(SegmentId segment, uint64_t page);
  HomePage& home_page(SegmentId segment, uint64_t page) {
    return home_window(segment, page).pages[page % kWindowPages];
  }
  NodeId home_of(SegmentId segment, uint64_t page);  // cached in the copies' window
  static NodeId rendezvous(const std::vector<NodeId>& nodes, SegmentId segment, uint64_t chunk);
  void destroy(SegmentId segment);

  // home.cc
  void home_request(NodeId from, const PageMessage& m);
  void home_revoked(NodeId from, const PageMessage& m);
  void home_done(NodeId from, const PageMessage& m);
  void home_reading(NodeId from, const PageMessage& m);
  void home_closed(const PageMessage& m);
  void enqueue(HomePage& page, const Waiting& entry);
  void serve_queue(SegmentId segment, uint64_t page, HomePage& h);
  void serve(SegmentId segment, uint64_t page, HomePage& h, const Waiting& entry);
  void serve_read(SegmentId segment, uint64_t page, HomePage& h, const Waiting& entry);
  void serve_write(SegmentId segment, uint64_t page, HomePage& h, NodeId requester);
  void revoke_holders(SegmentId segment, uint64_t page, HomePage& h);
  void finish_write(SegmentId segment, uint64_t page, HomePage& h);
  uint32_t start_forward(SegmentId segment, uint64_t page, uint64_t mask, NodeId source, NodeId requester,
                         Access access);
  void post_forward(SegmentId segment, uint64_t page, uint64_t mask, NodeId source, NodeId requester,
                    Access access, uint32_t transaction);
  void forward(SegmentId segment, uint64_t page, uint64_t mask, NodeId source, NodeId requester,
               Access access);
  void grant_direct(NodeId to, SegmentId segment, uint64_t page, uint64_t mask, Access access, uint8_t flags);
  void answer_lost(NodeId to, SegmentId segment, uint64_t page);
  bool untouched_is_lost(HomeWindow& window, SegmentId segment, uint64_t page);
  void set_idle(HomePage& h);
  void forget_waiting(HomePage& h, SegmentId segment, uint64_t page, bool answer);

  // copies.cc
  void fault(SegmentId segment, uint64_t page, Access want, uint32_t ahead);
  void issue(SegmentId segment, uint64_t page, CopyPage& c, uint32_t ahead, bool may_fetch = true);
  void accept_pages(NodeId from, const PageMessage& m, bool late);
  void settle(SegmentId segment, uint64_t page, CopyPage& c);
  void copies_revoke(NodeId from, const PageMessage& m);
  void copies_forward(NodeId from, const PageMessage& m);
  void copies_lost(const PageMessage& m);
  void hold_over(SegmentId segment, uint64_t page);
  void revoke_now(SegmentId segment, uint64_t page, CopyPage& c, uint32_t transaction);
  void send_pages(SegmentId segment, uint64_t page, uint64_t mask, Effect::Frame frame, NodeId requester,
                  uint32_t transaction);
  void poison(SegmentId segment, uint64_t page, CopyPage& c);

  // fetch.cc
  void publish(Effect& send);
  void unpublish(SegmentId segment, uint64_t page);
  void keep_hints(NodeId from, const PageMessage& grant);
  uint64_t hinted(SegmentId segment, uint64_t page, NodeId publisher);
  bool fetch(SegmentId segment, uint64_t page, uint32_t ahead);
  uint64_t fetch_home(SegmentId segment, uint64_t page, uint64_t mask, NodeId source);
  void start_fetch(SegmentId segment, uint64_t page, uint64_t mask, NodeId from, uint32_t transaction,
                   bool note);
  void spoil(SegmentId segment, uint64_t page, CopyPage& c);
  void fetched(const PageMessage& asked, uint64_t arrived);
  void fetched_home(const PageMessage& asked, uint64_t installed);

  // rebuild.cc
  void start_views();
  bool doomed() const;
  void start(const PendingView& next);
  void note_holes(const PendingView& next);
  void reset_copies();
  void reset_homes();
  void go_outside();
  void on_flush(Peer& from, ViewId flushed);
  void maybe_report();
  void send_reports();
  void send_holes();
  void report_window(SegmentId segment, uint64_t window, CopyWindow& w);
  void hand_over_window(SegmentId segment, uint64_t window, CopyWindow& w);
  void apply_report(NodeId from, const PageMessage& m);
  void apply_known(SegmentId segment, uint64_t page, uint64_t written, uint64_t lost);
  void apply_hole(const PageMessage& m);
  void on_report_end(Peer& from, const PageMessage& m);
  void maybe_ready();
  void rebuild();
  void became_ready();
  bool in_hole(SegmentId segment, uint64_t chunk) const;

  NodeId self;
  Options::Bug bug = Options::Bug::kNone;
  bool hold = true;
  bool one_sided = false;
  bool fetch_unseen = false;

  // The view in force.
  Phase phase = Phase::kOutside;
  ViewId view;
  std::vector<NodeId> members, left;
  bool member_self = false;
  bool in_view_before = false;  // this node was in the view before
  bool others_were = false;     // some other participant was
  bool lost_any = false;        // nodes were lost or left between the view before and this one
  uint32_t flushes_missing = 0, ends_missing = 0, readies_missing = 0;
  std::deque<PendingView> views;  // seen, not started
  std::vector<Peer> peers;        // by NodeId
  std::map<ViewId, Hole> holes;
  std::vector<Known> outgoing;  // knowledge as a home, of chunks that have another home now

  std::unordered_map<SegmentId, SegmentTable> segments;
  std::vector<Waiting> waiting{1};  // [0] is not used
  uint32_t waiting_free = 0;
  std::deque<SegmentId> destroyed_ids;  // the newest ones; ids are not reused
  uint32_t transactions = 0;

  std::vector<Internal> inbox;
  std::vector<Effect>* effects = nullptr;  // of the event being handled
  uint64_t wants_open = 0, works_open = 0, waiting_open = 0;
  Counters counters;
  std::vector<PageRef> late_drops;  // Bug::kAckBeforeDrop
  bool ack_dropped = false;         // Bug::kDropInvalidationAck
};

}  // namespace kevre::dsm
