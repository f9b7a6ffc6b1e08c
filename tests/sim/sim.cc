#include "tests/sim/sim.h"

#include <fmt/format.h>

#include <atomic>
#include <mutex>
#include <thread>

namespace kevre::sim {
namespace {

constexpr uint64_t kStepsMax = 200'000;  // far above the longest schedule seen

// What a seed decides beforehand.
struct Plan {
  WorldOptions world;
  uint64_t fault_every = 0;  // a change of view about every so many steps; 0: never
  uint64_t faults_max = 0;
  uint64_t slow = 0;         // bit i: what node i sends is slow
  uint64_t timers_late = 0;  // holding times are long: one in so many picks fires
  bool mostly_reads = false;  // of few pages: one-sided reads meet them published
};

Plan make_plan(Random& random) {
  Plan plan;
  plan.world.nodes = static_cast<uint32_t>(random.between(2, random.one_in(4) ? 8 : 4));
  plan.world.pages = static_cast<uint32_t>(random.one_in(8) ? random.between(1, 64) : random.between(1, 6));
  plan.world.pages_per_chunk = static_cast<uint32_t>(
      random.one_in(3) ? 64 : random.between(1, std::min<uint32_t>(plan.world.pages, 16)));
  plan.world.hold = !random.one_in(4);
  plan.world.second = plan.world.pages >= 2 && random.one_in(4);
  if (!random.one_in(4)) {
    plan.fault_every = random.between(5, 80);
    plan.faults_max = random.between(1, 5);
  }
  plan.slow = random.one_in(2) ? random.next() : 0;
  plan.timers_late = random.one_in(2) ? 8 : 1;
  plan.world.one_sided = random.one_in(2);
  plan.world.fetch_unseen = random.one_in(2);
  plan.mostly_reads = plan.world.one_sided && random.one_in(2);
  plan.world.nodes = std::max<uint32_t>(plan.world.nodes, plan.mostly_reads ? 3 : 2);
  plan.world.slots =
      static_cast<uint32_t>(random.between(plan.mostly_reads ? plan.world.pages : 1, plan.world.pages));
  return plan;
}

void add_programs(World& world, const Plan& plan, uint32_t node, Random& random) {
  const uint64_t programs = random.between(1, 3);
  const uint64_t reads_of_ten = plan.mostly_reads ? random.between(7, 9) : random.between(2, 8);
  const uint64_t pages = plan.mostly_reads ? std::min<uint64_t>(plan.world.pages, 2) : plan.world.pages;
  for (uint64_t i = 0; i < programs; ++i) {
    std::vector<World::Task> tasks(plan.mostly_reads ? random.between(4, 16) : random.between(1, 8));
    for (World::Task& task : tasks) {
      task.op = random.below(10) < reads_of_ten ? Op::kRead : random.one_in(2) ? Op::kWrite : Op::kAdd;
      task.page = static_cast<uint32_t>(random.below(pages));
      task.ahead = random.one_in(3) ? static_cast<uint32_t>(random.below(64)) : 0;
    }
    world.add_program(node, std::move(tasks));
  }
}

void change_something(World& world, const Plan& plan, Random& random) {
  const uint32_t node = static_cast<uint32_t>(random.below(world.nodes()));
  switch (random.below(8)) {
    case 0:
    case 1:
    case 2:
      world.crash(node, random);
      if (random.one_in(8)) {
        world.crash(static_cast<uint32_t>(random.below(world.nodes())), random);
      }
      return;
    case 3:
    case 4:
      world.leave(node);
      return;
    case 5:
    case 6:
      if (world.nodes() < 12) {
        world.join();
        add_programs(world, plan, world.nodes() - 1, random);
      }
      return;
    default:
      world.destroy_second_segment();
  }
}

}  // namespace

Outcome run_seed(uint64_t seed, const Settings& settings) {
  Random random(seed);
  Plan plan = make_plan(random);
  plan.world.bug = settings.bug;
  plan.world.trace = settings.trace;
  World world(plan.world);
  for (uint32_t node = 0; node < plan.world.nodes; ++node) {
    add_programs(world, plan, node, random);
  }
  const uint64_t second_at = random.below(60);
  uint64_t faults = 0;
  // First faults and delays as planned; when nothing more is planned, everything is delivered and must come
  // to rest.
  while (!world.failed() && world.choices() != 0) {
    if (world.stats().steps > kStepsMax) {
      Outcome outcome{"does not come to rest", world.stats(), world.trace()};
      return outcome;
    }
    if (world.stats().steps >= second_at) {
      world.create_second_segment();
    }
    if (faults < plan.faults_max && random.one_in(plan.fault_every)) {
      ++faults;
      change_something(world, plan, random);
      continue;
    }
    const Event event = world.choice(random.below(world.choices()));
    const bool calm = faults >= plan.faults_max && world.stats().steps > 500;
    const bool slow =
        event.kind == Event::Kind::kDeliver && (plan.slow >> (event.a / World::kNodesMax) & 1) != 0;
    if (!calm && ((slow && !random.one_in(8)) ||
                  (event.kind == Event::Kind::kHoldOver && !random.one_in(plan.timers_late)))) {
      if (world.choices() > 1 && !random.one_in(16)) {
        continue;
      }
    }
    world.apply(event);
  }
  if (!world.failed()) {
    world.check_rest();
  }
  return {world.failure(), world.stats(), world.trace()};
}

Totals run_seeds(uint64_t first, uint64_t count, unsigned threads, const Settings& settings) {
  Totals totals;
  std::atomic<uint64_t> next{first};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  const auto work = [&] {
    Totals mine;
    for (uint64_t seed = next++; seed < first + count && !stop; seed = next++) {
      const Outcome outcome = run_seed(seed, settings);
      const Stats& s = outcome.stats;
      ++mine.seeds;
      mine.with_crash += s.crashes != 0;
      mine.with_leave += s.leaves != 0;
      mine.with_join += s.joins != 0;
      mine.with_overlap += s.overlaps != 0;
      mine.with_lost += s.pages_lost != 0;
      mine.with_untouched_lost += s.untouched_lost != 0;
      mine.with_late_grant += s.late_grants != 0;
      mine.with_destroy += s.destroys != 0;
      mine.sum.steps += s.steps;
      mine.sum.messages += s.messages;
      mine.sum.faults += s.faults;
      mine.sum.fetches += s.fetches;
      mine.sum.fetched += s.fetched;
      mine.sum.fetched_by_home += s.fetched_by_home;
      mine.sum.closes += s.closes;
      mine.sum.waited_closes += s.waited_closes;
      if (!outcome.failure.empty()) {
        stop = true;
        mine.failed_seed = seed;
        mine.failure = outcome.failure;
      }
    }
    const std::lock_guard lock(mutex);
    totals.seeds += mine.seeds;
    totals.with_crash += mine.with_crash;
    totals.with_leave += mine.with_leave;
    totals.with_join += mine.with_join;
    totals.with_overlap += mine.with_overlap;
    totals.with_lost += mine.with_lost;
    totals.with_untouched_lost += mine.with_untouched_lost;
    totals.with_late_grant += mine.with_late_grant;
    totals.with_destroy += mine.with_destroy;
    totals.sum.steps += mine.sum.steps;
    totals.sum.messages += mine.sum.messages;
    totals.sum.faults += mine.sum.faults;
    totals.sum.fetches += mine.sum.fetches;
    totals.sum.fetched += mine.sum.fetched;
    totals.sum.fetched_by_home += mine.sum.fetched_by_home;
    totals.sum.closes += mine.sum.closes;
    totals.sum.waited_closes += mine.sum.waited_closes;
    if (mine.failed_seed && (!totals.failed_seed || *mine.failed_seed < *totals.failed_seed)) {
      totals.failed_seed = mine.failed_seed;
      totals.failure = mine.failure;
    }
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) {
    others.emplace_back(work);
  }
  work();
  for (std::thread& thread : others) {
    thread.join();
  }
  return totals;
}

std::string describe(const Totals& t) {
  std::string text = fmt::format(
      "{} schedules: {} with a crash, {} a leave, {} a join, {} overlapping view changes, {} lost pages, {} "
      "lost untouched "
      "pages, {} late grants, {} a destroyed segment; {} steps, {} messages, {} faults; {} one-sided reads brought {} "
      "pages to others and {} to homes, {} writes waited for a close, {} of them for messages that had arrived",
      t.seeds, t.with_crash, t.with_leave, t.with_join, t.with_overlap, t.with_lost, t.with_untouched_lost,
      t.with_late_grant, t.with_destroy, t.sum.steps, t.sum.messages, t.sum.faults, t.sum.fetches, t.sum.fetched,
      t.sum.fetched_by_home,       t.sum.closes, t.sum.waited_closes);
  if (t.failed_seed) {
    text += fmt::format("\nseed {} failed: {}\nreplay: kevre_sim --seed {} --trace", *t.failed_seed,
                        t.failure, *t.failed_seed);
  }
  return text;
}

}  // namespace kevre::sim
