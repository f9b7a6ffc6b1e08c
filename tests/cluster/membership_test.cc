// Membership under a seeded simulator: random joins, leaves, crashes, delays, pauses, partitions and broken
// connections. Oracle: one view per number in the whole cluster, every node sees them without a gap, and in
// the end all that live share one view that holds exactly them. KEVRE_SEED=n runs one seed, KEVRE_SEEDS=n so
// many.
#include "cluster/membership.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <set>

#include "base/clock.h"
#include "base/random.h"

namespace kevre::cluster {
namespace {

constexpr Nanos kTimeout = kSecond;

Member member(uint16_t id) {
  Member m;
  m.id = NodeId(id);
  m.name = fmt::format("n{}", id);
  m.address = fmt::format("10.77.0.{}:7711", id);
  return m;
}

std::string content(const View& view) {
  return std::string(reinterpret_cast<const char*>(encode(view).data()), encode(view).size());
}

class Simulation {
 public:
  struct Node {
    std::unique_ptr<Membership> membership;
    bool alive = true;  // the process exists
    bool crashed = false;
    bool expelled = false, left = false;
    Nanos paused_until = 0;
    std::set<NodeId> connected;
    ViewId last_view;
    std::set<NodeId> gone;  // in the views it saw
  };

  explicit Simulation(uint64_t seed, Nanos delay_max) : random_(seed), delay_max_(delay_max) {
    Node& first = nodes_[NodeId(1)];
    first.membership = std::make_unique<Membership>(Membership::Options{NodeId(1), kTimeout},
                                                    Membership::first_view(member(1)), 0);
    saw(NodeId(1), first.membership->view());
    schedule_tick(NodeId(1));
  }

  void at(Nanos when, std::function<void()> what) { queue_.emplace(std::max(when, now_), std::move(what)); }

  void run_until(Nanos end) {
    while (!queue_.empty() && queue_.begin()->first <= end) {
      auto event = queue_.extract(queue_.begin());
      now_ = event.key();
      event.mapped()();
    }
    now_ = end;
  }

  // Runs `what` at the node when it is not paused; never when it is gone.
  void on_node(NodeId id, Nanos when, std::function<void(Node&)> what) {
    at(when, [this, id, what = std::move(what)] {
      Node& node = nodes_[id];
      if (!node.alive) {
        return;
      }
      if (node.paused_until > now_) {
        on_node(id, node.paused_until, what);
        return;
      }
      what(node);
    });
  }

  Nanos link_time(NodeId from, NodeId to) {
    Nanos& last = last_delivery_[{from, to}];
    Nanos when = now_ + static_cast<Nanos>(random_.between(1000, static_cast<uint64_t>(delay_max_)));
    if (cut(from, to)) {
      when = std::max(when, cut_until_);
    }
    last = std::max(last + 1, when);
    return last;
  }

  bool cut(NodeId a, NodeId b) const { return now_ < cut_until_ && side_.contains(a) != side_.contains(b); }

  void apply(NodeId id, Membership::Effects effects) {
    Node& node = nodes_[id];
    std::vector<NodeId> gone;
    for (const View& view : effects.views) {
      saw(id, view);
      for (const Member& m : view.members) {
        if (m.id != id) {
          node.connected.insert(m.id);
        }
      }
      gone.insert(gone.end(), view.lost.begin(), view.lost.end());
      for (const Member& m : view.members) {
        if (const auto i = waiting_.find(m.id); i != waiting_.end() && i->second == id) {
          waiting_.erase(i);
          start(m.id, view, link_time(id, m.id));
        }
      }
      node.left = node.left || std::count(view.left.begin(), view.left.end(), id) > 0;
    }
    for (auto& [to, message] : effects.send) {
      // The wire: what was encoded is what arrives.
      Result<Message> copy = decode_message(encode(message));
      ASSERT_TRUE(copy) << copy.error().text;
      if (!node.connected.contains(to)) {
        continue;
      }
      on_node(to, link_time(id, to), [this, id, to, m = *copy](Node& receiver) {
        if (receiver.membership == nullptr) {
          receiver_queue_[to].emplace_back(id, m);
        } else if (receiver.connected.contains(id)) {
          Membership::Effects e;
          receiver.membership->on_message(id, m, now_, e);
          apply(to, std::move(e));
        }
      });
    }
    for (const NodeId peer : gone) {
      if (node.connected.erase(peer) > 0) {
        reset(id, peer);
      }
    }
    for (const NodeId peer : effects.probe) {
      probe(id, peer);
    }
    if (effects.expelled) {
      say(effects.expelled->c_str(), id);
      node.expelled = true;
      end(id);
    } else if (node.left) {
      on_node(id, now_ + kTimeout / 4, [this, id](Node&) { end(id); });
    }
  }

  // `from` closes its connection to `to`.
  void reset(NodeId from, NodeId to) {
    on_node(to, link_time(from, to), [this, from, to](Node& receiver) {
      if (receiver.membership != nullptr && receiver.connected.erase(from) > 0) {
        Membership::Effects e;
        receiver.membership->on_peer_reset(from, now_, e);
        apply(to, std::move(e));
      }
    });
  }

  void end(NodeId id) {
    Node& node = nodes_[id];
    if (!node.alive) {
      return;
    }
    node.alive = false;
    for (auto& [other, state] : nodes_) {
      if (state.alive && state.connected.contains(id)) {
        reset(id, other);
      }
    }
  }

  void probe(NodeId from, NodeId to) {
    const bool cut_now = cut(from, to);
    at(cut_now ? now_ + kTimeout / 2 : link_time(from, to), [this, from, to, cut_now] {
      Node& target = nodes_[to];
      ProbeResult result = ProbeResult::kNoAnswer;
      ViewId view;
      if (!cut_now && !target.alive) {
        result = ProbeResult::kRefused;
      } else if (!cut_now && target.paused_until <= now_ && target.membership != nullptr) {
        view = target.membership->view().id;
        result = target.membership->view().has(from) ? ProbeResult::kMember : ProbeResult::kNoMember;
      }
      on_node(from, result == ProbeResult::kNoAnswer ? now_ : link_time(to, from),
              [this, from, to, result, view](Node& asker) {
                Membership::Effects e;
                asker.membership->on_probe(to, result, view, now_, e);
                apply(from, std::move(e));
              });
    });
  }

  void schedule_tick(NodeId id) {
    on_node(id, now_ + nodes_[id].membership->tick_ns(), [this, id](Node& node) {
      Membership::Effects e;
      node.membership->tick(now_, e);
      apply(id, std::move(e));
      schedule_tick(id);
    });
  }

  void join() {
    for (auto& [id, node] : nodes_) {
      if (node.alive && node.membership != nullptr && node.membership->coordinates() &&
          !node.membership->ended() && node.paused_until <= now_) {
        const NodeId fresh = node.membership->reserve_id();
        Node& joiner = nodes_[fresh];
        for (const Member& m : node.membership->view().members) {
          joiner.connected.insert(m.id);
        }
        waiting_[fresh] = id;
        on_node(id, now_ + delay_max_, [this, fresh, admitter = id](Node& at_node) {
          if (at_node.membership->coordinates()) {
            Membership::Effects e;
            at_node.membership->admit(member(fresh.value), now_, e);
            apply(admitter, std::move(e));
          }
        });
        at(now_ + 4 * kTimeout, [this, fresh] {  // the joiner's deadline
          if (nodes_[fresh].membership == nullptr) {
            waiting_.erase(fresh);
            end(fresh);
          }
        });
        return;
      }
    }
  }

  void start(NodeId id, const View& view, Nanos when) {
    on_node(id, when, [this, id, view](Node& node) {
      node.membership = std::make_unique<Membership>(Membership::Options{id, kTimeout}, view, now_);
      saw(id, view);
      for (const Member& m : view.members) {
        if (m.id != id) {
          node.connected.insert(m.id);
        }
      }
      schedule_tick(id);
      for (auto& [from, m] : receiver_queue_[id]) {
        Membership::Effects e;
        node.membership->on_message(from, m, now_, e);
        apply(id, std::move(e));
      }
    });
  }

  NodeId any_alive() {
    std::vector<NodeId> alive = running();
    return alive.empty() ? kNoNode : alive[random_.below(alive.size())];
  }

  std::vector<NodeId> running() const {
    std::vector<NodeId> result;
    for (const auto& [id, node] : nodes_) {
      if (node.alive && node.membership != nullptr) {
        result.push_back(id);
      }
    }
    return result;
  }

  void crash(NodeId id) {
    say("crash", id);
    nodes_[id].crashed = true;
    end(id);
  }

  void leave(NodeId id) {
    say("leave", id);
    on_node(id, now_, [this, id](Node& node) {
      Membership::Effects e;
      node.membership->leave(now_, e);
      apply(id, std::move(e));
    });
  }

  void say(const char* what, NodeId id) const {
    if (std::getenv("KEVRE_SEED") != nullptr) {
      fmt::print("{:8.3f} node {} {}\n", static_cast<double>(now_) / 1e9, id, what);
    }
  }

  void saw(NodeId id, const View& view) {
    if (std::getenv("KEVRE_SEED") != nullptr) {
      std::string text;
      for (const Member& m : view.members) {
        text += fmt::format(" {}", m.id);
      }
      fmt::print("{:8.3f} node {} view {}:{}\n", static_cast<double>(now_) / 1e9, id, view.id, text);
    }
    Node& node = nodes_[id];
    if (node.last_view.value != 0) {
      EXPECT_EQ(view.id.value, node.last_view.value + 1) << "node " << id.value << " has a gap";
    }
    node.last_view = view.id;
    views_[view.id][id] = content(view);
    for (const auto& [holder, known] : views_[view.id]) {
      // With partitions a node may decide a view, tell nobody and die: that counts only while somebody lives
      // in it.
      if (known != content(view) && (strict_ || nodes_[holder].alive)) {
        ADD_FAILURE() << "two views with number " << view.id.value << ", at node " << holder.value << " and "
                      << id.value;
      }
    }
    for (const Member& m : view.members) {
      EXPECT_FALSE(node.gone.contains(m.id))
          << "node " << m.id.value << " came back in view " << view.id.value;
    }
    for (const auto* list : {&view.lost, &view.left}) {
      for (const NodeId n : *list) {
        node.gone.insert(n);
      }
    }
  }

  void expect_rest(bool everybody_who_lives) {
    const std::vector<NodeId> alive = running();
    if (std::getenv("KEVRE_SEED") != nullptr) {
      for (const auto& [id, node] : nodes_) {
        fmt::print("node {}: alive {} crashed {} expelled {} left {} view {}\n", id, node.alive, node.crashed,
                   node.expelled, node.left, node.last_view);
      }
    }
    for (const NodeId id : alive) {
      const View& view = nodes_[id].membership->view();
      EXPECT_EQ(view.members.size(), alive.size()) << "node " << id.value << " in view " << view.id.value;
      EXPECT_EQ(view.id, nodes_[alive[0]].membership->view().id);
      for (const NodeId other : alive) {
        EXPECT_TRUE(view.has(other)) << "node " << id.value << " misses " << other.value;
      }
    }
    if (everybody_who_lives) {
      for (const auto& [id, node] : nodes_) {
        EXPECT_FALSE(node.expelled) << "node " << id.value << " was expelled though nothing stopped it";
      }
    }
  }

  Random random_;
  Nanos delay_max_;
  Nanos now_ = 0;
  Nanos cut_until_ = 0;
  std::set<NodeId> side_;
  std::map<NodeId, Node> nodes_;
  std::map<NodeId, NodeId> waiting_;  // joiner -> who admits it
  std::map<NodeId, std::vector<std::pair<NodeId, Message>>> receiver_queue_;
  std::multimap<Nanos, std::function<void()>> queue_;
  std::map<std::pair<NodeId, NodeId>, Nanos> last_delivery_;
  std::map<ViewId, std::map<NodeId, std::string>> views_;
  bool strict_ = true;
};

enum class Faults { kCrashes, kEverything };

void random_run(uint64_t seed, Faults faults) {
  SCOPED_TRACE(fmt::format("KEVRE_SEED={}", seed));
  Random dice(seed * 2 + 1);
  Simulation sim(seed, dice.one_in(2) ? 5 * kMillisecond : kTimeout / 5);
  sim.strict_ = faults == Faults::kCrashes;
  const uint64_t first = dice.between(1, 5);
  for (uint64_t i = 0; i < first; ++i) {
    sim.join();
    sim.run_until(sim.now_ + 2 * kTimeout);
  }
  Nanos calm = 0;  // a partition and the death of a node in it: membership.h says what is not promised then
  for (int step = 0; step < 14; ++step) {
    const NodeId victim = sim.any_alive();
    if (victim == kNoNode) {
      break;
    }
    const uint64_t fault = dice.below(faults == Faults::kCrashes ? 5 : 8);
    switch (fault) {
      case 0:
      case 1:
        sim.join();
        break;
      case 2:
        if (sim.running().size() > 1 && sim.now_ >= calm) {
          sim.crash(victim);
        }
        break;
      case 3:
        if (sim.running().size() > 1) {
          sim.leave(victim);
        }
        break;
      case 4:
        break;
      case 5:
        sim.say("pause", victim);
        sim.nodes_[victim].paused_until = std::max(sim.nodes_[victim].paused_until,
                                                   sim.now_ + static_cast<Nanos>(dice.below(5 * kTimeout)));
        break;
      case 6:
        sim.say("partition by", victim);
        sim.side_.clear();
        for (const NodeId id : sim.running()) {
          if (dice.one_in(2)) {
            sim.side_.insert(id);
          }
        }
        sim.cut_until_ = std::max(sim.cut_until_, sim.now_ + static_cast<Nanos>(dice.below(5 * kTimeout)));
        break;
      default: {
        const NodeId other = sim.any_alive();
        sim.say("breaks with another", victim);
        if (other != victim && sim.nodes_[victim].connected.erase(other) > 0) {
          sim.nodes_[other].connected.erase(victim);
          for (const auto& [a, b] : {std::pair(victim, other), std::pair(other, victim)}) {
            sim.nodes_[a].connected.insert(b);
            sim.reset(b, a);
          }
        }
        break;
      }
    }
    if (fault >= 5) {
      calm = std::max({calm, sim.now_, sim.cut_until_, sim.nodes_[victim].paused_until}) + 4 * kTimeout;
    }
    sim.run_until(sim.now_ + static_cast<Nanos>(dice.one_in(3) ? dice.below(20 * kMillisecond)
                                                               : dice.below(3 * kTimeout)));
  }
  sim.run_until(sim.now_ + 16 * kTimeout);
  sim.expect_rest(faults == Faults::kCrashes);
}

void run_seeds(uint64_t base, Faults faults) {
  const char* one = std::getenv("KEVRE_SEED");
  if (one != nullptr) {
    random_run(std::strtoull(one, nullptr, 10), faults);
    return;
  }
  const char* many = std::getenv("KEVRE_SEEDS");
  const uint64_t seeds = many == nullptr ? 800 : std::strtoull(many, nullptr, 10);
  for (uint64_t seed = base; seed < base + seeds && !testing::Test::HasFailure(); ++seed) {
    random_run(seed, faults);
  }
}

TEST(MembershipSimulation, CrashesLeavesAndJoinsEndInOneViewOfAllSurvivors) {
  run_seeds(1, Faults::kCrashes);
}

TEST(MembershipSimulation, PausesPartitionsAndBrokenConnectionsNeverGiveTwoViewsWithOneNumber) {
  run_seeds(1'000'000, Faults::kEverything);
}

// A cluster of `n` at rest.
std::unique_ptr<Simulation> cluster_of(uint64_t n) {
  auto sim = std::make_unique<Simulation>(7, 2 * kMillisecond);
  for (uint64_t i = 1; i < n; ++i) {
    sim->join();
    sim->run_until(sim->now_ + 2 * kTimeout);
  }
  EXPECT_EQ(sim->running().size(), n);
  return sim;
}

TEST(Membership, NodesGetIdsInOrderOfJoiningAndTheOldestCoordinates) {
  auto sim = cluster_of(3);
  EXPECT_EQ(sim->nodes_[NodeId(3)].membership->view().id, ViewId(3));
  EXPECT_EQ(sim->nodes_[NodeId(3)].membership->view().coordinator(), NodeId(1));
}

TEST(Membership, AnIdIsNotUsedAgainAfterItsNodeLeft) {
  auto sim = cluster_of(3);
  sim->leave(NodeId(3));
  sim->run_until(sim->now_ + 2 * kTimeout);
  sim->join();
  sim->run_until(sim->now_ + 2 * kTimeout);
  EXPECT_TRUE(sim->nodes_[NodeId(1)].membership->view().has(NodeId(4)));
  EXPECT_FALSE(sim->nodes_[NodeId(1)].membership->view().has(NodeId(3)));
}

TEST(Membership, ADeadNodeIsLostWithoutWaitingForSilence) {
  auto sim = cluster_of(3);
  sim->crash(NodeId(2));
  sim->run_until(sim->now_ + kTimeout / 10);
  EXPECT_EQ(sim->nodes_[NodeId(1)].membership->view().lost, std::vector<NodeId>{NodeId(2)});
  EXPECT_EQ(sim->nodes_[NodeId(3)].membership->view().id, ViewId(4));
}

TEST(Membership, TheNextOldestTakesOverFromADeadCoordinator) {
  auto sim = cluster_of(3);
  sim->crash(NodeId(1));
  sim->run_until(sim->now_ + kTimeout / 10);
  EXPECT_EQ(sim->nodes_[NodeId(3)].membership->view().coordinator(), NodeId(2));
  sim->join();
  sim->run_until(sim->now_ + kTimeout);
  EXPECT_EQ(sim->running().size(), 3u);
}

TEST(Membership, OfTwoNodesEitherSurvivesTheDeathOfTheOther) {
  for (const uint16_t victim : {uint16_t{1}, uint16_t{2}}) {
    auto sim = cluster_of(2);
    sim->crash(NodeId(victim));
    sim->run_until(sim->now_ + kTimeout);
    const NodeId survivor(static_cast<uint16_t>(3 - victim));
    EXPECT_EQ(sim->nodes_[survivor].membership->view().members.size(), 1u);
  }
}

TEST(Membership, OfTwoNodesThatDoNotHearEachOtherTheOlderSurvives) {
  auto sim = cluster_of(2);
  sim->side_ = {NodeId(1)};
  sim->cut_until_ = sim->now_ + 100 * kTimeout;
  sim->run_until(sim->now_ + 10 * kTimeout);
  EXPECT_EQ(sim->nodes_[NodeId(1)].membership->view().lost, std::vector<NodeId>{NodeId(2)});
  EXPECT_TRUE(sim->nodes_[NodeId(2)].expelled);
}

TEST(Membership, TheSideWithTheMajorityGoesOnAndTheOtherExpelsItself) {
  auto sim = cluster_of(5);
  sim->side_ = {NodeId(1), NodeId(2)};
  sim->cut_until_ = sim->now_ + 100 * kTimeout;
  sim->run_until(sim->now_ + 10 * kTimeout);
  EXPECT_TRUE(sim->nodes_[NodeId(1)].expelled);
  EXPECT_TRUE(sim->nodes_[NodeId(2)].expelled);
  EXPECT_EQ(sim->nodes_[NodeId(5)].membership->view().members.size(), 3u);
}

TEST(Membership, OneNodeAloneDeclaresNobodyLostOnSilence) {
  auto sim = cluster_of(3);
  Membership::Effects e;
  Membership& node = *sim->nodes_[NodeId(1)].membership;
  node.on_probe(NodeId(2), ProbeResult::kNoAnswer, ViewId(), sim->now_ + 2 * kTimeout, e);
  EXPECT_TRUE(e.views.empty());
  EXPECT_FALSE(e.send.empty());  // it says so to the others
}

TEST(Membership, ANodeThatWasStoppedForLongLearnsThatItIsOut) {
  auto sim = cluster_of(3);
  sim->nodes_[NodeId(2)].paused_until = sim->now_ + 6 * kTimeout;
  sim->run_until(sim->now_ + 9 * kTimeout);
  EXPECT_TRUE(sim->nodes_[NodeId(2)].expelled);
  EXPECT_EQ(sim->running().size(), 2u);
  sim->expect_rest(false);
}

TEST(Membership, AShortStopExpelsNobody) {
  auto sim = cluster_of(3);
  sim->nodes_[NodeId(2)].paused_until = sim->now_ + kTimeout * 9 / 10;
  sim->run_until(sim->now_ + 9 * kTimeout);
  EXPECT_EQ(sim->running().size(), 3u);
  EXPECT_EQ(sim->nodes_[NodeId(2)].membership->view().id, ViewId(3));
}

TEST(Membership, TheLastNodeMayLeave) {
  auto sim = cluster_of(1);
  sim->leave(NodeId(1));
  sim->run_until(sim->now_ + kTimeout);
  EXPECT_TRUE(sim->running().empty());
}

}  // namespace
}  // namespace kevre::cluster
