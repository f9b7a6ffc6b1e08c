// What one-sided operations must do, over every backend that has them; see transport.h for the contract.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <set>

#include "base/random.h"
#include "tests/transport/backends.h"

namespace kevre::transport::testing {
namespace {

constexpr NodeId kOne{1};
constexpr NodeId kTwo{2};
constexpr std::span<const std::byte> kNothing{};

std::vector<Backend> capable_backends() {
  auto all = backends();
  std::erase_if(all, [](const Backend& backend) { return !backend.one_sided; });
  return all;
}

class OneSided : public ::testing::TestWithParam<Backend> {
 protected:
  void start(size_t nodes) {
    Options options;
    options.cluster_tag = 0x5555;
    recorders_ = std::vector<Recorder>(nodes);
    cluster_ = GetParam().make(nodes, options);
    for (size_t i = 0; i < nodes; ++i) {
      cluster_->node(i).set_handler(Service::kTest, &recorders_[i]);
    }
    cluster_->connect_all();
    for (size_t i = 1; i < nodes; ++i) {  // every link knows its peer's incarnation
      ASSERT_TRUE(node(0).send(NodeId(static_cast<uint16_t>(i + 1)), Service::kTest, {}, as_bytes("hello")));
      ASSERT_TRUE(node(i).send(kOne, Service::kTest, {}, as_bytes("hello")));
    }
    ASSERT_TRUE(cluster_->until([&] {
      bool all = recorders_[0].messages.size() == nodes - 1;
      for (size_t i = 1; i < nodes; ++i) {
        all = all && recorders_[i].messages.size() == 1;
      }
      return all;
    }));
    for (Recorder& recorder : recorders_) {
      recorder.messages.clear();
    }
  }
  Transport& node(size_t i) { return cluster_->node(i); }

  // Starts an operation and waits for its value.
  Result<uint64_t> wait_for(const std::function<Result<void>(Completion)>& begin) {
    std::vector<Result<uint64_t>> values;
    auto begun = begin([&](const Result<uint64_t>& value) { values.push_back(value); });
    if (!begun) {
      return tl::unexpected(begun.error());
    }
    EXPECT_TRUE(values.empty()) << "completions run inside progress() only";
    EXPECT_TRUE(cluster_->until([&] { return !values.empty(); }));
    EXPECT_EQ(values.size(), 1u);
    return values.empty() ? Result<uint64_t>(fail(Errc::kTimedOut, "no completion")) : values[0];
  }
  Result<uint64_t> read(const RegionKey& key, uint64_t offset, std::span<std::byte> to) {
    return wait_for([&](Completion done) { return node(0).read(kTwo, {&key, offset}, to, std::move(done)); });
  }
  Result<uint64_t> write(const RegionKey& key, uint64_t offset, std::span<const std::byte> from) {
    return wait_for([&](Completion done) {
      return node(0).write(kTwo, from, {&key, offset}, std::move(done));
    });
  }

  std::vector<Recorder> recorders_;  // outlive the cluster
  std::unique_ptr<Cluster> cluster_;
};

TEST_P(OneSided, ReadsAndWritesMoveEveryAlignmentAndSizeAndNothingBeside) {
  std::vector<std::byte> memory(3 << 20);
  std::vector<std::byte> local(memory.size());
  start(2);
  const RegionKey key = *node(1).register_region(memory);
  Buffer buffer = node(0).buffer(memory.size() / 2);
  uint64_t seed = 0;
  for (const size_t size : {0,   1,   2,    3,    7,    8,     9,     63,    64,    65,        255,
                            256, 257, 4095, 4096, 4097, 16383, 16384, 16385, 65536, 1'000'003, 1 << 20}) {
    for (size_t shift = 0; shift<8; shift += size> 5000 ? 5 : 1) {
      const size_t there = 4096 + shift;
      const size_t here = 4096 + shift * 3 % 8;
      const auto before = pattern(size + 64, ++seed);
      const auto written = pattern(size, ++seed);
      std::ranges::copy(before, memory.begin() + static_cast<std::ptrdiff_t>(there) - 32);
      // Into memory that the transport has never seen, and into a buffer of its own.
      const auto target =
          shift % 2 == 0 ? std::span(local).subspan(here, size) : buffer.bytes().subspan(here, size);
      std::fill_n(target.data() - 32, size + 64, std::byte{0xee});
      ASSERT_TRUE(read(key, there, target).has_value()) << size << " " << shift;
      EXPECT_TRUE(std::ranges::equal(target, std::span(before).subspan(32, size))) << size << " " << shift;
      EXPECT_EQ(*(target.data() - 1), std::byte{0xee});
      EXPECT_EQ(*(target.data() + size), std::byte{0xee});
      std::ranges::copy(written, target.begin());
      ASSERT_TRUE(write(key, there, target).has_value()) << size << " " << shift;
      const auto now = std::span<const std::byte>(memory).subspan(there - 32, size + 64);
      EXPECT_TRUE(std::ranges::equal(now.subspan(32, size), written)) << size << " " << shift;
      EXPECT_TRUE(std::ranges::equal(now.first(32), std::span(before).first(32))) << size << " " << shift;
      EXPECT_TRUE(std::ranges::equal(now.last(32), std::span(before).last(32))) << size << " " << shift;
    }
  }
  EXPECT_EQ(node(0).counters().one_sided_reads, node(0).counters().one_sided_writes);
  EXPECT_GT(node(0).counters().one_sided_reads, 100u);
  EXPECT_EQ(node(1).counters().one_sided_reads, 0u);
  node(1).deregister_region(key);
}

TEST_P(OneSided, TheWholeRegionAndNotAByteMore) {
  std::vector<std::byte> memory = pattern(10'000, 3);
  std::vector<std::byte> all(memory.size());
  start(2);
  const RegionKey key = *node(1).register_region(memory);
  ASSERT_TRUE(read(key, 0, all).has_value());
  EXPECT_EQ(all, memory);
  std::array<std::byte, 9> few{};
  EXPECT_FALSE(read(key, memory.size() - 8, few).has_value());
  EXPECT_FALSE(write(key, memory.size() + 1, few).has_value());
  EXPECT_FALSE(read(key, ~uint64_t{0} - 4, few).has_value());
  EXPECT_FALSE(read(RegionKey{}, 0, few).has_value());
  EXPECT_EQ(memory, pattern(10'000, 3));
  ASSERT_TRUE(read(key, memory.size() - 9, few).has_value()) << "a refused access costs nothing";
  node(1).deregister_region(key);
}

TEST_P(OneSided, AtomicsOfFourPeersAtOnceAddUp) {
  constexpr uint64_t kEach = 300;
  alignas(8) std::array<uint64_t, 2> words{};
  start(5);
  const RegionKey key = *node(0).register_region(std::as_writable_bytes(std::span(words)));
  std::set<uint64_t> olds;
  uint64_t added = 0, swapped = 0, errors = 0;
  std::array<std::function<void(uint64_t)>, 4>
      swap;  // each peer increments the second word by compare-and-swap
  std::array<uint64_t, 4> left{};
  for (size_t peer = 0; peer < 4; ++peer) {
    left[peer] = kEach;
    swap[peer] = [&, peer](uint64_t expected) {
      const auto begun = node(peer + 1).compare_swap(kOne, {&key, 8}, expected, expected + 1,
                                                     [&, peer, expected](const Result<uint64_t>& old) {
                                                       errors += old ? 0 : 1;
                                                       swapped += old && *old == expected ? 1 : 0;
                                                       left[peer] -= old && *old == expected ? 1 : 0;
                                                       if (old && left[peer] > 0) {
                                                         swap[peer](*old == expected ? expected + 1 : *old);
                                                       }
                                                     });
      errors += begun ? 0 : 1;
    };
    swap[peer](0);
    for (uint64_t i = 0; i < kEach; ++i) {
      const auto begun = node(peer + 1).fetch_add(kOne, {&key, 0}, 1, [&](const Result<uint64_t>& old) {
        errors += old ? 0 : 1;
        added += old && olds.insert(*old).second ? 1 : 0;
      });
      ASSERT_TRUE(begun.has_value()) << begun.error().text;
    }
  }
  ASSERT_TRUE(cluster_->until([&] { return errors > 0 || (added == 4 * kEach && swapped == 4 * kEach); }));
  EXPECT_EQ(errors, 0u);
  EXPECT_EQ(words[0], 4 * kEach);
  EXPECT_EQ(words[1], 4 * kEach);
  EXPECT_EQ(*olds.rbegin(), 4 * kEach - 1);
  node(0).deregister_region(key);
}

TEST_P(OneSided, ADeregisteredRegionIsAnErrorAtTheCallerAndBothGoOn) {
  std::vector<std::byte> memory = pattern(4096, 1);
  std::vector<std::byte> local(4096);
  start(2);
  const RegionKey gone = *node(1).register_region(memory);
  ASSERT_TRUE(read(gone, 0, local).has_value());
  node(1).deregister_region(gone);
  std::ranges::fill(local, std::byte{0x77});
  const auto refused = read(gone, 0, local);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, Errc::kInvalid) << refused.error().text;
  EXPECT_EQ(local, std::vector<std::byte>(4096, std::byte{0x77}));
  // It may have cost the connection (it does where the device watches): both ends hear of it and connect
  // again.
  bool lost = false;
  for (int i = 0; i < 5000 && !lost; ++i) {
    cluster_->step();
    lost = !recorders_[0].lost.empty();
  }
  if (lost) {
    ASSERT_TRUE(cluster_->until([&] { return !recorders_[1].lost.empty(); }));
    ASSERT_TRUE(node(0).connect(kTwo, node(1).local_address()).has_value());
    ASSERT_TRUE(node(1).connect(kOne, node(0).local_address()).has_value());
  }
  const RegionKey fresh = *node(1).register_region(memory);
  const auto again = read(fresh, 0, local);
  ASSERT_TRUE(again.has_value()) << again.error().text;
  EXPECT_EQ(local, memory);
  node(1).deregister_region(fresh);
}

TEST_P(OneSided, AWriteIsThereWhenAMessageSentAfterItIsHandedUp) {
  std::vector<std::byte> memory(100'000);
  start(2);
  const RegionKey key = *node(1).register_region(memory);
  uint64_t wrong = 0, seen = 0;
  recorders_[1].keep = false;
  recorders_[1].also = [&](NodeId, std::span<const std::byte> header, auto) {
    uint64_t round = 0;
    std::memcpy(&round, header.data(), sizeof round);
    const auto want = pattern(1000 * (round % 100 + 1), round);
    wrong += std::equal(want.begin(), want.end(), memory.begin()) ? 0 : 1;
    ++seen;
  };
  for (uint64_t round = 0; round < 100; ++round) {
    const auto bytes = pattern(1000 * (round % 100 + 1), round);
    ASSERT_TRUE(node(0)
                    .write(kTwo, bytes, {&key, 0},
                           [](const Result<uint64_t>& value) { EXPECT_TRUE(value.has_value()); })
                    .has_value());
    ASSERT_TRUE(
        node(0).send(kTwo, Service::kTest, std::as_bytes(std::span(&round, 1)), kNothing).has_value());
    ASSERT_TRUE(cluster_->until([&] { return seen == round + 1; }));
  }
  EXPECT_EQ(wrong, 0u);
  node(1).deregister_region(key);
}

// The rule that keeps pages that were read one-sidedly from being stale.
TEST_P(OneSided, WhenDrainAnswersEveryMessageInFrontOfAReadOfTheOldContentsWasHandedUp) {
  alignas(8) uint64_t word = 0;
  start(2);
  const RegionKey key = *node(1).register_region(std::as_writable_bytes(std::span(&word, 1)));
  uint64_t handed_up = 0;
  recorders_[1].keep = false;
  recorders_[1].also = [&](NodeId, auto, auto) { ++handed_up; };
  Random random(11);
  uint64_t sent = 0, late = 0, reads = 0, errors = 0;
  for (uint64_t round = 1; round <= 60; ++round) {
    uint64_t newest_old = 0;  // number of the last message in front of a read that saw the old contents
    uint64_t under_way = 0, known_at_drain = 0;
    bool changed = false, drained = false;
    std::deque<uint64_t> values;
    const auto end = random.below(40) + 1;
    for (uint64_t turn = 0; turn < end + 5 || under_way > 0 || !drained; ++turn) {
      if (turn < end + 5) {
        const auto payload = pattern(random.one_in(10) ? 50'000 : random.below(300), turn);
        const auto message = node(0).send(kTwo, Service::kTest, {}, payload);
        sent += message ? 1 : 0;
        values.push_back(0);
        uint64_t& value = values.back();
        ++under_way;
        ++reads;
        ASSERT_TRUE(node(0)
                        .read(kTwo, {&key, 0}, std::as_writable_bytes(std::span(&value, 1)),
                              [&, round, number = sent](const Result<uint64_t>& done) {
                                --under_way;
                                errors += done ? 0 : 1;
                                if (value < round) {
                                  newest_old = std::max(newest_old, number);
                                }
                              })
                        .has_value());
      }
      if (turn == end) {
        std::atomic_ref(word).store(round);
        changed = true;
        ASSERT_TRUE(node(1)
                        .drain_arrivals([&] {
                          drained = true;
                          known_at_drain = handed_up;
                        })
                        .has_value());
        EXPECT_FALSE(drained) << "inside progress() only";
      }
      cluster_->step();
      ASSERT_LT(turn, 2'000'000u);
    }
    ASSERT_TRUE(changed);
    late += newest_old > known_at_drain ? 1 : 0;
    ASSERT_TRUE(cluster_->until([&] { return handed_up == sent; }));
  }
  EXPECT_EQ(late, 0u);
  EXPECT_EQ(errors, 0u);
  EXPECT_EQ(node(0).counters().one_sided_reads, reads);
  node(1).deregister_region(key);
}

TEST_P(OneSided, ACompletionMayStartTheNextOperation) {
  std::vector<uint64_t> chain(500);
  for (size_t i = 0; i < chain.size(); ++i) {
    chain[i] = i + 1;
  }
  start(2);
  const RegionKey key = *node(1).register_region(std::as_writable_bytes(std::span(chain)));
  uint64_t at = 0;
  bool failed = false;
  std::function<void(const Result<uint64_t>&)> next = [&](const Result<uint64_t>& done) {
    failed = failed || !done;
    if (at < chain.size() && !failed) {
      const auto begun = node(0).read(kTwo, {&key, at * 8}, std::as_writable_bytes(std::span(&at, 1)), next);
      failed = failed || !begun;
    }
  };
  next(uint64_t{0});
  ASSERT_TRUE(cluster_->until([&] { return failed || at == chain.size(); }));
  EXPECT_FALSE(failed);
  node(1).deregister_region(key);
}

TEST_P(OneSided, ADisconnectAnswersEveryOperationOnce) {
  std::vector<std::byte> memory(1 << 20);
  std::vector<std::byte> local(1 << 20);
  start(2);
  const RegionKey key = *node(1).register_region(memory);
  size_t answers = 0;
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(
        node(0).read(kTwo, {&key, 0}, local, [&](const Result<uint64_t>&) { ++answers; }).has_value());
  }
  node(0).disconnect(kTwo);
  EXPECT_EQ(node(0).read(kTwo, {&key, 0}, local, nullptr).error().code, Errc::kPeerLost);
  ASSERT_TRUE(cluster_->until([&] { return answers == 200; }));
  for (int i = 0; i < 2000; ++i) {
    cluster_->step();
  }
  EXPECT_EQ(answers, 200u);
  node(1).deregister_region(key);
}

TEST_P(OneSided, TenThousandOperationsWithThePeerStoppedInTheMiddleGetAnErrorOrTheRightBytes) {
  constexpr uint64_t kOperations = 10'000;
  constexpr size_t kSlots = 512;
  constexpr size_t kBytes = 256;
  const std::vector<std::byte> memory = pattern(kSlots * kBytes, 9);
  std::vector<std::byte> shared = memory;  // stays when its transport goes
  start(2);
  const RegionKey key = *node(1).register_region(shared);
  std::vector<std::array<std::byte, kBytes>> results(kOperations);
  uint64_t begun = 0, right = 0, wrong = 0, refused = 0, failed = 0;
  bool stopped = false;
  const auto on_done = [&](uint64_t number, const Result<uint64_t>& value) {
    const size_t slot = number * 7 % kSlots;
    if (!value) {
      ++failed;
      wrong += stopped ? 0 : 1;
    } else if (std::equal(results[number].begin(), results[number].end(),
                          memory.begin() + static_cast<std::ptrdiff_t>(slot * kBytes))) {
      ++right;
      wrong += failed > 0 ? 1 : 0;  // one line: nothing succeeds after a failure
    } else {
      ++wrong;
    }
  };
  ASSERT_TRUE(cluster_->until([&] {
    for (int burst = 0; burst < 100 && begun < kOperations && begun - right - failed - refused < 400;
         ++burst) {
      const uint64_t number = begun++;
      const size_t slot = number * 7 % kSlots;
      const auto done = node(0).read(kTwo, {&key, slot * kBytes}, results[number],
                                     [&, number](const Result<uint64_t>& value) { on_done(number, value); });
      refused += done ? 0 : 1;
    }
    if (right > kOperations / 2 && !stopped) {
      stopped = true;
      cluster_->stop(1);
    }
    return right + failed + refused == kOperations;
  }));
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(right, kOperations / 2);
  EXPECT_GT(failed + refused, 0u);
  EXPECT_EQ(right + failed + refused, kOperations);
  ASSERT_TRUE(cluster_->until([&] { return !recorders_[0].lost.empty(); }));
  EXPECT_EQ(recorders_[0].lost.size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Backends, OneSided, ::testing::ValuesIn(capable_backends()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kevre::transport::testing
