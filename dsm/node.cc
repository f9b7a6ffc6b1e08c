#include "dsm/node.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <bit>
#include <deque>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "dsm/fetcher.h"
#include "dsm/read_ahead.h"

namespace kevre::dsm {
namespace {

constexpr size_t kOutboxMax = 65536;
constexpr Nanos kCheckPrograms = kSecond;  // forked children have no connection whose end would be seen
constexpr Nanos kRetryKept = 10 * kMillisecond;
constexpr size_t kPlaces = 4096;
constexpr Nanos kSweepHolds = 10 * kMillisecond;
constexpr Nanos kContendedWithin = 100 * kMillisecond;

struct Letter {
  PageMessage message;
  transport::Buffer payload;
};

// The time of something about a page. Two pages that share a place lose a time, no more.
class PageTimes {
 public:
  // Keeps an earlier time of the same page.
  void note_first(SegmentId segment, uint64_t page, Nanos at) {
    Time& time = place(segment, page);
    if (time.at == 0 || time.segment != segment || time.page != page) {
      time = {segment, page, at};
    }
  }
  void note(SegmentId segment, uint64_t page, Nanos at) { place(segment, page) = {segment, page, at}; }
  Nanos get(SegmentId segment, uint64_t page) {  // 0: none
    const Time& time = place(segment, page);
    return time.segment == segment && time.page == page ? time.at : 0;
  }
  Nanos take(SegmentId segment, uint64_t page) {  // 0: none
    Time& time = place(segment, page);
    return time.segment == segment && time.page == page ? std::exchange(time.at, 0) : 0;
  }

 private:
  struct Time {
    SegmentId segment;
    uint64_t page = 0;
    Nanos at = 0;
  };
  Time& place(SegmentId segment, uint64_t page) {
    return times_[(segment.value * 0x9e3779b9u + page) % kPlaces];
  }
  std::array<Time, kPlaces> times_{};
};

}  // namespace

struct Node::Parts : Pager::Sink, transport::Handler {
  Parts(const Options& given, EventLoop* the_loop, transport::Transport* the_transport)
      : options(given),
        loop(the_loop),
        transport(the_transport),
        fetcher(Fetcher::create(the_transport, given.shelf_bytes, [this] { on_fetcher_ended(); })),
        directory({.self = given.self, .one_sided = fetcher != nullptr}),
        read_ahead(given.ahead_max) {}

  // Pager::Sink
  void on_fault(const Pager::Fault& fault) override;
  void on_fork(MmId parent, MmId child, int child_uffd) override;
  void on_unmapped(MmId mm, uint64_t address, uint64_t bytes) override;
  // transport::Handler
  void on_message(NodeId from, std::span<const std::byte> header,
                  std::span<const std::byte> payload) override;
  void on_peer_lost(NodeId peer, const Error& why) override;
  void on_writable(NodeId peer) override;

  Result<void> watch(MmId mm, int fd);
  void unwatch(MmId mm);
  void execute();          // the effects in `effects`, then what they caused on this node
  void execute_effects();  // only those
  bool handle_ended();     // one fetch or close
  void on_fetcher_ended();
  void fetch(const Effect& effect);
  void unpublish(const Effect& effect);
  void execute(const Effect& effect);
  void execute_install(const Effect& effect);
  void answered(SegmentId segment, uint64_t page, uint64_t mask);
  void send_frames(const Effect& effect);
  void send(NodeId to, const PageMessage& message, transport::Buffer payload);
  Result<void> try_send(NodeId to, Letter* letter);
  void finish();  // after frame calls: report what they read, wait for memory
  void hold(const Effect& effect);
  void end_due_holds(Nanos now);
  void wait_for_hold(SegmentId segment, uint64_t page, uint64_t mask);
  void arm_hold_timer();
  void on_hold_timer();
  void sweep_holds();
  void check_programs();
  void introduce();

  struct Hold {
    Nanos due;
    SegmentId segment;
    uint64_t page;
  };
  Options options;
  EventLoop* loop;
  transport::Transport* transport;
  std::unique_ptr<Fetcher> fetcher;  // null: no one-sided reads
  Directory directory;
  std::unique_ptr<Pager> pager;
  ReadAhead read_ahead;
  NodeStats stats;
  PageTimes starts;  // when the first unanswered fault was read
  PageTimes gone;    // when the page was given away from here
  Nanos event_time = 0;
  Nanos typical_fault_ns = 0;  // moving average; without what others' holding adds
  std::vector<Effect> effects;
  bool executing = false;
  std::span<const std::byte> payload;  // of the message being handled
  std::deque<Letter> inbox;            // to this node itself
  std::unordered_map<NodeId, std::deque<Letter>> outbox;
  std::unordered_set<NodeId> lost;
  std::vector<NodeId> peers;  // of the newest view, this node among them
  std::deque<Hold> read_holds, write_holds;
  std::vector<Nanos> hold_waits;  // when holds end that somebody waits for; sorted, the next one last
  EventLoop::TimerId hold_timer = 0, sweep_timer = 0;
  Nanos hold_timer_due = 0;
  uint64_t deferred_seen = 0;
  std::unordered_map<MmId, int> watched;
  ViewId stable;
  std::function<void(ViewId)> stable_call;
  std::function<void(MmId, MmId, int)> fork_call;
  std::function<void(MmId, uint64_t, uint64_t)> unmapped_call;
  EventLoop::TimerId check_timer = 0, kept_timer = 0;
};

// ---- programs

void Node::Parts::on_fault(const Pager::Fault& fault) {
  const bool here = pager->resolve_locally(fault);
  ReadAhead::Ask ask;
  if (fault.want == Access::kRead) {
    ask = read_ahead.on_read(fault.mm, fault.segment, fault.page, pager->pages(fault.segment));
  }
  if (here) {
    ++stats.local_faults;
  } else {
    starts.note_first(fault.segment, fault.page, event_time);
    ++stats.faults;
    directory.on_fault(fault.segment, fault.page, fault.want, ask.ahead, effects);
    execute();
  }
  for (uint32_t i = 0; i < ask.count; ++i) {
    directory.on_fault(fault.segment, ask.then[i].page, Access::kRead, ask.then[i].pages - 1, effects);
    execute();
  }
}

void Node::Parts::on_fork(MmId parent, MmId child, int child_uffd) {
  ++stats.forks;
  if (const auto done = watch(child, child_uffd); !done) {
    KEVRE_LOG_ERROR("a forked program cannot be served: {}", done.error().text);
    return;
  }
  if (fork_call) {
    fork_call(parent, child, child_uffd);
  }
}

void Node::Parts::on_unmapped(MmId mm, uint64_t address, uint64_t bytes) {
  if (unmapped_call) {
    unmapped_call(mm, address, bytes);
  }
}

Result<void> Node::Parts::watch(MmId mm, int fd) {
  KEVRE_TRY(loop->add(fd, EPOLLIN, [this, mm](uint32_t) {
    event_time = now_ns();
    pager->read_events(mm);
    finish();
  }));
  watched[mm] = fd;
  return {};
}

void Node::Parts::unwatch(MmId mm) {
  const auto i = watched.find(mm);
  if (i != watched.end()) {
    loop->remove(i->second);
    watched.erase(i);
  }
}

void Node::Parts::check_programs() {
  std::vector<MmId> mms;
  pager->list(mms);
  for (const MmId mm : mms) {
    if (!pager->alive(mm)) {
      unwatch(mm);
      pager->drop(mm);
    }
  }
  introduce();
  check_timer = loop->after(kCheckPrograms, [this] { check_programs(); });
}

// A peer may become able to read one-sided after the view that brought it.
void Node::Parts::introduce() {
  for (const NodeId peer : peers) {
    if (fetcher != nullptr && peer != options.self) {
      fetcher->introduce(peer);
    }
  }
}

// ---- effects

void Node::Parts::execute_effects() {
  for (size_t i = 0; i < effects.size(); ++i) {
    execute(effects[i]);
  }
  effects.clear();
  payload = {};
}

void Node::Parts::execute() {
  executing = true;
  for (;;) {
    execute_effects();
    if (inbox.empty()) {
      if (handle_ended()) {
        continue;
      }
      executing = false;
      return;
    }
    const Letter letter = std::move(inbox.front());
    inbox.pop_front();
    payload = letter.payload ? letter.payload.bytes() : std::span<const std::byte>{};
    directory.on_message(options.self, letter.message, effects);
    execute_effects();  // while the letter lives
  }
}

bool Node::Parts::handle_ended() {
  Fetcher::Ended ended;
  if (fetcher == nullptr || !fetcher->take(&ended)) {
    return false;
  }
  if (ended.closed) {
    directory.on_closed(ended.asked, effects);
  } else {
    payload = ended.bytes;
    directory.on_fetched(ended.asked, ended.arrived, effects);
  }
  execute_effects();  // while the bytes live
  if (directory.counters().deferred != deferred_seen) {
    wait_for_hold(ended.asked.segment, ended.asked.page, ended.asked.mask);
  }
  return true;
}

// Often in the transport's progress(), but also when effects are being executed; then execute() comes to it.
void Node::Parts::on_fetcher_ended() {
  if (!executing) {
    execute();
    event_time = now_ns();
    finish();
  }
}

void Node::Parts::fetch(const Effect& effect) {
  const auto waiting = outbox.find(effect.to);
  const bool line_free = !lost.contains(effect.to) && (waiting == outbox.end() || waiting->second.empty());
  fetcher->fetch(effect.to, effect.message, effect.note, line_free);
}

// The frames are about to change.
void Node::Parts::unpublish(const Effect& effect) {
  if (fetcher != nullptr) {
    for (uint64_t rest = effect.mask; rest != 0; rest &= rest - 1) {
      fetcher->shelf().close(effect.segment, effect.page + static_cast<uint64_t>(std::countr_zero(rest)));
    }
  }
}

void Node::Parts::execute(const Effect& effect) {
  switch (effect.kind) {
    case Effect::Kind::kSend:
      send(effect.to, effect.message, {});
      break;
    case Effect::Kind::kSendFrames:
      send_frames(effect);
      break;
    case Effect::Kind::kInstall:
      execute_install(effect);
      break;
    case Effect::Kind::kUpgrade:
      unpublish(effect);
      pager->upgrade(effect.segment, effect.page);
      answered(effect.segment, effect.page, 1);
      break;
    case Effect::Kind::kDrop:
      unpublish(effect);
      pager->drop_copy(effect.segment, effect.page, effect.mask);
      gone.note(effect.segment, effect.page, now_ns());
      break;
    case Effect::Kind::kPoison:
      unpublish(effect);
      for (uint64_t rest = effect.mask; rest != 0; rest &= rest - 1) {
        pager->poison(effect.segment, effect.page + static_cast<uint64_t>(std::countr_zero(rest)));
      }
      break;
    case Effect::Kind::kStartHold:
      hold(effect);
      break;
    case Effect::Kind::kFetch:
      fetch(effect);
      break;
    case Effect::Kind::kClose:
      fetcher->close(effect.message);
      break;
    case Effect::Kind::kStable:
      stable = effect.view;
      if (stable_call) {
        stable_call(stable);
      }
      break;
  }
}

void Node::Parts::execute_install(const Effect& effect) {
  const PageMessage& message = effect.message;
  stats.pages_in += static_cast<uint64_t>(std::popcount(effect.mask));
  if (effect.zero || (effect.page == message.page && effect.mask == message.mask)) {
    pager->install(effect.segment, effect.page, effect.mask, effect.access,
                   effect.zero ? std::span<const std::byte>{} : payload);
  } else {  // some of the message's pages are left out: one page at a time, which is rare
    for (uint64_t rest = effect.mask; rest != 0; rest &= rest - 1) {
      const uint64_t page = effect.page + static_cast<uint64_t>(std::countr_zero(rest));
      const uint64_t before = message.mask & ((uint64_t{1} << (page - message.page)) - 1);
      const size_t at = static_cast<size_t>(std::popcount(before)) * kPageBytes;
      KEVRE_CHECK(at + kPageBytes <= payload.size(), "page {} of a message with {} bytes", page,
                  payload.size());
      pager->install(effect.segment, page, 1, effect.access, payload.subspan(at, kPageBytes));
    }
  }
  answered(effect.segment, effect.page, effect.mask);
}

void Node::Parts::answered(SegmentId segment, uint64_t page, uint64_t mask) {
  Nanos now = 0;
  for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
    const uint64_t n = page + static_cast<uint64_t>(std::countr_zero(rest));
    const Nanos start = starts.take(segment, n);
    if (start == 0) {
      continue;
    }
    now = now == 0 ? now_ns() : now;
    stats.fault_ns.record(now - start);
    // A page that was here a moment ago is wanted by others too: its time includes their holding and their
    // turn in the home's queue. Were it to count, every node's holding would lengthen every other's until
    // hold_max.
    const Nanos lost_at = gone.get(segment, n);
    const bool contended = lost_at != 0 && start - lost_at < kContendedWithin;
    if (!contended || now - start < typical_fault_ns) {
      typical_fault_ns += (now - start - typical_fault_ns) / 16;
    }
  }
}

void Node::Parts::send_frames(const Effect& effect) {
  const PageMessage& message = effect.message;
  const auto count = static_cast<size_t>(std::popcount(message.mask));
  transport::Buffer bytes = transport->buffer(count * kPageBytes);
  switch (effect.frame) {
    case Effect::Frame::kTake:
      unpublish(effect);
      pager->take(message.segment, message.page, message.mask, bytes.bytes());
      gone.note(message.segment, message.page, now_ns());
      break;
    case Effect::Frame::kDowngrade:
      pager->downgrade(message.segment, message.page, message.mask);
      pager->read(message.segment, message.page, message.mask, bytes.bytes());
      break;
    case Effect::Frame::kKeep:
      pager->read(message.segment, message.page, message.mask, bytes.bytes());
      break;
  }
  if (effect.publish && fetcher->anyone_reads()) {
    size_t at = 0;
    for (uint64_t rest = message.mask; rest != 0; rest &= rest - 1, at += kPageBytes) {
      fetcher->shelf().open(message.segment, message.page + static_cast<uint64_t>(std::countr_zero(rest)),
                            bytes.bytes().subspan(at, kPageBytes));
    }
  }
  stats.pages_out += count;
  send(effect.to, message, std::move(bytes));
}

void Node::Parts::finish() {
  pager->report_queued();
  if (pager->has_kept() && kept_timer == 0) {
    kept_timer = loop->after(kRetryKept, [this] {
      kept_timer = 0;
      pager->retry_kept();
      finish();
    });
  }
}

// ---- messages

void Node::Parts::send(NodeId to, const PageMessage& message, transport::Buffer bytes) {
  Letter letter{message, std::move(bytes)};
  if (to == options.self) {
    inbox.push_back(std::move(letter));
    return;
  }
  if (lost.contains(to)) {
    return;
  }
  std::deque<Letter>& waiting = outbox[to];
  if (waiting.empty()) {
    const auto sent = try_send(to, &letter);
    if (sent || sent.error().code != Errc::kBusy) {
      return;  // a lost peer: a view without it follows
    }
  }
  if (waiting.size() >= kOutboxMax) {
    KEVRE_LOG_ERROR("node {} takes no messages; {} wait for it: disconnected", to, waiting.size());
    waiting.clear();
    transport->disconnect(to);
    return;
  }
  waiting.push_back(std::move(letter));
}

// A Buffer that is given away is gone even when the answer is kBusy, so it is given only when that cannot be.
Result<void> Node::Parts::try_send(NodeId to, Letter* letter) {
  const auto header = std::as_bytes(std::span(&letter->message, 1));
  if (!letter->payload) {
    return transport->send(to, transport::Service::kDsm, header, std::span<const std::byte>{});
  }
  if (transport->queued_bytes(to) == 0) {
    return transport->send(to, transport::Service::kDsm, header, std::move(letter->payload));
  }
  return transport->send(to, transport::Service::kDsm, header, std::as_const(letter->payload).bytes());
}

void Node::Parts::on_writable(NodeId peer) {
  std::deque<Letter>& waiting = outbox[peer];
  while (!waiting.empty()) {
    const auto sent = try_send(peer, &waiting.front());
    if (!sent && sent.error().code == Errc::kBusy) {
      return;
    }
    waiting.pop_front();
  }
}

void Node::Parts::on_peer_lost(NodeId peer, const Error&) {
  outbox[peer].clear();
  if (fetcher != nullptr) {
    fetcher->forget(peer);
  }
}

void Node::Parts::on_message(NodeId from, std::span<const std::byte> header,
                             std::span<const std::byte> bytes) {
  if (lost.contains(from)) {
    return;
  }
  if (header.size() == sizeof(ShelfMessage)) {
    const auto shelf = decode_shelf(header, bytes.size());
    stats.rejected += shelf ? 0 : 1;
    if (shelf && fetcher != nullptr) {
      fetcher->on_message(from, *shelf);
    }
    return;
  }
  const auto message = decode(header, bytes.size());
  if (!message) {
    ++stats.rejected;
    return;
  }
  if (!read_holds.empty() || !write_holds.empty()) {
    end_due_holds(now_ns());
  }
  payload = bytes;
  directory.on_message(from, *message, effects);
  execute();
  if (directory.counters().deferred != deferred_seen) {
    wait_for_hold(message->segment, message->page, message->mask);
  }
  event_time = now_ns();
  finish();
}

// ---- holding
//
// Nothing need happen when a holding time ends that nobody waits for, and a timer for each would cost every
// fault a wake-up and (in a virtual machine) two exits to program the clock. So a timer is set only when the
// directory says that somebody waits (Counters::deferred); the others are ended by the way, at the next
// message or by a sweep, which also ends what a change of view made somebody wait for.

void Node::Parts::hold(const Effect& effect) {
  const bool writes = effect.access == Access::kWrite;
  const Nanos adaptive = std::clamp(typical_fault_ns * 3 / 2, options.hold_min_ns, options.hold_max_ns);
  stats.hold_ns = adaptive;
  (writes ? write_holds : read_holds)
      .push_back({now_ns() + (writes ? adaptive : options.hold_min_ns), effect.segment, effect.page});
  if (sweep_timer == 0) {
    sweep_timer = loop->after(kSweepHolds, [this] { sweep_holds(); });
  }
}

// May only be called between two events: it executes effects.
void Node::Parts::end_due_holds(Nanos now) {
  for (std::deque<Hold>* const holds : {&read_holds, &write_holds}) {
    while (!holds->empty() && holds->front().due <= now) {
      const Hold over = holds->front();
      holds->pop_front();
      directory.on_hold_over(over.segment, over.page, effects);
      execute();
      if (directory.counters().deferred != deferred_seen) {
        wait_for_hold(over.segment, over.page, 1);
      }
    }
  }
}

// An event about these pages left somebody waiting for the end of a holding time.
void Node::Parts::wait_for_hold(SegmentId segment, uint64_t page, uint64_t mask) {
  deferred_seen = directory.counters().deferred;
  for (const std::deque<Hold>* const holds : {&read_holds, &write_holds}) {
    Nanos due = 0;  // an entry ends not before those in front of it
    for (const Hold& one : *holds) {
      due = std::max(due, one.due);
      const uint64_t bit = one.page - page;
      if (one.segment == segment && bit < 64 && (mask >> bit & 1) != 0) {
        hold_waits.insert(std::lower_bound(hold_waits.begin(), hold_waits.end(), due, std::greater<>()), due);
      }
    }
  }
  arm_hold_timer();
}

void Node::Parts::arm_hold_timer() {
  if (hold_waits.empty() || (hold_timer != 0 && hold_timer_due <= hold_waits.back())) {
    return;
  }
  loop->cancel(hold_timer);
  hold_timer_due = hold_waits.back();
  hold_timer = loop->after(hold_timer_due - now_ns(), [this] { on_hold_timer(); });
}

void Node::Parts::on_hold_timer() {
  hold_timer = 0;
  const Nanos now = now_ns();
  while (!hold_waits.empty() && hold_waits.back() <= now) {
    hold_waits.pop_back();
  }
  end_due_holds(now);
  event_time = now;
  finish();
  arm_hold_timer();
}

void Node::Parts::sweep_holds() {
  sweep_timer = 0;
  end_due_holds(now_ns());
  finish();
  if (!read_holds.empty() || !write_holds.empty()) {
    sweep_timer = loop->after(kSweepHolds, [this] { sweep_holds(); });
  }
}

// ---- interface

Result<std::unique_ptr<Node>> Node::create(const Options& options, EventLoop* loop,
                                           transport::Transport* transport) {
  auto parts = std::make_unique<Parts>(options, loop, transport);
  KEVRE_ASSIGN(parts->pager, Pager::create(parts.get(), options.pager));
  parts->effects.reserve(256);
  loop->set_spin(options.spin_ns);
  transport->set_handler(transport::Service::kDsm, parts.get());
  Parts* const raw = parts.get();
  raw->check_timer = loop->after(kCheckPrograms, [raw] { raw->check_programs(); });
  return std::unique_ptr<Node>(new Node(std::move(parts)));
}

Node::Node(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Node::~Node() {
  Parts& p = *parts_;
  p.transport->set_handler(transport::Service::kDsm, nullptr);
  for (const EventLoop::TimerId timer : {p.check_timer, p.kept_timer, p.hold_timer, p.sweep_timer}) {
    p.loop->cancel(timer);
  }
  for (const auto& [mm, fd] : p.watched) {
    p.loop->remove(fd);
  }
}

void Node::on_view(const cluster::View& view) {
  std::vector<NodeId> members;
  for (const cluster::Member& member : view.members) {
    members.push_back(member.id);
  }
  for (const NodeId gone : view.lost) {
    parts_->lost.insert(gone);
    parts_->outbox.erase(gone);
    if (parts_->fetcher != nullptr) {
      parts_->fetcher->forget(gone);
    }
  }
  parts_->peers = members;
  parts_->introduce();
  parts_->directory.on_view(view.id, members, view.lost, view.left, parts_->effects);
  parts_->execute();
  parts_->event_time = now_ns();
  parts_->finish();
}

ViewId Node::stable_view() const {
  return parts_->stable;
}
void Node::set_on_stable(std::function<void(ViewId)> call) {
  parts_->stable_call = std::move(call);
}

bool Node::quiescent() const {
  return parts_->directory.quiescent() && parts_->read_holds.empty() && parts_->write_holds.empty() &&
         std::all_of(parts_->outbox.begin(), parts_->outbox.end(),
                     [](const auto& box) { return box.second.empty(); });
}

int Node::userfaultfd_device() const {
  return parts_->pager->userfaultfd_device();
}

Result<int> Node::segment_fd(SegmentId segment, uint64_t bytes) {
  return parts_->pager->open_segment(segment, bytes / kPageBytes + (bytes % kPageBytes != 0 ? 1 : 0));
}

Result<MmId> Node::adopt(UniqueFd uffd) {
  const int fd = uffd.get();
  KEVRE_ASSIGN(const MmId mm, parts_->pager->adopt(std::move(uffd)));
  if (const auto watched = parts_->watch(mm, fd); !watched) {
    parts_->pager->drop(mm);
    return tl::unexpected(watched.error());
  }
  return mm;
}

Result<void> Node::attach(MmId mm, SegmentId segment, uint64_t address, uint64_t bytes) {
  return parts_->pager->attach(mm, segment, address, bytes);
}

void Node::detach(MmId mm, uint64_t address) {
  parts_->pager->detach(mm, address);
}

void Node::drop(MmId mm) {
  parts_->unwatch(mm);
  parts_->pager->drop(mm);
}

bool Node::alive(MmId mm) {
  return parts_->pager->alive(mm);
}

void Node::set_on_fork(std::function<void(MmId, MmId, int)> call) {
  parts_->fork_call = std::move(call);
}
void Node::set_on_unmapped(std::function<void(MmId, uint64_t, uint64_t)> call) {
  parts_->unmapped_call = std::move(call);
}

void Node::destroy(SegmentId segment) {
  parts_->directory.on_destroy(segment, parts_->effects);
  parts_->execute();
  if (parts_->fetcher != nullptr) {
    parts_->fetcher->shelf().close_segment(segment);
  }
  parts_->pager->destroy_segment(segment);
  parts_->finish();
}

NodeStats Node::stats() const {
  NodeStats now = parts_->stats;
  now.programs = parts_->watched.size();
  now.directory = parts_->directory.counters();
  now.pager = parts_->pager->counters();
  return now;
}

std::string Node::describe_features() const {
  const Pager::Features& f = parts_->pager->features();
  return fmt::format("userfaultfd: minor faults with write protection {}, poison {}, fork events {}",
                     f.minor ? "yes" : "no (Linux 6.4)", f.poison ? "yes" : "no (Linux 6.6)",
                     f.event_fork ? "yes" : "no (needs CAP_SYS_PTRACE)");
}

}  // namespace kevre::dsm
