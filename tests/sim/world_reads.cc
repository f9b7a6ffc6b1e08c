// One-sided reads in the simulated world: arrival at the node's network interface, the shelf, kClose. See world.h.
#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "tests/sim/world.h"

namespace kevre::sim {

using dsm::Access;
using dsm::Effect;
using dsm::PageMessage;

// The item behind those that have arrived.
void World::arrive(uint32_t channel) {
  Channel& c = channels_[channel];
  const uint32_t fetch = c.queue[c.arrived].fetch;
  if (fetch == 0) {
    ++c.arrived;
    return;
  }
  c.queue.erase(c.queue.begin() + c.arrived);
  if (--c.reads == 0) {
    std::erase(arriving_, channel);
  }
  if (c.queue.empty()) {
    std::erase(active_, channel);
  }
  begin_read(fetch);
}

void World::start_fetch(uint32_t node, const Effect& effect) {
  ++stats_.fetches;
  const uint32_t target = effect.to.value - 1u;
  if (effect.to == kNoNode || target >= nodes_.size() || target == node) {
    return fail(fmt::format("n{} fetches at node {}", node + 1, effect.to.value));
  }
  if (effect.note) {
    send(node, effect.to, {effect.message, {}, 0});
  }
  uint32_t number = 1;
  while (number < fetches_.size() && fetches_[number].stage != Fetch::Stage::kUnused) {
    ++number;
  }
  if (number == fetches_.size()) {
    fetches_.emplace_back();
  }
  Fetch& fetch = fetches_[number];
  fetch = {Fetch::Stage::kQueued, node, target, effect.note, effect.message, {}, {}, 0};
  if (!nodes_[target].alive) {
    return end_read(number, true);
  }
  const uint32_t channel = node * kNodesMax + target;
  Channel& c = channels_[channel];
  if (c.queue.empty()) {
    active_.push_back(channel);
  }
  if (c.reads++ == 0) {
    arriving_.push_back(channel);
  }
  c.queue.push_back({effect.message, {}, number});
}

void World::begin_read(uint32_t number) {
  Fetch& fetch = fetches_[number];
  const std::vector<Slot>& shelf = nodes_[fetch.target].shelf;
  fetch.stage = Fetch::Stage::kBegun;
  reading_.push_back(number);
  for (uint64_t rest = fetch.asked.mask; rest != 0; rest &= rest - 1) {
    uint32_t page = 0;
    const uint64_t real = fetch.asked.page + static_cast<uint64_t>(std::countr_zero(rest));
    const bool exists = to_index(fetch.asked.segment, real, &page);
    const Slot& slot = shelf[page % shelf.size()];
    fetch.headers.push_back(exists && slot.page == page ? slot : Slot{});
  }
  note(fmt::format("n{} begins to read p{} m{:x} of n{}", fetch.reader + 1, fetch.asked.page, fetch.asked.mask,
                   fetch.target + 1));
}

void World::end_read(uint32_t number, bool failed) {
  Fetch& fetch = fetches_[number];
  if (fetch.stage == Fetch::Stage::kQueued) {
    reading_.push_back(number);
  }
  fetch.stage = Fetch::Stage::kEnded;
  size_t rank = 0;
  for (uint64_t rest = fetch.asked.mask; rest != 0; rest &= rest - 1, ++rank) {
    if (failed) {
      fetch.stamps.push_back(0);
      continue;
    }
    const Slot& header = fetch.headers[rank];
    Slot bytes = nodes_[fetch.target].shelf[header.page % options_.slots];
    fetch.stamps.push_back(bytes.stamp);
    bytes.open = true;  // it may have been closed meanwhile: the bytes are still those of the header
    fetch.arrived |= header == bytes ? rest & (~rest + 1) : 0;
  }
}

void World::step_fetch(uint32_t number) {
  Fetch& fetch = fetches_[number];
  if (fetch.stage == Fetch::Stage::kBegun) {
    return end_read(number, false);
  }
  std::erase(reading_, number);
  const Message message{fetch.asked, fetch.stamps, 0};
  const uint64_t arrived = fetch.arrived;
  const bool note_sent = fetch.note;
  const uint32_t node = fetch.reader;
  fetch.stage = Fetch::Stage::kUnused;
  note(fmt::format("n{} has read {} pages {:x}", node + 1, options_.trace ? text_of(message.header) : "", arrived));
  effects_.clear();
  nodes_[node].directory->on_fetched(message.header, arrived, effects_);
  for (const Effect& effect : effects_) {
    if (effect.kind == Effect::Kind::kInstall) {
      (note_sent ? stats_.fetched : stats_.fetched_by_home) += static_cast<uint64_t>(std::popcount(effect.mask));
    }
  }
  execute(node, &message);
}

// Reads that are still in the channel: one of its ends is gone.
void World::drop_reads(uint32_t channel) {
  Channel& c = channels_[channel];
  if (c.reads == 0) {
    return;
  }
  for (const Message& item : c.queue) {
    if (item.fetch != 0) {
      end_read(item.fetch, true);
    }
  }
  std::erase_if(c.queue, [](const Message& item) { return item.fetch != 0; });
  c.reads = 0;
  std::erase(arriving_, channel);
  if (c.queue.empty()) {
    std::erase(active_, channel);
  }
}

// `node` is gone: nobody waits for what it read, and what was being read there has failed.
void World::forget_fetches(uint32_t node) {
  for (uint32_t i = 1; i < fetches_.size(); ++i) {
    Fetch& fetch = fetches_[i];
    if (fetch.stage != Fetch::Stage::kUnused && fetch.reader == node) {
      fetch.stage = Fetch::Stage::kUnused;
      std::erase(reading_, i);
    } else if (fetch.stage == Fetch::Stage::kBegun && fetch.target == node) {
      end_read(i, true);
    }
  }
  std::erase_if(closing_, [&](const Closing& closing) { return closing.node == node; });
  std::erase_if(closable_, [&](const Closing& closing) { return closing.node == node; });
}

void World::open_slot(uint32_t node, uint32_t page) {
  nodes_[node].shelf[page % options_.slots] = {true, page, ++generation_, nodes_[node].frames[page].stamp};
}

void World::close_slot(uint32_t node, uint32_t page) {
  Slot& slot = nodes_[node].shelf[page % options_.slots];
  slot.open = slot.open && slot.page != page;
}

void World::check_shelf(uint32_t node) {
  for (const Slot& slot : nodes_[node].shelf) {
    const Frame& frame = nodes_[node].frames[slot.page];
    if (slot.open && !unchecked(slot.page) && (frame.access != Access::kRead || frame.stamp != slot.stamp)) {
      return fail(fmt::format("n{} has page {} with access {} and stamp {}, others may read stamp {}", node + 1,
                              slot.page, static_cast<int>(frame.access), frame.stamp, slot.stamp));
    }
  }
}

void World::close(uint32_t node, const Effect& effect) {
  ++stats_.closes;
  uint32_t page = 0;
  if (effect.mask != 1 || !to_index(effect.segment, effect.page, &page)) {
    return fail(fmt::format("n{} closes a page that does not exist", node + 1));
  }
  close_slot(node, page);
  Closing closing{node, effect.message, {}};
  uint32_t waiting = 0;
  for (uint32_t from = 0; from < kNodesMax; ++from) {
    closing.undelivered[from] = channels_[from * kNodesMax + node].arrived;
    waiting += closing.undelivered[from];
  }
  stats_.waited_closes += waiting != 0;
  (waiting == 0 ? closable_ : closing_).push_back(closing);
}

// Of what has arrived at `node`, one message from `from` was delivered; or no more than `left` are there any more.
void World::delivered(uint32_t node, uint32_t from, uint32_t left) {
  for (size_t i = 0; i < closing_.size();) {
    Closing& closing = closing_[i];
    uint32_t& missing = closing.undelivered[from];
    if (closing.node == node && missing > 0) {
      missing = left == ~0u ? missing - 1 : std::min(missing, left);
    }
    const bool over = std::all_of(closing.undelivered.begin(), closing.undelivered.end(),
                                  [](uint32_t count) { return count == 0; });
    if (over) {
      closable_.push_back(closing);
      closing_.erase(closing_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

uint64_t World::reads_digest() const {
  uint64_t sum = 0;
  const auto mix = [](uint64_t h, uint64_t value) {
    h = (h ^ value) * 0x94d049bb133111ebull;
    return h ^ (h >> 31);
  };
  for (const Fetch& fetch : fetches_) {
    if (fetch.stage == Fetch::Stage::kUnused) {
      continue;
    }
    uint64_t h = mix(uint64_t{fetch.reader} * 64 + fetch.target, static_cast<uint64_t>(fetch.stage) + 1);
    h = mix(mix(h, fetch.asked.transaction), fetch.asked.view.value);
    for (size_t i = 0; i < fetch.headers.size() && fetch.stage == Fetch::Stage::kBegun; ++i) {
      Slot bytes = nodes_[fetch.target].shelf[fetch.headers[i].page % options_.slots];
      bytes.open = true;
      const bool latest = fetch.headers[i].stamp == pages_[fetch.headers[i].page].latest;
      h = mix(h, fetch.headers[i] == bytes ? 2 + latest : 1);
    }
    for (size_t i = 0; i < fetch.stamps.size() && fetch.stage == Fetch::Stage::kEnded; ++i) {
      h = mix(h, fetch.stamps[i] == pages_[0].latest ? 1 : 2);
    }
    sum += mix(h, fetch.arrived);
  }
  for (const std::vector<Closing>* const list : {&closing_, &closable_}) {
    for (const Closing& closing : *list) {
      uint64_t h = mix(closing.node + 77, closing.closed.transaction);
      for (const uint32_t count : closing.undelivered) {
        h = mix(h, count);
      }
      sum += h;
    }
  }
  return sum;
}

}  // namespace kevre::sim
