// Nodes with real programs: three nodes on one loop in this process, programs forked. Over ucx, or what
// KEVRE_TEST_TRANSPORT and KEVRE_TEST_ADDRESS say (verbs in the guest, tests/rdma); one-sided reads also over the sim
// transport.
#include "dsm/node.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <deque>

#include "base/clock.h"
#include "base/random.h"
#include "dsm/shelf.h"
#include "tests/dsm/program.h"
#include "transport/sim/sim_network.h"

namespace kevre::dsm {
namespace {

using test::Answer;
using test::Command;
using test::Program;
using Kind = test::Command::Kind;

constexpr SegmentId kSegment{uint64_t{1} << 32 | 5};

class NodeTest : public ::testing::Test {
 protected:
  struct Seat {
    std::unique_ptr<transport::Transport> transport;
    std::unique_ptr<Node> node;
    int memfd = -1;
  };
  struct Running {
    std::unique_ptr<Program> program;
    MmId mm;
    size_t node = 0;
    int status = -1;
    bool ended = false;
  };

  static std::string setting(const char* name, const char* otherwise) {
    const char* const value = std::getenv(name);
    return value == nullptr ? otherwise : value;
  }

  // The nodes are connected by a simulated network with one-sided reads.
  void simulate() {
    transport::sim::SimOptions options;
    options.capabilities.read = true;
    network_ = std::make_unique<transport::sim::SimNetwork>(options);
  }

  // Over verbs where they are asked for, else over a simulated network.
  void read_one_sided() {
    if (setting("KEVRE_TEST_TRANSPORT", "ucx") != "verbs") {
      simulate();
    }
  }

  void start(size_t nodes, uint64_t bytes) {
    bytes_ = bytes;
    loop_ = EventLoop::create().value();
    for (size_t i = 0; i < nodes; ++i) {
      Seat seat;
      transport::Options options;
      options.self = NodeId(static_cast<uint16_t>(i + 1));
      options.kind = setting("KEVRE_TEST_TRANSPORT", "ucx");
      options.bind_address = setting("KEVRE_TEST_ADDRESS", "127.0.0.1");
      options.cluster_tag = 99;
      seat.transport = network_ ? network_->create(options).value() : transport::create(options).value();
      ASSERT_TRUE(loop_->add_poller(seat.transport.get()).has_value());
      Node::Options node_options;
      node_options.self = options.self;
      node_options.pager.old_kernel = old_kernel_;
      node_options.shelf_bytes = shelf_bytes_;
      auto made = Node::create(node_options, loop_.get(), seat.transport.get());
      if (!made) {
        loop_->remove_poller(seat.transport.get());
        GTEST_SKIP() << "kevre: test skipped: " << made.error().text;
      }
      seat.node = std::move(*made);
      seats_.push_back(std::move(seat));
    }
    for (Seat& from : seats_) {
      for (Seat& to : seats_) {
        if (&from != &to) {
          ASSERT_TRUE(
              from.transport->connect(to.transport->self(), to.transport->local_address()).has_value());
        }
      }
    }
    view(1, nodes, {});
    for (Seat& seat : seats_) {
      seat.memfd = seat.node->segment_fd(kSegment, bytes).value();
    }
  }

  void view(uint32_t number, size_t nodes, std::vector<NodeId> lost) {
    cluster::View next;
    next.id = ViewId(number);
    next.lost = std::move(lost);
    for (size_t i = 0; i < nodes; ++i) {
      cluster::Member member;
      member.id = NodeId(static_cast<uint16_t>(i + 1));
      next.members.push_back(member);
    }
    for (size_t i = 0; i < nodes; ++i) {
      seats_[i].node->on_view(next);
    }
    ASSERT_TRUE(until([&] {
      for (size_t i = 0; i < nodes; ++i) {
        if (seats_[i].node->stable_view() != next.id) {
          return false;
        }
      }
      return true;
    }));
  }

  void TearDown() override {
    programs_.clear();
    for (Seat& seat : seats_) {
      seat.node.reset();
    }
    for (Seat& seat : seats_) {
      if (seat.transport) {
        loop_->remove_poller(seat.transport.get());
      }
    }
    seats_.clear();
  }

  Running& run(size_t node, const Program::Body& body) {
    Running running;
    running.node = node;
    Node& dsm = *seats_[node].node;
    running.program = std::make_unique<Program>(dsm.userfaultfd_device(), seats_[node].memfd, bytes_,
                                                Program::Options{}, body);
    running.mm = dsm.adopt(running.program->take_uffd()).value();
    EXPECT_TRUE(dsm.attach(running.mm, kSegment, running.program->address(), bytes_).has_value());
    running.program->go();
    programs_.push_back(std::move(running));
    return programs_.back();
  }

  bool until(const std::function<bool()>& done, Nanos deadline = 60 * kSecond) {
    const Nanos end = now_ns() + deadline;
    while (!done()) {
      if (now_ns() > end) {
        return false;
      }
      const bool moved = network_ && network_->advance();
      loop_->turn(moved ? 0 : kMillisecond);
    }
    return true;
  }
  bool all_ended() {
    bool all = true;
    for (Running& running : programs_) {
      running.ended = running.ended || running.program->ended(&running.status);
      all = all && running.ended;
    }
    return all;
  }
  Answer ask(Running& running, Kind kind, uint64_t page, uint64_t value = 0) {
    const Command command{kind, page * kPageBytes, value};
    EXPECT_EQ(::send(running.program->control(), &command, sizeof command, MSG_NOSIGNAL),
              static_cast<ssize_t>(sizeof command));
    Answer got;
    got.error = -1;
    EXPECT_TRUE(until([&] {
      return ::recv(running.program->control(), &got, sizeof got, MSG_DONTWAIT) ==
             static_cast<ssize_t>(sizeof got);
    }));
    return got;
  }
  void report(const char* what) {
    for (const Seat& seat : seats_) {
      if (!seat.node) {
        continue;
      }
      const NodeStats s = seat.node->stats();
      fmt::print(
          "{} n{}: faults {} local {} fault p50 {:.1f} us p99 {:.1f} us; in {} out {}; takes {} downgrades "
          "{} "
          "hold {} us\n",
          what, seat.transport->self(), s.faults, s.local_faults,
          static_cast<double>(s.fault_ns.percentile_ns(0.5)) / 1e3,
          static_cast<double>(s.fault_ns.percentile_ns(0.99)) / 1e3, s.pages_in, s.pages_out, s.pager.takes,
          s.pager.downgrades, s.hold_ns / 1000);
    }
  }

  uint64_t fetched() const {
    uint64_t pages = 0;
    for (const Seat& seat : seats_) {
      pages += seat.node ? seat.node->stats().directory.pages_fetched : 0;
    }
    return pages;
  }
  void report_fetches() {
    for (const Seat& seat : seats_) {
      if (seat.node) {
        const Directory::Counters c = seat.node->stats().directory;
        fmt::print("n{}: {} pages fetched, {} failed, {} writes waited for a close; {} one-sided reads over {}\n",
                   seat.transport->self(), c.pages_fetched, c.fetches_failed, c.closes,
                   seat.transport->counters().one_sided_reads, seat.transport->name());
      }
    }
  }

  std::unique_ptr<transport::sim::SimNetwork> network_;  // null: real transports
  size_t shelf_bytes_ = size_t{4} << 20;
  bool old_kernel_ = false;
  uint64_t bytes_ = 0;
  std::unique_ptr<EventLoop> loop_;
  std::deque<Seat> seats_;
  std::deque<Running> programs_;
};

Program::Body adds(int count) {
  return [count](std::byte* memory, int) {
    for (int i = 0; i < count; ++i) {
      test::add_atomically(memory, 1);
      if (i % 256 == 0) {
        ::sched_yield();  // few processors: otherwise a program is done before the page is asked for elsewhere
      }
    }
    return 0;
  };
}

TEST_F(NodeTest, NoIncrementIsLostByThreeNodesWithTwoProgramsEach) {
  ASSERT_NO_FATAL_FAILURE(start(3, 16 * kPageBytes));
  constexpr int kEach = 200'000;
  for (size_t i = 0; i < 6; ++i) {
    run(i % 3, adds(kEach));
  }
  ASSERT_TRUE(until([&] { return all_ended(); }));
  Running& reader = run(0, test::obey());
  EXPECT_EQ(ask(reader, Kind::kLoad, 0).value, 6u * kEach);
  report("xadd");
}

TEST_F(NodeTest, NoIncrementIsLostWithTheOldKernelsCalls) {
  old_kernel_ = true;
  ASSERT_NO_FATAL_FAILURE(start(3, 16 * kPageBytes));
  constexpr int kEach = 50'000;
  for (size_t i = 0; i < 6; ++i) {
    run(i % 3, adds(kEach));
  }
  ASSERT_TRUE(until([&] { return all_ended(); }));
  Running& reader = run(0, test::obey());
  EXPECT_EQ(ask(reader, Kind::kLoad, 0).value, 6u * kEach);
}

uint64_t content(uint64_t word) {
  return word * 0x9e3779b97f4a7c15ull + 1;
}

TEST_F(NodeTest, WhatOneNodeWroteTheOthersReadIdentically) {
  constexpr uint64_t kBytes = uint64_t{64} << 20;
  ASSERT_NO_FATAL_FAILURE(start(3, kBytes));
  const auto write = [](std::byte* memory, int) {
    auto* const words = reinterpret_cast<uint64_t*>(memory);
    for (uint64_t i = 0; i < kBytes / 8; ++i) {
      words[i] = content(i);
    }
    return 0;
  };
  const auto read = [](std::byte* memory, int) {
    const auto* const words = reinterpret_cast<const uint64_t*>(memory);
    for (uint64_t i = 0; i < kBytes / 8; ++i) {
      if (words[i] != content(i)) {
        return 1;
      }
    }
    return 0;
  };
  Nanos before = now_ns();
  Running& writer = run(0, write);
  ASSERT_TRUE(until([&] { return all_ended(); }));
  EXPECT_EQ(writer.status, 0);
  fmt::print("64 MiB written: {:.0f} ms\n", static_cast<double>(now_ns() - before) / 1e6);
  for (size_t node = 1; node < 3; ++node) {
    before = now_ns();
    Running& reader = run(node, read);
    ASSERT_TRUE(until([&] { return all_ended(); }));
    EXPECT_EQ(reader.status, 0);
    const auto time = static_cast<double>(now_ns() - before);
    fmt::print("64 MiB read on n{}: {:.0f} ms, {:.0f} MB/s\n", node + 1, time / 1e6,
               static_cast<double>(kBytes) / time * 1e3);
  }
  report("64 MiB");
}

TEST_F(NodeTest, ProgramsKilledAtAnyMomentLeaveTheSegmentUsable) {
  ASSERT_NO_FATAL_FAILURE(start(3, 4 * kPageBytes));
  constexpr int kKills = 200;
  struct Tally {
    uint64_t done[kKills + 8];
  };
  auto* const tally = static_cast<Tally*>(
      ::mmap(nullptr, sizeof(Tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(tally, MAP_FAILED);
  const auto endless = [tally](size_t who) {
    return [tally, who](std::byte* memory, int) {
      for (;;) {
        test::add_atomically(memory + 8, 1);
        std::atomic_ref(tally->done[who]).fetch_add(1);
      }
      return 0;
    };
  };
  Random random(4711);
  size_t next = 0;
  for (; next < 4; ++next) {
    run(next % 3, endless(next));
  }
  for (int kills = 0; kills < kKills; ++kills) {
    const Nanos pause = static_cast<Nanos>(random.below(4'000'000));
    const Nanos end = now_ns() + pause;
    ASSERT_TRUE(until([&] { return now_ns() >= end; }));
    const size_t victim = random.below(programs_.size());
    Running& running = programs_[victim];
    running.program->kill();
    running.program->reap();
    seats_[running.node].node->drop(running.mm);
    programs_.erase(programs_.begin() + static_cast<std::ptrdiff_t>(victim));
    run(next % 3, endless(next));
    ++next;
  }
  for (Running& running : programs_) {
    running.program->kill();
    running.program->reap();
    seats_[running.node].node->drop(running.mm);
  }
  programs_.clear();
  Running& reader = run(1, test::obey());
  const uint64_t total = ask(reader, Kind::kLoad, 0).value;  // offset 0 first: the page comes
  EXPECT_EQ(total, 0u);
  const Command command{Kind::kLoad, 8, 0};
  ASSERT_EQ(::send(reader.program->control(), &command, sizeof command, 0),
            static_cast<ssize_t>(sizeof command));
  Answer got;
  ASSERT_TRUE(until([&] { return ::recv(reader.program->control(), &got, sizeof got, MSG_DONTWAIT) > 0; }));
  uint64_t sum = 0;
  for (const uint64_t done : tally->done) {
    sum += done;
  }
  EXPECT_GE(got.value, sum);  // killed between the addition and its tally: at most one each
  EXPECT_LE(got.value, sum + next);
  fmt::print("{} kills: counter {}, tallies {}\n", kKills, got.value, sum);
  ::munmap(tally, sizeof(Tally));
}

TEST_F(NodeTest, APageThatWasOnlyOnALostNodeGivesSigbusAndTheOthersGoOn) {
  constexpr uint64_t kPages = 4 * kChunkPages;
  ASSERT_NO_FATAL_FAILURE(start(3, kPages * kPageBytes));
  Running& first = run(0, test::obey());
  Running& third = run(2, test::obey());
  for (uint64_t page = 0; page < kPages; page += 64) {
    EXPECT_EQ(ask(first, Kind::kAdd, page, 1).signal, 0);
    EXPECT_EQ(ask(third, Kind::kAdd, page + 1, 1).signal, 0);
  }
  ASSERT_TRUE(until([&] { return seats_[0].node->quiescent(); }));
  third.program->kill();
  third.program->reap();
  seats_[2].node.reset();
  loop_->remove_poller(seats_[2].transport.get());
  seats_[2].transport.reset();
  ASSERT_NO_FATAL_FAILURE(view(2, 2, {NodeId(3)}));
  Running& second = run(1, test::obey());
  for (uint64_t page = 0; page < kPages; page += 64) {
    EXPECT_EQ(ask(second, Kind::kLoad, page).value, 1u);
    EXPECT_EQ(ask(second, Kind::kLoad, page + 1).signal, SIGBUS);
    EXPECT_EQ(ask(first, Kind::kAdd, page + 1, 1).signal, SIGBUS);
    EXPECT_EQ(ask(first, Kind::kAdd, page, 1).signal, 0);
    EXPECT_EQ(ask(second, Kind::kLoad, page).value, 2u);
  }
}

// What no node has published yet comes by message; what another node has read already is fetched.
TEST_F(NodeTest, WhatOthersHaveReadComesWithOneSidedReads) {
  constexpr uint64_t kPages = 8 * kChunkPages;  // several homes
  read_one_sided();
  ASSERT_NO_FATAL_FAILURE(start(3, kPages * kPageBytes));
  Running& first = run(0, test::obey());
  Running& second = run(1, test::obey());
  Running& third = run(2, test::obey());
  uint64_t expected = 0;
  for (int round = 1; round <= 2; ++round) {
    for (uint64_t chunk = 0; chunk < 8; ++chunk) {
      for (uint64_t page = chunk * kChunkPages; page < chunk * kChunkPages + 8; ++page) {
        ASSERT_EQ(ask(first, Kind::kStore, page, ++expected).signal, 0);
      }
    }
    for (Running* reader : {&second, &third}) {
      uint64_t value = expected - 64;
      for (uint64_t chunk = 0; chunk < 8; ++chunk) {
        for (uint64_t page = chunk * kChunkPages; page < chunk * kChunkPages + 8; ++page) {
          ASSERT_EQ(ask(*reader, Kind::kLoad, page).value, ++value);
        }
      }
    }
  }
  report_fetches();
  EXPECT_GT(seats_[2].node->stats().directory.pages_fetched, 10u);
  EXPECT_GT(seats_[2].transport->counters().one_sided_reads, 10u);
}

// Each program adds to pages of its choice and looks at others. No addition is lost, and no program sees a page
// go back.
TEST_F(NodeTest, NoIncrementIsLostAndNoReaderSeesAnOlderPageWithOneSidedReads) {
  constexpr uint64_t kPages = 24;
  read_one_sided();
  const int steps = network_ ? 4'000 : 400;  // a fault takes 30 ms in an emulated machine
  shelf_bytes_ = Shelf::kGroupBytes;
  ASSERT_NO_FATAL_FAILURE(start(3, kPages * kPageBytes));
  const auto body = [steps](uint64_t seed) {
    return [seed, steps](std::byte* memory, int) {
      Random random(seed);
      uint64_t seen[kPages] = {};
      for (int i = 0; i < steps; ++i) {
        const uint64_t page = random.below(kPages);
        if (i % 8 == 0) {
          test::add_atomically(memory + page * kPageBytes, 1);
          ::sched_yield();
        }
        const uint64_t value = *reinterpret_cast<volatile uint64_t*>(memory + page * kPageBytes);
        if (value < seen[page]) {
          return 1;
        }
        seen[page] = value;
      }
      return 0;
    };
  };
  for (uint64_t i = 0; i < 6; ++i) {
    run(i % 3, body(i + 1));
  }
  ASSERT_TRUE(until([&] { return all_ended(); }));
  for (const Running& running : programs_) {
    EXPECT_EQ(running.status, 0) << "n" << running.node + 1 << " saw an older page";
  }
  report_fetches();
  Running& reader = run(0, test::obey());
  uint64_t sum = 0;
  for (uint64_t page = 0; page < kPages; ++page) {
    sum += ask(reader, Kind::kLoad, page).value;
  }
  EXPECT_EQ(sum, 6u * static_cast<unsigned>(steps / 8));
  EXPECT_GT(fetched(), network_ ? 100u : 0u);
}

TEST_F(NodeTest, ANodeThatDiesUnderOneSidedReadsIsLikeAnyOther) {
  constexpr uint64_t kPages = 4 * kChunkPages;
  simulate();
  ASSERT_NO_FATAL_FAILURE(start(3, kPages * kPageBytes));
  Running& first = run(0, test::obey());
  Running& second = run(1, test::obey());
  Running& third = run(2, test::obey());
  for (uint64_t page = 0; page < kPages; page += 16) {
    ASSERT_EQ(ask(third, Kind::kStore, page, page + 1).signal, 0);
    ASSERT_EQ(ask(second, Kind::kLoad, page).value, page + 1);
  }
  // The first node has heard what is published and reads on; the third, which published it, is gone in the middle.
  ASSERT_EQ(ask(first, Kind::kLoad, 0).value, 1u);
  for (uint64_t page = 16; page < 64; page += 16) {
    const Command command{Kind::kLoad, page * kPageBytes, 0};
    ASSERT_EQ(::send(first.program->control(), &command, sizeof command, 0), static_cast<ssize_t>(sizeof command));
  }
  const Nanos deadline = now_ns() + 10 * kSecond;
  while (seats_[0].transport->counters().one_sided_reads == 0 && now_ns() < deadline) {
    loop_->turn(kMillisecond);  // nothing moves in the network: the read stays under way
  }
  ASSERT_GT(seats_[0].transport->counters().one_sided_reads, 0u);
  third.program->kill();
  third.program->reap();
  seats_[2].node.reset();
  loop_->remove_poller(seats_[2].transport.get());
  seats_[2].transport.reset();
  ASSERT_NO_FATAL_FAILURE(view(2, 2, {NodeId(3)}));
  for (uint64_t page = 16; page < 64; page += 16) {
    Answer got;
    ASSERT_TRUE(until([&] { return ::recv(first.program->control(), &got, sizeof got, MSG_DONTWAIT) > 0; }));
    EXPECT_EQ(got.value, page + 1);
  }
  for (uint64_t page = 0; page < kPages; page += 16) {
    EXPECT_EQ(ask(first, Kind::kLoad, page).value, page + 1);
  }
}

TEST_F(NodeTest, AForkedChildIsServedAndItsEndIsNoticed) {
  ASSERT_NO_FATAL_FAILURE(start(2, 16 * kPageBytes));
  int forks = 0;
  seats_[0].node->set_on_fork([&](MmId, MmId, int fd) {  // the child may have ended already
    ++forks;
    EXPECT_GE(fd, 0);
  });
  const auto body = [](std::byte* memory, int) {
    for (int i = 0; i < 20; ++i) {
      const pid_t child = ::fork();
      if (child == 0) {
        for (int k = 0; k < 100; ++k) {
          test::add_atomically(memory, 1);
        }
        ::_exit(0);
      }
      for (int k = 0; k < 100; ++k) {
        test::add_atomically(memory, 1);
      }
      ::waitpid(child, nullptr, 0);
    }
    return 0;
  };
  run(0, body);
  run(1, body);
  ASSERT_TRUE(until([&] { return all_ended(); }));
  EXPECT_EQ(forks, 20);
  Running& reader = run(1, test::obey());
  EXPECT_EQ(ask(reader, Kind::kLoad, 0).value, 2u * 20 * 200);
  EXPECT_TRUE(until([&] { return seats_[0].node->stats().programs == 0; }));  // found dead by the node itself
}

}  // namespace
}  // namespace kevre::dsm
