#include "tests/sim/world.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

namespace kevre::sim {

using dsm::Access;
using dsm::Effect;
using dsm::PageMessage;

namespace {
const char* name_of(PageMessage::Kind kind) {
  static constexpr const char* kNames[] = {"?",        "read?",     "write?", "grant", "revoke", "revoked",
                                           "forward",  "done",      "lost",   "flush", "report", "known",
                                           "handover", "reportend", "hole",   "ready", "reading"};
  return kNames[static_cast<size_t>(kind)];
}
}  // namespace

std::string World::text_of(const PageMessage& m) {
  return fmt::format("{} v{} s{:x} p{} m{:x}/{:x} a{} f{:x} r{} t{}", name_of(m.kind), m.view.value,
                     m.segment.value, m.page, m.mask, m.mask2, static_cast<int>(m.access), m.flags,
                     m.requester.value, m.transaction);
}

World::World(const WorldOptions& options)
    : options_(options), pages_(options.pages), channels_(kNodesMax * kNodesMax) {
  nodes_.reserve(kNodesMax);
  View first{ViewId(1), {}, {}, {}};
  for (uint32_t i = 0; i < options.nodes; ++i) {
    first.members.push_back(nodes_[add_node()].id);
  }
  views_.push_back(std::move(first));
  refresh_behind();
}

uint32_t World::add_node() {
  Node& node = nodes_.emplace_back();
  node.id = NodeId(static_cast<uint16_t>(nodes_.size()));
  node.directory = std::make_unique<dsm::Directory>(
      dsm::Directory::Options{.self = node.id,
                              .bug = options_.bug,
                              .hold = options_.hold,
                              .one_sided = options_.one_sided,
                              .fetch_unseen = options_.fetch_unseen});
  node.frames.resize(options_.pages);
  node.shelf.resize(options_.slots);
  node.view = views_.size();
  return static_cast<uint32_t>(nodes_.size() - 1);
}

void World::fail(std::string text) {
  if (failure_.empty()) {
    failure_ = std::move(text);
    note("FAILED: " + failure_);
  }
}

void World::note(std::string text) {
  if (options_.trace) {
    trace_.push_back(fmt::format("{:5} {}", stats_.steps, text));
  }
}

SegmentId World::segment_of(uint32_t page) const {
  return in_second(page) ? second_ : SegmentId(7);
}

uint64_t World::real_page(uint32_t page) const {
  return page / options_.pages_per_chunk * kChunkPages + page % options_.pages_per_chunk;
}

bool World::to_index(SegmentId segment, uint64_t page, uint32_t* index) const {
  const uint64_t in_chunk = page % kChunkPages;
  const uint64_t i = page / kChunkPages * options_.pages_per_chunk + in_chunk;
  *index = static_cast<uint32_t>(i);
  return in_chunk < options_.pages_per_chunk && i < options_.pages && segment_of(*index) == segment;
}

// Programs.

void World::add_program(uint32_t node, std::vector<Task> tasks) {
  programs_.push_back({node, std::move(tasks), 0, false, false});
  make_runnable(static_cast<uint32_t>(programs_.size() - 1));
}

void World::make_runnable(uint32_t program) {
  Program& p = programs_[program];
  if (!p.runnable && p.next < p.tasks.size()) {
    p.runnable = true;
    runnable_.push_back(program);
  }
}

void World::wake(uint32_t node, uint32_t page) {
  for (uint32_t i = 0; i < programs_.size(); ++i) {
    Program& p = programs_[i];
    if (p.waiting && p.node == node && p.tasks[p.next].page == page) {
      p.waiting = false;
      make_runnable(i);
    }
  }
}

void World::run_program(uint32_t program) {
  Program& p = programs_[program];
  runnable_.erase(std::find(runnable_.begin(), runnable_.end(), program));
  p.runnable = false;
  Node& node = nodes_[p.node];
  if (!node.alive || node.stopped) {
    p.next = p.tasks.size();
    return;
  }
  Task& task = p.tasks[p.next];
  if (options_.second && task.page >= options_.pages / 2 && !second_created_) {
    task.page %= options_.pages / 2;
  }
  const Frame& frame = node.frames[task.page];
  const Access want = task.op == Op::kRead ? Access::kRead : Access::kWrite;
  if (frame.poisoned || (unchecked(task.page) && node.segment_gone)) {
    note(fmt::format("n{} program {} page {} lost", node.id.value, program, task.page));
    ++p.next;
  } else if (frame.access >= want) {
    perform(p, p.node, task);
    ++p.next;
  } else {
    note(fmt::format("n{} program {} faults on page {} for {}", node.id.value, program, task.page,
                     static_cast<int>(want)));
    ++stats_.faults;
    p.waiting = true;
    effects_.clear();
    const uint32_t end = options_.second && !in_second(task.page) ? options_.pages / 2 : options_.pages;
    const uint32_t in_chunk = options_.pages_per_chunk - task.page % options_.pages_per_chunk;
    const uint32_t ahead = std::min({task.ahead, end - task.page - 1, in_chunk - 1});
    node.directory->on_fault(segment_of(task.page), real_page(task.page), want, ahead, effects_);
    return execute(p.node, nullptr);
  }
  make_runnable(program);
}

void World::perform(Program&, uint32_t node, const Task& task) {
  Frame& frame = nodes_[node].frames[task.page];
  Page& page = pages_[task.page];
  if (!unchecked(task.page) && frame.stamp != page.latest) {
    return fail(fmt::format("n{} sees stamp {} on page {}, the latest is {}", node + 1, frame.stamp,
                            task.page, page.latest));
  }
  if (task.op != Op::kRead) {
    if (!unchecked(task.page) && !alone(node, task.page)) {
      return fail(fmt::format("n{} writes page {} while another node holds it", node + 1, task.page));
    }
    frame.stamp = page.latest = ++stamp_;
  }
  note(fmt::format("n{} {} page {}: stamp {}", node + 1, task.op == Op::kRead ? "reads" : "writes", task.page,
                   frame.stamp));
}

bool World::alone(uint32_t node, uint32_t page) const {
  for (uint32_t i = 0; i < nodes_.size(); ++i) {
    if (i != node && nodes_[i].alive && nodes_[i].frames[page].access != Access::kNone) {
      return false;
    }
  }
  return true;
}

bool World::writer_elsewhere(uint32_t node, uint32_t page) const {
  for (uint32_t i = 0; i < nodes_.size(); ++i) {
    if (i != node && nodes_[i].alive && nodes_[i].frames[page].access == Access::kWrite) {
      return true;
    }
  }
  return false;
}

// Events.

Event World::choice(size_t index) const {
  if (index < active_.size()) {
    return {Event::Kind::kDeliver, active_[index]};
  }
  index -= active_.size();
  if (index < runnable_.size()) {
    return {Event::Kind::kRun, runnable_[index]};
  }
  index -= runnable_.size();
  if (index < timers_.size()) {
    return {Event::Kind::kHoldOver, static_cast<uint32_t>(index)};
  }
  index -= timers_.size();
  if (index < behind_.size()) {
    return {Event::Kind::kView, behind_[index]};
  }
  index -= behind_.size();
  if (index < destroy_pending_.size()) {
    return {Event::Kind::kDestroy, destroy_pending_[index]};
  }
  index -= destroy_pending_.size();
  if (index < arriving_.size()) {
    return {Event::Kind::kArrive, arriving_[index]};
  }
  index -= arriving_.size();
  if (index < reading_.size()) {
    return {Event::Kind::kRead, reading_[index]};
  }
  return {Event::Kind::kClosed, static_cast<uint32_t>(index - reading_.size())};
}

void World::apply(Event event) {
  ++stats_.steps;
  switch (event.kind) {
    case Event::Kind::kDeliver:
      return deliver(event.a);
    case Event::Kind::kRun:
      return run_program(event.a);
    case Event::Kind::kHoldOver: {
      const Timer timer = timers_[event.a];
      timers_.erase(timers_.begin() + event.a);
      note(fmt::format("n{} hold over page {}", timer.node + 1, timer.page));
      effects_.clear();
      nodes_[timer.node].directory->on_hold_over(timer.segment, real_page(timer.page), effects_);
      return execute(timer.node, nullptr);
    }
    case Event::Kind::kView: {
      Node& node = nodes_[event.a];
      const View& view = views_[node.view++];
      note(fmt::format("n{} sees view {}: {} members, {} lost, {} left", node.id.value, view.id.value,
                       view.members.size(), view.lost.size(), view.left.size()));
      if (std::find(view.left.begin(), view.left.end(), node.id) != view.left.end()) {
        node.stopped = true;
      }
      refresh_behind();
      effects_.clear();
      node.directory->on_view(view.id, view.members, view.lost, view.left, effects_);
      return execute(event.a, nullptr);
    }
    case Event::Kind::kDestroy: {
      std::erase(destroy_pending_, event.a);
      Node& node = nodes_[event.a];
      note(fmt::format("n{} destroys the second segment", node.id.value));
      effects_.clear();
      node.segment_gone = true;
      node.directory->on_destroy(second_, effects_);
      execute(event.a, nullptr);
      for (uint32_t page = 0; page < options_.pages; ++page) {
        if (in_second(page)) {
          node.frames[page].access = Access::kNone;
          close_slot(event.a, page);
          wake(event.a, page);
        }
      }
      return;
    }
    case Event::Kind::kArrive:
      return arrive(event.a);
    case Event::Kind::kRead:
      return step_fetch(event.a);
    case Event::Kind::kClosed: {
      const Closing closing = closable_[event.a];
      closable_.erase(closable_.begin() + event.a);
      note(fmt::format("n{} closed {}", closing.node + 1,
                       options_.trace ? text_of(closing.closed) : std::string()));
      effects_.clear();
      nodes_[closing.node].directory->on_closed(closing.closed, effects_);
      return execute(closing.node, nullptr);
    }
  }
}

void World::deliver(uint32_t channel) {
  Channel& c = channels_[channel];
  if (c.queue.front().fetch != 0) {
    return arrive(channel);
  }
  const Message message = std::move(c.queue.front());
  c.queue.pop_front();
  if (c.queue.empty()) {
    std::erase(active_, channel);
  }
  const uint32_t to = channel % kNodesMax, from = channel / kNodesMax;
  if (c.arrived > 0) {
    --c.arrived;
    delivered(to, from, ~0u);
  }
  if (!nodes_[to].alive) {
    return;
  }
  note(fmt::format("n{}>n{} {}", from + 1, to + 1, options_.trace ? text_of(message.header) : std::string()));
  ++stats_.messages;
  effects_.clear();
  nodes_[to].directory->on_message(nodes_[from].id, message.header, effects_);
  execute(to, &message);
}

void World::send(uint32_t node, NodeId to, Message message) {
  const uint32_t target = to.value - 1u;
  if (to == kNoNode || target >= nodes_.size() || target == node) {
    return fail(fmt::format("n{} sends to node {}", node + 1, to.value));
  }
  if (!nodes_[target].alive) {
    if (nodes_[target].gone_in_order && !message.payload.empty()) {
      return fail(fmt::format("n{} sends pages to n{}, which was told that it may go", node + 1, target + 1));
    }
    bury(target, message);
    if (!message.payload.empty()) {
      account_losses();  // pages may have been given to that node, and go with it
    }
    return;
  }
  // What is sent must be what the decoder lets in.
  const std::byte* bytes = reinterpret_cast<const std::byte*>(&message.header);
  const Result<PageMessage> decoded =
      dsm::decode({bytes, sizeof message.header}, message.payload.size() * kPageBytes);
  if (!decoded) {
    return fail(fmt::format("n{} sends what is refused: {}", node + 1, decoded.error().text));
  }
  const uint32_t channel = node * kNodesMax + target;
  if (channels_[channel].queue.empty()) {
    active_.push_back(channel);
  }
  channels_[channel].queue.push_back(std::move(message));
}

// Effects.

void World::execute(uint32_t node, const Message* handled) {
  // Index: nothing below feeds the directory, so the list does not grow.
  for (const Effect& effect : effects_) {
    switch (effect.kind) {
      case Effect::Kind::kSend:
        send(node, effect.to, {effect.message, {}, 0});
        break;
      case Effect::Kind::kSendFrames:
        execute_frames(node, effect);
        break;
      case Effect::Kind::kInstall:
        execute_install(node, effect, handled);
        break;
      case Effect::Kind::kUpgrade:
      case Effect::Kind::kDrop:
      case Effect::Kind::kPoison:
      case Effect::Kind::kStartHold:
        execute_page(node, effect);
        break;
      case Effect::Kind::kFetch:
        start_fetch(node, effect);
        break;
      case Effect::Kind::kClose:
        close(node, effect);
        break;
      case Effect::Kind::kStable:
        note(fmt::format("n{} stable in view {}", node + 1, effect.view.value));
        nodes_[node].stable = effect.view;
        retire(node);
        break;
    }
    if (failed()) {
      return;
    }
  }
  check_shelf(node);
}

void World::execute_frames(uint32_t node, const Effect& effect) {
  Message message{effect.message, {}, 0};
  for (uint64_t rest = effect.message.mask; rest != 0; rest &= rest - 1) {
    uint32_t page = 0;
    if (!to_index(effect.message.segment, effect.message.page + static_cast<uint64_t>(std::countr_zero(rest)),
                  &page)) {
      return fail(fmt::format("n{} sends a page that does not exist", node + 1));
    }
    Frame& frame = nodes_[node].frames[page];
    if (nodes_[node].segment_gone && in_second(page)) {
      return fail(fmt::format("n{} sends page {} of a destroyed segment", node + 1, page));
    }
    const bool wrong = frame.access == Access::kNone ||
                       (effect.frame == Effect::Frame::kDowngrade && frame.access != Access::kWrite) ||
                       (effect.frame == Effect::Frame::kKeep && frame.access != Access::kRead);
    if (wrong) {
      return fail(
          fmt::format("n{} sends page {} with access {}", node + 1, page, static_cast<int>(frame.access)));
    }
    if (effect.frame == Effect::Frame::kTake) {
      frame.access = Access::kNone;
      close_slot(node, page);
    } else if (effect.frame == Effect::Frame::kDowngrade) {
      frame.access = Access::kRead;
    }
    if (effect.publish) {
      open_slot(node, page);
    }
    message.payload.push_back(frame.stamp);
  }
  send(node, effect.to, std::move(message));
}

void World::execute_install(uint32_t node, const Effect& effect, const Message* handled) {
  if (!effect.zero && handled != nullptr && effect.message.view < views_[nodes_[node].view - 1].id) {
    ++stats_.late_grants;
  }
  for (uint64_t rest = effect.mask; rest != 0; rest &= rest - 1) {
    const int bit = std::countr_zero(rest);
    uint32_t page = 0;
    if (!to_index(effect.segment, effect.page + static_cast<uint64_t>(bit), &page)) {
      return fail(fmt::format("n{} installs a page that does not exist", node + 1));
    }
    uint32_t stamp = 0;
    if (!effect.zero) {
      const uint64_t before = effect.message.mask & ((uint64_t{1} << bit) - 1);
      const size_t rank = static_cast<size_t>(std::popcount(before));
      if (handled == nullptr || rank >= handled->payload.size()) {
        return fail(fmt::format("n{} installs page {} without bytes", node + 1, page));
      }
      stamp = handled->payload[rank];
    }
    Frame& frame = nodes_[node].frames[page];
    if (unchecked(page)) {
      frame = {effect.access, frame.poisoned, stamp};
      wake(node, page);
      continue;
    }
    if (frame.access != Access::kNone || frame.poisoned) {
      return fail(fmt::format("n{} installs page {} over a frame", node + 1, page));
    }
    if (stamp != pages_[page].latest) {
      return fail(fmt::format("n{} installs page {} with stamp {}, the latest is {}", node + 1, page, stamp,
                              pages_[page].latest));
    }
    if (effect.access == Access::kWrite ? !alone(node, page) : writer_elsewhere(node, page)) {
      return fail(fmt::format("n{} installs page {} for {} while another node holds it", node + 1, page,
                              static_cast<int>(effect.access)));
    }
    frame.access = effect.access;
    frame.stamp = stamp;
    pages_[page].destroyed = false;  // a copy had left the dead node in time
    wake(node, page);
  }
}

void World::execute_page(uint32_t node, const Effect& effect) {
  uint32_t page = 0;
  if (effect.mask != 1 || !to_index(effect.segment, effect.page, &page)) {
    return fail(fmt::format("n{} effect on a page that does not exist", node + 1));
  }
  Frame& frame = nodes_[node].frames[page];
  if (effect.kind == Effect::Kind::kStartHold) {
    timers_.push_back({node, page, effect.segment});
    return;
  }
  if (effect.kind != Effect::Kind::kUpgrade || options_.bug != dsm::Directory::Options::Bug::kOpenAfterUpgrade) {
    close_slot(node, page);
  }
  if (unchecked(page)) {
    frame.access = effect.kind == Effect::Kind::kUpgrade ? Access::kWrite : Access::kNone;
    frame.poisoned = frame.poisoned || effect.kind == Effect::Kind::kPoison;
    return wake(node, page);
  }
  if (effect.kind == Effect::Kind::kPoison) {
    Page& p = pages_[page];
    const bool untouched = p.latest == 0 && stats_.crashes > (in_second(page) ? crashes_before_second_ : 0);
    if (frame.access != Access::kNone || (!p.destroyed && !untouched && !nodes_[node].stopped)) {
      return fail(fmt::format("n{} loses page {} without a reason", node + 1, page));
    }
    ++(p.latest == 0 ? stats_.untouched_lost : stats_.pages_lost);
    note(fmt::format("n{} page {} is lost", node + 1, page));
    frame.poisoned = true;
    return wake(node, page);
  }
  if (frame.access != Access::kRead) {
    return fail(fmt::format("n{} upgrades or drops page {} with access {}", node + 1, page,
                            static_cast<int>(frame.access)));
  }
  if (effect.kind == Effect::Kind::kDrop) {
    frame.access = Access::kNone;
    return check_last_copy(node, page);
  }
  if (!alone(node, page)) {
    return fail(fmt::format("n{} may write page {} while another node holds it", node + 1, page));
  }
  frame.access = Access::kWrite;
  wake(node, page);
}

// The last living copy may only be given up for a node that holds the page too, and died with it meanwhile.
void World::check_last_copy(uint32_t node, uint32_t page) {
  const bool held = std::any_of(nodes_.begin(), nodes_.end(), [&](const Node& n) {
    return n.alive && n.frames[page].access != Access::kNone;
  });
  if (held || pages_[page].latest == 0) {
    return;
  }
  account_losses();
  const auto died_with_it = [&](const Node& n) {
    return !n.alive && n.frames[page].access != Access::kNone && n.frames[page].stamp == pages_[page].latest;
  };
  if (pages_[page].destroyed && std::none_of(nodes_.begin(), nodes_.end(), died_with_it)) {
    fail(fmt::format("n{} drops the last copy of page {}", node + 1, page));
  }
}

// Membership.

bool World::is_member(uint32_t node) const {
  const View& view = views_.back();
  return std::find(view.members.begin(), view.members.end(), nodes_[node].id) != view.members.end();
}

bool World::all_ready() const {
  return std::all_of(nodes_.begin(), nodes_.end(),
                     [&](const Node& node) { return !node.alive || node.stable == views_.back().id; });
}

void World::refresh_behind() {
  behind_.clear();
  for (uint32_t i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].alive && nodes_[i].view < views_.size()) {
      behind_.push_back(i);
    }
  }
}

void World::publish(View next) {
  if (overlapping()) {
    ++stats_.overlaps;
  }
  next.id = ViewId(views_.back().id.value + 1);
  next.left = leaving_;
  views_.push_back(std::move(next));
  refresh_behind();
}

// A node is gone: what it sent arrives up to some point, on each channel its own; nothing reaches it.
bool World::crash(uint32_t node, Random& random) {
  return crash(node, [&random](size_t sent) { return static_cast<size_t>(random.below(sent + 1)); });
}

bool World::crash(uint32_t node, const std::function<size_t(size_t)>& arrive) {
  Node& victim = nodes_[node];
  if (!victim.alive || (is_member(node) && members() < 2)) {
    return false;
  }
  victim.alive = false;
  ++stats_.crashes;
  note(fmt::format("n{} crashes", node + 1));
  for (uint32_t other = 0; other < nodes_.size(); ++other) {
    const uint32_t out = node * kNodesMax + other, in = other * kNodesMax + node;
    drop_reads(out);
    drop_reads(in);
    std::deque<Message>& sent = channels_[out].queue;
    sent.resize(arrive(sent.size()));
    channels_[out].arrived = std::min(channels_[out].arrived, static_cast<uint32_t>(sent.size()));
    delivered(other, node, channels_[out].arrived);
    if (sent.empty()) {
      std::erase(active_, out);
    }
    for (const Message& message : channels_[in].queue) {
      bury(node, message);
    }
    channels_[in].queue.clear();
    channels_[in].arrived = 0;
    std::erase(active_, in);
  }
  forget_fetches(node);
  std::erase_if(timers_, [&](const Timer& timer) { return timer.node == node; });
  std::erase(destroy_pending_, node);
  View next = views_.back();
  std::erase(next.members, victim.id);
  std::erase(leaving_, victim.id);
  next.lost = {victim.id};
  account_losses();
  publish(std::move(next));
  return true;
}

// Pages that reach a dead node count as dead with it: the others may rightly believe that it holds them.
void World::bury(uint32_t node, const Message& message) {
  size_t rank = 0;
  for (uint64_t rest = message.payload.empty() ? 0 : message.header.mask; rest != 0;
       rest &= rest - 1, ++rank) {
    uint32_t page = 0;
    if (to_index(message.header.segment, message.header.page + static_cast<uint64_t>(std::countr_zero(rest)),
                 &page)) {
      nodes_[node].frames[page].access = Access::kRead;
      nodes_[node].frames[page].stamp = message.payload[rank];
    }
  }
}

// Which pages have no copy any more on a living node or between two of them.
void World::account_losses() {
  std::vector<bool> alive(options_.pages, false);
  for (const Node& node : nodes_) {
    for (uint32_t page = 0; node.alive && page < options_.pages; ++page) {
      alive[page] = alive[page] || node.frames[page].access != Access::kNone;
    }
  }
  for (const uint32_t channel : active_) {
    if (!nodes_[channel / kNodesMax].alive || !nodes_[channel % kNodesMax].alive) {
      continue;
    }
    for (const Message& message : channels_[channel].queue) {
      for (uint64_t rest = message.payload.empty() ? 0 : message.header.mask; rest != 0; rest &= rest - 1) {
        uint32_t page = 0;
        if (to_index(message.header.segment,
                     message.header.page + static_cast<uint64_t>(std::countr_zero(rest)), &page)) {
          alive[page] = true;
        }
      }
    }
  }
  for (uint32_t page = 0; page < options_.pages; ++page) {
    pages_[page].destroyed = pages_[page].destroyed || (pages_[page].latest != 0 && !alive[page]);
  }
}

bool World::leave(uint32_t node) {
  if (!nodes_[node].alive || !is_member(node) || members() < 2) {
    return false;
  }
  ++stats_.leaves;
  note(fmt::format("n{} leaves", node + 1));
  View next = views_.back();
  std::erase(next.members, nodes_[node].id);
  next.lost.clear();
  leaving_.push_back(nodes_[node].id);
  publish(std::move(next));
  return true;
}

void World::join() {
  if (nodes_.size() >= kNodesMax) {
    return;
  }
  ++stats_.joins;
  const uint32_t node = add_node();
  nodes_[node].segment_gone = second_destroyed_;
  if (second_destroyed_) {
    effects_.clear();
    nodes_[node].directory->on_destroy(second_, effects_);
  }
  note(fmt::format("n{} joins", node + 1));
  View next = views_.back();
  next.members.push_back(nodes_[node].id);
  next.lost.clear();
  publish(std::move(next));
}

// A node that leaves may go when it is stable in the newest view that it was fed, and no newer one names it.
void World::retire(uint32_t node) {
  Node& n = nodes_[node];
  if (std::find(leaving_.begin(), leaving_.end(), n.id) == leaving_.end() || n.stable != views_.back().id) {
    return;
  }
  for (uint32_t page = 0; page < options_.pages; ++page) {
    if (n.frames[page].access != Access::kNone && !unchecked(page)) {
      return fail(fmt::format("n{} goes with page {}", node + 1, page));
    }
  }
  note(fmt::format("n{} has left", node + 1));
  n.alive = false;
  n.gone_in_order = true;
  std::erase(leaving_, n.id);
  for (uint32_t other = 0; other < nodes_.size(); ++other) {
    // What it sent and nobody read yet dies with it: kReady said that it did not matter any more.
    for (const uint32_t channel : {node * kNodesMax + other, other * kNodesMax + node}) {
      drop_reads(channel);
      channels_[channel].queue.clear();
      channels_[channel].arrived = 0;
      std::erase(active_, channel);
    }
    delivered(other, node, 0);
  }
  forget_fetches(node);
  std::erase_if(timers_, [&](const Timer& timer) { return timer.node == node; });
  std::erase(destroy_pending_, node);
  refresh_behind();
}

void World::create_second_segment() {
  if (options_.second && !second_created_) {
    second_created_ = true;
    second_ = SegmentId(uint64_t{views_.back().id.value} << 32 | 9);
    crashes_before_second_ = stats_.crashes;
    note("second segment created");
  }
}

void World::destroy_second_segment() {
  if (second_created_ && !second_destroyed_) {
    second_destroyed_ = true;
    ++stats_.destroys;
    note("second segment destroyed");
    for (uint32_t i = 0; i < nodes_.size(); ++i) {
      if (nodes_[i].alive) {
        destroy_pending_.push_back(i);
      }
    }
  }
}

void World::check_rest() {
  for (uint32_t i = 0; i < programs_.size() && !failed(); ++i) {
    const Program& p = programs_[i];
    if (nodes_[p.node].alive && !nodes_[p.node].stopped && p.next < p.tasks.size()) {
      fail(fmt::format("program {} on n{} waits for ever for page {}", i, p.node + 1, p.tasks[p.next].page));
    }
  }
  for (const Node& node : nodes_) {
    if (node.alive && !failed() && !node.directory->quiescent()) {
      fail(fmt::format("n{} does not come to rest", node.id.value));
    }
    if (node.alive && !failed() && node.stable != views_.back().id) {
      fail(fmt::format("n{} is not stable in the last view", node.id.value));
    }
    for (uint32_t page = 0; page < options_.pages && node.alive && !failed(); ++page) {
      if (!unchecked(page) &&
          node.directory->access(segment_of(page), real_page(page)) != node.frames[page].access) {
        fail(fmt::format("n{} directory and frame differ on page {}", node.id.value, page));
      }
    }
  }
  if (!failed() && !leaving_.empty()) {
    fail("a node that leaves never went");
  }
}

bool World::runs_soon(size_t index) const {
  if (index < active_.size() + runnable_.size() ||
      index >= active_.size() + runnable_.size() + timers_.size()) {
    return false;
  }
  const Timer& timer = timers_[index - active_.size() - runnable_.size()];
  return std::any_of(runnable_.begin(), runnable_.end(), [&](uint32_t i) {
    const Program& p = programs_[i];
    return p.node == timer.node && p.tasks[p.next].page == timer.page;
  });
}

uint64_t World::digest() const {
  uint64_t hash = 0x9e3779b97f4a7c15ull;
  const auto add = [&hash](uint64_t value) {
    hash = (hash ^ value) * 0xbf58476d1ce4e5b9ull;
    hash ^= hash >> 29;
  };
  // Stamps only matter as "the latest or not".
  const auto add_slot = [&](const Slot& slot) {
    add(slot.open ? 2 + slot.page * 4 + (slot.stamp == pages_[slot.page].latest ? 1 : 0) : 1);
  };
  for (const Node& node : nodes_) {
    add(node.directory->digest());
    add(node.view * 4 + node.alive * 2u + node.stopped);
    add(node.stable.value);
    for (const Slot& slot : node.shelf) {
      add_slot(slot);
    }
    for (uint32_t page = 0; page < options_.pages; ++page) {
      const Frame& frame = node.frames[page];
      add(static_cast<uint64_t>(frame.access) * 4 + (frame.stamp == pages_[page].latest ? 2 : 0) +
          frame.poisoned);
    }
  }
  for (const Program& p : programs_) {
    add(p.next * 4 + p.waiting * 2u + p.runnable);
  }
  for (uint32_t i = 0; i < channels_.size(); ++i) {
    for (const Message& message : channels_[i].queue) {
      const PageMessage& m = message.header;
      add(i);
      add(static_cast<uint64_t>(m.kind) * 4096 + static_cast<uint64_t>(m.access) * 256 + m.flags);
      add(m.view.value);
      add(m.page);
      add(m.mask);
      add(m.requester.value * 1000003ull + m.transaction);
      add(message.fetch != 0 ? fetches_[message.fetch].asked.transaction + 1ull : 0);
      for (const uint32_t stamp : message.payload) {
        add(stamp == pages_[0].latest ? 1 : 2);
      }
    }
    add(77 + channels_[i].arrived);
  }
  uint64_t timers = 0;
  for (const Timer& timer : timers_) {
    timers += (timer.node + 1) * 0x94d049bb133111ebull + timer.page;
  }
  add(timers);
  add(reads_digest());
  for (const Page& page : pages_) {
    add(page.destroyed * 2u + (page.latest != 0));
  }
  add(views_.size() * 64 + leaving_.size());
  return hash;
}

}  // namespace kevre::sim
