// Directory: who holds page p, and who may write it. A pure state machine: events in, effects out. No clock, no sockets,
// no threads, no random numbers, no bytes of pages: the daemon (dsm/node.cc) and the simulator (tests/sim) drive this
// same object. One per node; it plays both parts of the node:
//   home   rules the pages of the chunks that rendezvous hashing gives to this node in the current view
//   copies what this node itself holds, and what its programs wait for
//
// Driver's contract
//   * Effects are executed in the order of the list, completely, before the next event is fed.
//   * Effects of a frame (kInstall .. kPoison) never fail in the directory's eyes.
//   * Messages between two nodes arrive in the order sent, or the peer is lost (a view without it follows).
//   * Every node is fed the same views in the same order (one that joins: from its own on).
//   * A node that leaves stays in `left` of the following views until it said kStable for the newest view that it was
//     fed; then all that it had is with the others and it may go. A node that vanishes earlier is named in `lost`.
//   * One-sided reads (Options::one_sided) see what kSendFrames published, and never a mixture; how, and what they may not
//     see any more: dsm/shelf.h and the second half of dsm/protocol.h.
//   * on_hold_over follows every kStartHold some time later, at the latest when nothing else is to do.
// Protocol, with the argument why each race is excluded: dsm/protocol.h. Tested in tests/dsm/directory_test.cc and by
// tests/sim (seeded schedules, exhaustive small configurations, bugs put in on purpose).
// Threads: one owner. Memory: allocates when a page is first touched, not on later faults.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "dsm/protocol.h"
#include "dsm/segment.h"

namespace kevre::dsm {

struct Effect {
  enum class Kind : uint8_t {
    kSend,        // message to `to`, without page bytes
    kSendFrames,  // for each page of message.mask, in order: first do `frame`, then append its 4096 bytes; then send to `to`
    kInstall,     // pages of (segment, page, mask) become present with `access`; waiting faults are resolved. Bytes:
                  // zeroes if `zero`, else from the payload of the message being handled, which is also in `message`:
                  // the k-th bit of message.mask is the k-th 4096 bytes (`mask` may leave some of them out)
    kUpgrade,     // a read copy becomes writable; waiting write faults are resolved
    kDrop,        // a read copy is discarded: afterwards no program can read it (PTEs and TLBs of all processes clean)
    kPoison,      // the page is lost: waiting and later accesses get SIGBUS
    kStartHold,   // feed on_hold_over(segment, page) after the holding time. `access` kRead: only so long that the
                  // program that waited gets to run (argument in dsm/copies.cc); kWrite: the adaptive time
    kStable,      // the hand-over to `view` is complete on this node
    kFetch,       // one-sided reads of the pages of message.mask at `to`. `note`: the message is sent first, on the same
                  // line. Then, in a later event, exactly one on_fetched with this message
    kClose,       // the published bytes of (segment, page, mask) can no longer be read by reads that begin from now on.
                  // Then on_closed with this message, after every message that had arrived here when they were closed
                  // was fed
  };
  enum class Frame : uint8_t {
    kKeep,       // bytes are read, access stays (a read copy or home's clean copy)
    kDowngrade,  // writable becomes read-only in every process, then the bytes are read
    kTake,       // writable or readable becomes absent in every process; the bytes are its final content
  };
  Kind kind;
  Frame frame = Frame::kKeep;
  Access access = Access::kNone;
  bool zero = false;
  bool publish = false;  // kSendFrames: one-sided reads may have the bytes of these pages from now on, until their frame
                         // changes (kUpgrade, kDrop, kPoison, Frame::kTake, destroyed) or kClose
  bool note = false;     // kFetch
  NodeId to;
  ViewId view;
  SegmentId segment;
  uint64_t page = 0;
  uint64_t mask = 0;  // bit i: page + i
  PageMessage message;
};

class Directory {
 public:
  struct Options {
    NodeId self;
    // A bug put in on purpose, for the tests of the simulator itself; see tests/sim. Always kNone in production.
    enum class Bug : uint8_t { kNone, kDropInvalidationAck, kAckBeforeDrop, kGrantBeforeAcks, kForgetSharer, kDropLateGrant,
                              kNoDrain, kNoteAfterRead, kSpoiledFetchInstalled, kOpenAfterUpgrade, kForgetNote } bug = Bug::kNone;
    bool hold = true;  // ask for kStartHold after grants that a program waited for
    bool one_sided = false;     // the driver can publish, fetch and close
    bool fetch_unseen = false;  // tests: fetches are tried without a hint that the page is published
  };
  struct Counters {
    uint64_t read_faults = 0, write_faults = 0, upgrades = 0;  // asked of a home by this node
    uint64_t grants = 0, revokes = 0, forwards = 0;            // given by this node's home part
    uint64_t pages_prefetched = 0, pages_lost = 0;
    uint64_t deferred = 0;  // times that another node has to wait until this node's holding of a page is over
    uint64_t pages_fetched = 0, fetches_failed = 0;  // one-sided: pages that came, pages that had to be asked for
    uint64_t closes = 0;                             // writes that had to wait for kClose
    uint64_t ignored = 0;  // messages that made no sense in the state or view they met
  };

  explicit Directory(Options options);
  ~Directory();

  // Each appends to `effects` (which the driver empties between events and reuses).

  // A program of this node needs `want` on a page that it does not have. `ahead`: up to 63 pages behind it are welcome
  // too (a hint: sequential reading). Repeated faults on a page that is already asked for are ignored.
  void on_fault(SegmentId segment, uint64_t page, Access want, uint32_t ahead, std::vector<Effect>& effects);
  // From a peer or, for the home on the same node, from this node itself. Messages that make no sense in the current
  // state or view are ignored and counted. `message` was decoded by decode() and is otherwise untrusted.
  void on_message(NodeId from, const PageMessage& message, std::vector<Effect>& effects);
  void on_hold_over(SegmentId segment, uint64_t page, std::vector<Effect>& effects);
  // The answer to kFetch: `asked` is its message, `arrived` (of asked.mask) the pages that were published at the peer; a
  // kInstall that follows finds the bytes as it does in the payload of a message `asked`. After anything: what no
  // longer fits is left alone.
  void on_fetched(const PageMessage& asked, uint64_t arrived, std::vector<Effect>& effects);
  void on_closed(const PageMessage& closed, std::vector<Effect>& effects);
  // `members` ordered; `lost` were in the view before and are gone; `left` hand over what they hold (they are fed this
  // view too, and are told by kStable that they may go).
  void on_view(ViewId view, std::span<const NodeId> members, std::span<const NodeId> lost, std::span<const NodeId> left,
               std::vector<Effect>& effects);
  // The segment is destroyed everywhere: forget it. Frames are the driver's to free.
  void on_destroy(SegmentId segment, std::vector<Effect>& effects);

  Access access(SegmentId segment, uint64_t page) const;
  bool quiescent() const;  // nothing asked for, nothing in the middle, no hand-over: for tests
  const Counters& counters() const;
  NodeId home_of(SegmentId segment, uint64_t page) const;
  uint64_t digest() const;  // of everything that decides what happens next: for exhaustive tests

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace kevre::dsm
