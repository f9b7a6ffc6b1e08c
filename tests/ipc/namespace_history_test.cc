// Random histories through the namespace against models that are too simple to be wrong: after every event,
// nobody who could be served still waits, values are what the answered operations add up to, messages are
// neither lost nor doubled.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>

#include "base/random.h"
#include "tests/ipc/namespace_fixture.h"

namespace kevre::ipc::testing {
namespace {
constexpr int kSeeds = 400;
constexpr int kSteps = 400;
constexpr int32_t kNoWait = 04000;

Cluster::Program program(uint64_t number) {
  return {NodeId(static_cast<uint16_t>(number % 3 + 1)),
          number + 1,
          static_cast<uint32_t>(100 + number),
          {0, 0, {}}};
}

class SemaphoreModel {
 public:
  explicit SemaphoreModel(Random& random) : random_(random) {
    id_ = c_.get(program(0), Op::kSemGet, 0, kCount, 0600).value;
  }

  void step() {
    const uint64_t process = random_.below(kProcesses);
    const uint64_t what = random_.below(10);
    if (what < 7) {
      operate(process);
    } else if (what == 7 && !open_.empty()) {
      auto call = open_.begin();
      std::advance(call, static_cast<long>(random_.below(open_.size())));
      c_.cancel(program(call->second.process).node, call->first, EINTR);
    } else if (what == 8 && random_.one_in(4)) {
      die(process);
    }
    absorb();
    check();
  }

 private:
  static constexpr uint16_t kCount = 3;
  static constexpr uint64_t kProcesses = 6;
  struct Open {
    uint64_t process = 0;
    std::vector<SemOperation> operations;
  };

  void operate(uint64_t process) {
    std::vector<SemOperation> operations(random_.between(1, 3));
    for (SemOperation& operation : operations) {
      operation.number = static_cast<uint16_t>(random_.below(kCount));
      operation.value = static_cast<int16_t>(static_cast<int64_t>(random_.below(7)) - 3);
      operation.flags = static_cast<int16_t>(random_.one_in(3) ? 0x1000 : 0);
    }
    const uint64_t call = c_.start_semop(program(process), id_, operations);
    open_.emplace(call, Open{process, std::move(operations)});
  }
  void die(uint64_t process) {
    std::erase_if(open_, [&](const auto& call) { return call.second.process == process; });
    for (uint16_t i = 0; i < kCount; ++i) {
      values_[i] = std::clamp(values_[i] + undo_[process][i], 0, kSemVmx);
      undo_[process][i] = 0;
    }
    c_.gone(program(process));
  }
  // What was answered, in the order of the answers, happens in the model.
  void absorb() {
    for (; seen_ < c_.order.size(); ++seen_) {
      const auto call = open_.find(c_.order[seen_]);
      if (call == open_.end()) {
        continue;
      }
      if (c_.done[call->first].error == 0) {
        for (const SemOperation& operation : call->second.operations) {
          ASSERT_TRUE(possible(values_, operation)) << "an operation was done that could not be";
          values_[operation.number] += operation.value;
          undo_[call->second.process][operation.number] -=
              (operation.flags & 0x1000) != 0 ? operation.value : 0;
        }
      }
      open_.erase(call);
    }
  }
  static bool possible(const std::array<int, kCount>& values, const SemOperation& operation) {
    const int value = values[operation.number];
    return operation.value == 0 ? value == 0 : value + operation.value >= 0;
  }
  void check() {
    for (uint16_t i = 0; i < kCount; ++i) {
      ASSERT_EQ(c_.ctl(program(0), Op::kSemCtl, id_, 12, i).value, values_[i]);
    }
    seen_ = c_.order.size();
    for (const auto& [number, call] : open_) {
      std::array<int, kCount> values = values_;
      const bool all =
          std::all_of(call.operations.begin(), call.operations.end(), [&](const SemOperation& operation) {
            const bool done = possible(values, operation);
            values[operation.number] += operation.value;
            return done;
          });
      ASSERT_FALSE(all) << "call " << number << " waits and could be served";
    }
    ASSERT_EQ(c_.names.waiting(), open_.size());
  }

  Random& random_;
  Cluster c_;
  int64_t id_ = 0;
  std::map<uint64_t, Open> open_;
  std::array<int, kCount> values_{};
  std::array<std::array<int, kCount>, kProcesses> undo_{};
  size_t seen_ = 0;
};

TEST(NamespaceHistoryTest, SemaphoresAgreeWithAPlainModel) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    SemaphoreModel model(random);
    for (int i = 0; i < kSteps; ++i) {
      model.step();
      if (::testing::Test::HasFatalFailure()) {
        return;
      }
    }
  }
}

// Each message's text is its number. Everything sent is received once, per type in the order of sending.
TEST(NamespaceHistoryTest, QueuesNeitherLoseNorDoubleNorReorder) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Cluster c;
    const int64_t q = c.get(program(0), Op::kMsgGet, 0, 0, 0600).value;
    c.set(program(0), Op::kMsgCtl, q, {0, 0, 0600, 0, 64});  // small: senders wait
    std::map<uint64_t, int64_t> sends;                       // call -> type
    std::set<uint64_t> receives;
    std::map<uint64_t, NodeId> open;
    for (int i = 0; i < kSteps; ++i) {
      const Cluster::Program p = program(random.below(6));
      const uint64_t what = random.below(8);
      if (what < 4) {
        const auto type = static_cast<int64_t>(random.between(1, 3));
        const std::string text = std::to_string(c.last_call + 1) + std::string(random.below(20), ' ');
        const uint64_t call = c.start_send(p, q, type, text);
        sends[call] = type;
        open[call] = p.node;
      } else if (what < 7) {
        const auto type = static_cast<int64_t>(random.below(5)) - 2;
        const uint64_t call = c.start_receive(p, q, 100, type, random.one_in(3) ? kNoWait : 0);
        receives.insert(call);
        open[call] = p.node;
      } else if (!open.empty()) {
        auto call = open.begin();
        std::advance(call, static_cast<long>(random.below(open.size())));
        c.cancel(call->second, call->first, EINTR);
      }
    }
    while (c.receive(program(0), q, 100, 0, kNoWait).error == 0) {
      receives.insert(c.last_call);
    }
    std::set<uint64_t> got;
    std::map<int64_t, uint64_t> last_of_type;
    std::map<int64_t, std::vector<uint64_t>>
        order_of_type;  // sends, in the order in which they were accepted
    for (const uint64_t call : c.order) {
      ASSERT_EQ(c.answers[call], 1);
      if (sends.contains(call) && c.done[call].error == 0) {
        order_of_type[sends[call]].push_back(call);
      }
    }
    std::map<int64_t, size_t> next;
    for (const uint64_t call : c.order) {
      if (!receives.contains(call) || c.done[call].error != 0) {
        continue;
      }
      const uint64_t message = std::stoull(Cluster::text(c.done[call]));
      ASSERT_TRUE(got.insert(message).second) << "message " << message << " twice";
      const int64_t type = sends[message];
      ASSERT_EQ(order_of_type[type].at(next[type]++), message);
    }
    const auto accepted = std::count_if(sends.begin(), sends.end(), [&](const auto& send) {
      return c.done.contains(send.first) && c.done[send.first].error == 0;
    });
    ASSERT_EQ(got.size(), static_cast<size_t>(accepted));
  }
}

}  // namespace
}  // namespace kevre::ipc::testing
