// World: nodes with real Directory objects, frames of one stamp instead of 4096 bytes, programs, ordered
// channels, and the oracle. It has no will of its own: somebody picks which of the events that may happen
// next does happen (sim.cc by seed, exhaustive_test.cc all of them).
//
// The oracle. Every write leaves a stamp of its own; `latest` is the newest one of a page. Checked at every
// step:
//   * what becomes present holds the latest stamp, a read sees it (so each page has one order that all
//   programs see);
//   * who may write a page is alone with it among the living nodes;
//   * what one-sided reads may have (an open slot of the shelf) is a read copy of its node, and the same bytes;
//   * effects keep the driver's contract: nothing is sent, dropped or upgraded that is not there;
//   * a page is called lost only when its bytes have been on dead nodes alone, or nobody wrote it and a home
//   died.
//
// One-sided reads go the way of the network interface. They stand in the channel with the messages. What is at the
// front of a channel is delivered, or arrives: a message that has arrived waits at its node until it is delivered, a read
// that arrives begins. It takes the headers of the slots when it begins and their bytes when it ends, and has read a page
// when these bytes are the ones that the header told of; the slot may have been closed between. kClose is answered
// when the messages that had arrived are delivered. Slots are few, so that pages evict each other.
// Threads: one owner.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "dsm/directory.h"

namespace kevre::sim {

enum class Op : uint8_t { kRead, kWrite, kAdd };

struct Event {
  enum class Kind : uint8_t { kDeliver, kRun, kHoldOver, kView, kDestroy, kArrive, kRead, kClosed };
  Kind kind = Kind::kDeliver;
  uint32_t a = 0;  // kDeliver: channel; kRun: program; kHoldOver: index of the timer; kView, kDestroy: node;
                   // kArrive: channel; kRead: number of the fetch; kClosed: index
};

struct Stats {
  uint64_t steps = 0, faults = 0, messages = 0, crashes = 0, leaves = 0, joins = 0, overlaps = 0;
  uint64_t pages_lost = 0, untouched_lost = 0, late_grants = 0, destroys = 0, deferred = 0;
  uint64_t fetches = 0, fetched = 0, fetched_by_home = 0, closes = 0, waited_closes = 0;  // fetched: pages installed
};

struct WorldOptions {
  uint32_t nodes = 2, pages = 1, pages_per_chunk = 1;
  bool second =
      false;  // the upper half of the pages is a second segment, created and perhaps destroyed on the way
  bool hold = true;
  bool one_sided = false, fetch_unseen = false;
  uint32_t slots = 1;  // of each node's shelf
  bool trace = false;
  dsm::Directory::Options::Bug bug = dsm::Directory::Options::Bug::kNone;
};

class World {
 public:
  explicit World(const WorldOptions& options);

  // Programs. `ops` are chosen by the caller in advance.
  struct Task {
    Op op = Op::kRead;
    uint32_t page = 0;
    uint32_t ahead = 0;
  };
  void add_program(uint32_t node, std::vector<Task> tasks);

  // Faults, decided by the caller.
  bool crash(uint32_t node, Random& random);  // false: too few would be left
  // `arrive`: how many of so many messages under way on a channel still arrive.
  bool crash(uint32_t node, const std::function<size_t(size_t)>& arrive);
  bool leave(uint32_t node);
  void join();
  void create_second_segment();  // programs use only the first segment before
  void destroy_second_segment();

  // What may happen next. Channels, programs, timers, nodes behind in views.
  size_t choices() const {
    return active_.size() + runnable_.size() + timers_.size() + behind_.size() + destroy_pending_.size() +
           arriving_.size() + reading_.size() + closable_.size();
  }
  Event choice(size_t index) const;
  // The choice ends a holding time although a program that it was meant for has not run yet.
  bool runs_soon(size_t index) const;
  void apply(Event event);

  bool failed() const { return !failure_.empty(); }
  const std::string& failure() const { return failure_; }
  void check_rest();  // nothing may be pending any more: fails otherwise
  const Stats& stats() const { return stats_; }
  const std::vector<std::string>& trace() const { return trace_; }
  uint64_t digest() const;
  uint32_t nodes() const { return static_cast<uint32_t>(nodes_.size()); }
  uint32_t members() const { return static_cast<uint32_t>(views_.back().members.size()); }
  bool is_member(uint32_t node) const;
  uint32_t home_of(uint32_t page) const {  // as the first node sees it
    return nodes_[0].directory->home_of(segment_of(page), real_page(page)).value - 1u;
  }
  bool overlapping() const { return !behind_.empty() || !all_ready(); }
  uint32_t channel_from(size_t index) const { return active_[index] / kNodesMax; }

  static constexpr uint32_t kNodesMax = 16;

 private:
  struct Frame {
    dsm::Access access = dsm::Access::kNone;
    bool poisoned = false;
    uint32_t stamp = 0;
  };
  struct Slot {
    bool open = false;
    uint32_t page = 0;
    uint32_t generation = 0;
    uint32_t stamp = 0;
    bool operator==(const Slot&) const = default;
  };
  struct Node {
    NodeId id;
    bool alive = true;
    bool gone_in_order = false;  // it left, and was stable
    bool stopped = false;  // its programs ended because it leaves
    bool segment_gone = false;
    size_t view = 0;  // index of the next view to be fed
    ViewId stable;
    std::unique_ptr<dsm::Directory> directory;
    std::vector<Frame> frames;
    std::vector<Slot> shelf;
  };
  struct Program {
    uint32_t node = 0;
    std::vector<Task> tasks;
    size_t next = 0;
    bool waiting = false;
    bool runnable = false;
  };
  struct Page {
    uint32_t latest = 0;     // stamp; 0: never written
    bool destroyed = false;  // the last living copy went with its node
  };
  struct Message {
    dsm::PageMessage header;
    std::vector<uint32_t> payload;
    uint32_t fetch = 0;  // not 0: no message, but the read of this fetch
  };
  struct Channel {
    std::deque<Message> queue;
    uint32_t arrived = 0;  // so many messages at the front wait at their node
    uint32_t reads = 0;    // in the queue
  };
  struct Fetch {
    enum class Stage : uint8_t { kUnused, kQueued, kBegun, kEnded } stage = Stage::kUnused;
    uint32_t reader = 0, target = 0;
    bool note = false;
    dsm::PageMessage asked;
    std::vector<Slot> headers;     // when it began; one for each page of the mask
    std::vector<uint32_t> stamps;  // likewise, when it ended
    uint64_t arrived = 0;          // mask
  };
  struct Closing {
    uint32_t node = 0;
    dsm::PageMessage closed;
    std::array<uint32_t, kNodesMax> undelivered{};  // by sender: messages that had arrived and are not delivered
  };
  struct View {
    ViewId id;
    std::vector<NodeId> members, lost, left;
  };

  static std::string text_of(const dsm::PageMessage& m);
  void fail(std::string text);
  void note(std::string text);
  SegmentId segment_of(uint32_t page) const;
  uint64_t real_page(uint32_t page) const;
  bool to_index(SegmentId segment, uint64_t page, uint32_t* index) const;
  uint32_t add_node();
  void publish(View next);
  void refresh_behind();
  bool all_ready() const;
  void deliver(uint32_t channel);
  void run_program(uint32_t program);
  void perform(Program& p, uint32_t node, const Task& task);
  void wake(uint32_t node, uint32_t page);
  void make_runnable(uint32_t program);
  void execute(uint32_t node, const Message* handled);
  void execute_frames(uint32_t node, const dsm::Effect& effect);
  void execute_install(uint32_t node, const dsm::Effect& effect, const Message* handled);
  void execute_page(uint32_t node, const dsm::Effect& effect);
  void send(uint32_t node, NodeId to, Message message);
  void arrive(uint32_t channel);
  void start_fetch(uint32_t node, const dsm::Effect& effect);
  void begin_read(uint32_t fetch);
  void end_read(uint32_t fetch, bool failed);
  void step_fetch(uint32_t fetch);
  void forget_fetches(uint32_t node);
  void drop_reads(uint32_t channel);
  void open_slot(uint32_t node, uint32_t page);
  void close_slot(uint32_t node, uint32_t page);
  void check_shelf(uint32_t node);
  void close(uint32_t node, const dsm::Effect& effect);
  void delivered(uint32_t node, uint32_t from, uint32_t left);
  uint64_t reads_digest() const;
  bool alone(uint32_t node, uint32_t page) const;
  bool writer_elsewhere(uint32_t node, uint32_t page) const;
  void check_last_copy(uint32_t node, uint32_t page);
  void bury(uint32_t node, const Message& message);
  void account_losses();
  void retire(uint32_t node);
  bool in_second(uint32_t page) const { return options_.second && page >= options_.pages / 2; }
  bool unchecked(uint32_t page) const { return second_destroyed_ && in_second(page); }

  WorldOptions options_;
  std::vector<Node> nodes_;
  std::vector<Program> programs_;
  std::vector<Page> pages_;
  std::vector<Channel> channels_;
  std::vector<uint32_t> active_;  // channels with messages
  std::vector<uint32_t> runnable_;
  struct Timer {
    uint32_t node, page;
    SegmentId segment;
  };
  std::vector<Timer> timers_;
  std::vector<uint32_t> behind_;  // nodes with a view to come
  std::vector<uint32_t> destroy_pending_;
  std::vector<uint32_t> arriving_;  // channels with reads
  std::vector<uint32_t> reading_;   // fetches whose read has begun
  std::vector<Fetch> fetches_{1};   // [0] is not used
  std::vector<Closing> closing_;    // messages that had arrived are not delivered yet
  std::vector<Closing> closable_;
  uint32_t generation_ = 0;
  std::vector<View> views_;
  std::vector<NodeId> leaving_;  // in `left` until stable
  std::vector<dsm::Effect> effects_;
  uint32_t stamp_ = 0;
  bool second_created_ = false, second_destroyed_ = false;
  SegmentId second_;
  uint64_t crashes_before_second_ = 0;
  Stats stats_;
  std::string failure_;
  std::vector<std::string> trace_;
};

}  // namespace kevre::sim
