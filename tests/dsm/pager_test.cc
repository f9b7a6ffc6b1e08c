// Each transition of the page state machine, with real programs, in both columns (new kernel, old kernel).
#include "dsm/pager.h"

#include <gtest/gtest.h>

#include <deque>
#include <optional>

#include "base/clock.h"
#include "tests/dsm/program.h"

namespace kevre::dsm {
namespace {

using test::Answer;
using test::Command;
using test::Program;
using Kind = test::Command::Kind;

constexpr SegmentId kSegment{7};
constexpr uint64_t kPages = 128;
constexpr Nanos kDeadline = 10 * kSecond;

class Recorder : public Pager::Sink {
 public:
  void on_fault(const Pager::Fault& fault) override {
    if (pager->resolve_locally(fault)) {
      ++local;
    } else {
      faults.push_back(fault);
    }
  }
  void on_fork(MmId parent, MmId child, int fd) override {
    EXPECT_GE(fd, 0);
    forks.emplace_back(parent, child);
  }
  void on_unmapped(MmId, uint64_t address, uint64_t bytes) override { unmapped.emplace_back(address, bytes); }

  Pager* pager = nullptr;
  int local = 0;
  std::deque<Pager::Fault> faults;
  std::vector<std::pair<MmId, MmId>> forks;
  std::vector<std::pair<uint64_t, uint64_t>> unmapped;
};

std::vector<std::byte> filled(uint64_t pages, uint64_t word) {
  std::vector<std::byte> bytes(pages * kPageBytes);
  for (uint64_t i = 0; i < pages; ++i) {
    const uint64_t value = word + i;
    std::memcpy(bytes.data() + i * kPageBytes, &value, 8);
  }
  return bytes;
}

uint64_t word_of(const std::vector<std::byte>& bytes) {
  uint64_t value = 0;
  std::memcpy(&value, bytes.data(), 8);
  return value;
}

class PagerTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    Pager::Options options;
    options.old_kernel = GetParam();
    options.copies_to_fail = &copies_to_fail_;
    auto made = Pager::create(&sink_, options);
    if (!made) {
      GTEST_SKIP() << "kevre: test skipped: " << made.error().text;
    }
    pager_ = std::move(*made);
    sink_.pager = pager_.get();
    if (!GetParam() && !pager_->features().minor) {
      GTEST_SKIP() << "kevre: test skipped: this kernel has no UFFDIO_CONTINUE_MODE_WP";
    }
    memfd_ = pager_->open_segment(kSegment, kPages).value();
  }
  void TearDown() override { programs_.clear(); }

  struct Running {
    std::unique_ptr<Program> program;
    MmId mm;
  };
  Running& start(const Program::Options& options = {}) {
    Running running;
    running.program = std::make_unique<Program>(pager_->userfaultfd_device(), memfd_, kPages * kPageBytes,
                                                options, test::obey());
    running.mm = pager_->adopt(running.program->take_uffd()).value();
    EXPECT_TRUE(
        pager_->attach(running.mm, kSegment, running.program->address(), kPages * kPageBytes).has_value());
    running.program->go();
    programs_.push_back(std::move(running));
    return programs_.back();
  }

  void pump_once() {
    std::vector<MmId> mms;
    pager_->list(mms);
    for (const MmId mm : mms) {
      pager_->read_events(mm);
    }
  }
  // Serves events until `done` or the deadline.
  bool pump_until(const std::function<bool()>& done) {
    const Nanos end = now_ns() + kDeadline;
    while (!done()) {
      if (now_ns() > end) {
        return false;
      }
      pump_once();
      ::sched_yield();
    }
    return true;
  }
  void send(Running& running, Kind kind, uint64_t page = 0, uint64_t value = 0) {
    const Command command{kind, page * kPageBytes, value};
    ASSERT_EQ(::send(running.program->control(), &command, sizeof command, MSG_NOSIGNAL),
              static_cast<ssize_t>(sizeof command));
  }
  bool has_answer(Running& running) {
    pollfd poll{running.program->control(), POLLIN, 0};
    return ::poll(&poll, 1, 0) == 1;
  }
  Answer answer(Running& running) {
    Answer got;
    got.error = -1;
    EXPECT_TRUE(pump_until([&] { return has_answer(running); })) << "no answer";
    if (has_answer(running)) {
      EXPECT_EQ(::recv(running.program->control(), &got, sizeof got, 0), static_cast<ssize_t>(sizeof got));
    }
    return got;
  }
  Answer ask(Running& running, Kind kind, uint64_t page = 0, uint64_t value = 0) {
    send(running, kind, page, value);
    return answer(running);
  }
  // Waits for a fault that needs the directory.
  Pager::Fault fault() {
    EXPECT_TRUE(pump_until([&] { return !sink_.faults.empty(); })) << "no fault";
    if (sink_.faults.empty()) {
      return {};
    }
    const Pager::Fault first = sink_.faults.front();
    sink_.faults.pop_front();
    return first;
  }
  void install(uint64_t page, Access access, uint64_t word, uint64_t pages = 1) {
    const auto bytes = filled(pages, word);
    pager_->install(kSegment, page, pages == 64 ? ~uint64_t{0} : (uint64_t{1} << pages) - 1, access, bytes);
  }
  std::vector<std::byte> taken(uint64_t page) {
    std::vector<std::byte> out(kPageBytes);
    pager_->take(kSegment, page, 1, out);
    return out;
  }
  std::vector<std::byte> bytes_of(uint64_t page) {
    std::vector<std::byte> out(kPageBytes);
    pager_->read(kSegment, page, 1, out);
    return out;
  }
  // Reaches the state "running has the page writable".
  void make_writable(Running& running, uint64_t page, uint64_t word) {
    send(running, Kind::kAdd, page, 0);
    const Pager::Fault wanted = fault();
    EXPECT_EQ(wanted.want, Access::kWrite);
    install(page, Access::kWrite, word);
    EXPECT_EQ(answer(running).signal, 0);
  }

  int copies_to_fail_ = 0;
  Recorder sink_;
  std::unique_ptr<Pager> pager_;
  int memfd_ = -1;
  std::deque<Running> programs_;
};

TEST_P(PagerTest, AReadFaultIsAnsweredByInstallAndAWriteByUpgrade) {
  Running& p = start();
  send(p, Kind::kLoad, 3);
  const Pager::Fault read = fault();
  EXPECT_EQ(read.page, 3u);
  EXPECT_EQ(read.want, Access::kRead);
  EXPECT_EQ(read.mm, p.mm);
  install(3, Access::kRead, 41);
  EXPECT_EQ(answer(p).value, 41u);
  EXPECT_EQ(ask(p, Kind::kLoad, 3).value, 41u);
  send(p, Kind::kAdd, 3, 1);
  EXPECT_EQ(fault().want, Access::kWrite);
  pager_->upgrade(kSegment, 3);
  answer(p);
  EXPECT_EQ(word_of(bytes_of(3)), 42u);
  EXPECT_EQ(pager_->access(kSegment, 3), Access::kWrite);
}

TEST_P(PagerTest, ATakenPageHasItsFinalBytesAndFaultsAgain) {
  Running& p = start();
  make_writable(p, 0, 10);
  ask(p, Kind::kAdd, 0, 5);
  EXPECT_EQ(word_of(taken(0)), 15u);
  EXPECT_EQ(pager_->access(kSegment, 0), Access::kNone);
  send(p, Kind::kAdd, 0, 1);
  EXPECT_EQ(fault().want, Access::kWrite);
  install(0, Access::kWrite, 15);
  answer(p);
  EXPECT_EQ(word_of(taken(0)), 16u);
}

TEST_P(PagerTest, ADowngradedPageIsReadableAndFaultsOnWriteInEveryProgram) {
  Running& a = start();
  Running& b = start();
  make_writable(a, 1, 7);
  ask(b, Kind::kAdd, 1, 1);  // the node may write: resolved here
  EXPECT_TRUE(sink_.faults.empty());
  pager_->downgrade(kSegment, 1, 1);
  EXPECT_EQ(word_of(bytes_of(1)), 8u);
  EXPECT_EQ(ask(a, Kind::kLoad, 1).value, 8u);
  EXPECT_EQ(ask(b, Kind::kLoad, 1).value, 8u);
  send(a, Kind::kAdd, 1, 1);
  EXPECT_EQ(fault().want, Access::kWrite);
  send(b, Kind::kAdd, 1, 1);
  EXPECT_EQ(fault().want, Access::kWrite);
  EXPECT_EQ(word_of(bytes_of(1)), 8u);
  pager_->upgrade(kSegment, 1);
  answer(a);
  answer(b);
  EXPECT_EQ(word_of(taken(1)), 10u);
}

TEST_P(PagerTest, ADroppedReadCopyCannotBeReadAnyMore) {
  Running& a = start();
  Running& b = start();
  send(a, Kind::kLoad, 2);
  fault();
  install(2, Access::kRead, 1);
  answer(a);
  EXPECT_EQ(ask(b, Kind::kLoad, 2).value, 1u);
  pager_->drop_copy(kSegment, 2, 1);
  send(a, Kind::kLoad, 2);
  send(b, Kind::kLoad, 2);
  fault();
  fault();
  install(2, Access::kRead, 2);
  EXPECT_EQ(answer(a).value, 2u);
  EXPECT_EQ(answer(b).value, 2u);
}

TEST_P(PagerTest, ZeroPagesAreInstalledWithoutBytes) {
  Running& p = start();
  send(p, Kind::kAdd, 5, 9);
  fault();
  pager_->install(kSegment, 5, 1, Access::kWrite, {});
  answer(p);
  EXPECT_EQ(word_of(bytes_of(5)), 9u);
}

TEST_P(PagerTest, OneInstallServesAReaderForManyPages) {
  Running& p = start();
  send(p, Kind::kLoad, 64);
  fault();
  install(64, Access::kRead, 100, 64);
  EXPECT_EQ(answer(p).value, 100u);
  for (uint64_t i = 1; i < 64; ++i) {
    EXPECT_EQ(ask(p, Kind::kLoad, 64 + i).value, 100 + i);
  }
  EXPECT_EQ(sink_.local, 0);
  send(p, Kind::kAdd, 70, 1);  // mapped ahead, but not writable
  EXPECT_EQ(fault().page, 70u);
}

TEST_P(PagerTest, PagesFetchedAheadShowTheReadersArrivalByOneLocalFault) {
  Running& p = start();
  send(p, Kind::kLoad, 0);
  fault();
  install(0, Access::kRead, 5);
  answer(p);
  install(1, Access::kRead, 20, 8);
  for (uint64_t i = 0; i < 8; ++i) {
    EXPECT_EQ(ask(p, Kind::kLoad, 1 + i).value, 20 + i);
  }
  EXPECT_TRUE(sink_.faults.empty());
  EXPECT_EQ(sink_.local, GetParam() ? 0 : 1);  // the old column has no event for a present frame
}

TEST_P(PagerTest, MasksWithGapsInstallAndTakeTheRightPages) {
  Running& p = start();
  send(p, Kind::kLoad, 10);
  fault();
  const auto bytes = filled(3, 70);
  pager_->install(kSegment, 10, 0b100101, Access::kWrite, bytes);
  EXPECT_EQ(answer(p).value, 70u);
  EXPECT_EQ(ask(p, Kind::kLoad, 12).value, 71u);
  EXPECT_EQ(ask(p, Kind::kLoad, 15).value, 72u);
  EXPECT_EQ(pager_->access(kSegment, 11), Access::kNone);
  std::vector<std::byte> out(3 * kPageBytes);
  pager_->take(kSegment, 10, 0b100101, out);
  EXPECT_EQ(out, bytes);
  EXPECT_EQ(pager_->access(kSegment, 15), Access::kNone);
}

TEST_P(PagerTest, AForkedChildIsServedAndCannotWriteADowngradedPage) {
  Running& p = start();
  make_writable(p, 0, 1);
  EXPECT_NE(ask(p, Kind::kBecomeChild).value, 0u);
  ASSERT_EQ(sink_.forks.size(), 1u);
  EXPECT_EQ(sink_.forks[0].first, p.mm);
  EXPECT_TRUE(pager_->alive(sink_.forks[0].second));
  ask(p, Kind::kAdd, 0, 1);  // the child, through the PTE that it inherited
  EXPECT_TRUE(sink_.faults.empty());
  pager_->downgrade(kSegment, 0, 1);
  EXPECT_EQ(word_of(bytes_of(0)), 2u);
  send(p, Kind::kAdd, 0, 1);
  const Pager::Fault wanted = fault();
  EXPECT_EQ(wanted.mm, sink_.forks[0].second);
  EXPECT_EQ(word_of(bytes_of(0)), 2u);
  pager_->upgrade(kSegment, 0);
  answer(p);
  EXPECT_EQ(word_of(taken(0)), 3u);
  send(p, Kind::kLoad, 9);
  EXPECT_EQ(fault().page, 9u);
  install(9, Access::kRead, 9);
  EXPECT_EQ(answer(p).value, 9u);
}

TEST_P(PagerTest, AForkThatIsPendingWhileAPageIsDowngradedGivesTheChildNoWritablePage) {
  Running& p = start();
  make_writable(p, 0, 1);
  send(p, Kind::kBecomeChild);  // nobody reads the event: the parent sleeps in fork
  pollfd poll{pager_->uffd_of(p.mm), POLLIN, 0};
  ASSERT_EQ(::poll(&poll, 1, 10'000), 1);
  pager_->downgrade(kSegment, 0, 1);  // meets EAGAIN, finds the child
  const auto before = word_of(bytes_of(0));
  answer(p);
  send(p, Kind::kAdd, 0, 1);
  EXPECT_EQ(fault().want, Access::kWrite);
  EXPECT_EQ(word_of(bytes_of(0)), before);
}

TEST_P(PagerTest, AChildThatEndsLeavesItsParentServed) {
  Running& p = start();
  make_writable(p, 0, 1);
  Running& q = start();
  ask(q, Kind::kBecomeChild);
  ask(q, Kind::kAdd, 0, 1);
  const MmId child = sink_.forks.at(0).second;
  send(q, Kind::kExit, 0, 0);
  int status = 0;
  EXPECT_TRUE(pump_until([&] { return q.program->ended(&status); }));
  EXPECT_FALSE(pager_->alive(child));
  pager_->drop(child);
  ask(p, Kind::kAdd, 0, 1);
  EXPECT_EQ(word_of(taken(0)), 3u);
}

TEST_P(PagerTest, AProgramKilledInAnyStateLeavesTheOthersServed) {
  Running& other = start();
  for (int state = 0; state < 4; ++state) {
    Running& p = start();
    const auto page = static_cast<uint64_t>(20 + state);
    if (state == 0) {  // waiting for a page
      send(p, Kind::kAdd, page, 1);
      fault();
    } else if (state == 1) {
      make_writable(p, page, 50);
    } else if (state == 2) {
      make_writable(p, page, 50);
      pager_->downgrade(kSegment, page, 1);
    } else {  // an event that nobody has read
      send(p, Kind::kAdd, page, 1);
      pollfd poll{pager_->uffd_of(p.mm), POLLIN, 0};
      ASSERT_EQ(::poll(&poll, 1, 10'000), 1);
    }
    p.program->kill();
    p.program->reap();
    if (state == 0 || state == 3) {
      install(page, Access::kWrite, 50);  // the grant comes when the program is gone
    } else if (state == 2) {
      pager_->upgrade(kSegment, page);
    }
    EXPECT_FALSE(pager_->alive(p.mm));
    EXPECT_EQ(ask(other, Kind::kLoad, page).value, 50u);
    ask(other, Kind::kAdd, page, 1);
    EXPECT_EQ(word_of(taken(page)), 51u);
    pager_->drop(p.mm);
    EXPECT_EQ(pager_->uffd_of(p.mm), -1);
  }
}

TEST_P(PagerTest, UnmappingAPartIsReportedAndTheRestGoesOn) {
  Running& p = start();
  make_writable(p, 0, 1);
  make_writable(p, 9, 1);
  EXPECT_EQ(ask(p, Kind::kUnmap, 4, 2 * kPageBytes).error, 0);
  ASSERT_EQ(sink_.unmapped.size(), 1u);
  EXPECT_EQ(sink_.unmapped[0].first, p.program->address() + 4 * kPageBytes);
  EXPECT_EQ(sink_.unmapped[0].second, 2 * kPageBytes);
  pager_->downgrade(kSegment, 0, 1);
  pager_->downgrade(kSegment, 9, 1);
  send(p, Kind::kAdd, 9, 1);
  EXPECT_EQ(fault().page, 9u);
  pager_->upgrade(kSegment, 9);
  answer(p);
  send(p, Kind::kAdd, 0, 1);
  EXPECT_EQ(fault().page, 0u);
}

TEST_P(PagerTest, AMovedMappingIsServedAtItsNewPlace) {
  Running& p = start();
  make_writable(p, 6, 30);
  EXPECT_EQ(ask(p, Kind::kMove, 0, kPages * kPageBytes).error, 0);
  EXPECT_EQ(ask(p, Kind::kLoad, 6).value, 30u);
  pager_->downgrade(kSegment, 6, 1);
  send(p, Kind::kAdd, 6, 1);
  EXPECT_EQ(fault().page, 6u);
  pager_->upgrade(kSegment, 6);
  answer(p);
  EXPECT_EQ(word_of(taken(6)), 31u);
  send(p, Kind::kLoad, 8);
  EXPECT_EQ(fault().page, 8u);
}

TEST_P(PagerTest, AReadOnlyMappingReads) {
  Program::Options options;
  options.protection = PROT_READ;
  Running& reader = start(options);
  Running& writer = start();
  make_writable(writer, 0, 1);
  EXPECT_EQ(ask(reader, Kind::kLoad, 0).value, 1u);
  taken(0);
  send(reader, Kind::kLoad, 0);
  EXPECT_EQ(fault().want, Access::kRead);
  install(0, Access::kRead, 2);
  EXPECT_EQ(answer(reader).value, 2u);
}

TEST_P(PagerTest, AProgramOfAnotherUserIsServedInsideSystemCallsToo) {
  Program::Options options;
  options.uid = 65534;
  Running& p = start(options);
  send(p, Kind::kKernelStore, 2, 77);
  EXPECT_EQ(fault().want, Access::kWrite);
  install(2, Access::kWrite, 1);
  EXPECT_EQ(answer(p).error, 0);
  EXPECT_EQ(word_of(taken(2)), 77u);
  EXPECT_NE(ask(p, Kind::kBecomeChild).value, 0u);
  send(p, Kind::kLoad, 2);
  EXPECT_EQ(fault().want, Access::kRead);
  install(2, Access::kRead, 3);
  EXPECT_EQ(answer(p).value, 3u);
}

TEST_P(PagerTest, AnAttachOverAnotherIsRefused) {
  const auto body = [](std::byte* memory, int) {
    auto* const word = reinterpret_cast<volatile uint64_t*>(memory);
    return static_cast<int>(*word);
  };
  Program program(pager_->userfaultfd_device(), memfd_, kPages * kPageBytes, {}, body);
  const MmId mm = pager_->adopt(program.take_uffd()).value();
  const uint64_t half = kPages / 2 * kPageBytes;
  EXPECT_TRUE(pager_->attach(mm, kSegment, program.address(), half).has_value());
  const auto again = pager_->attach(mm, kSegment, program.address() + half - kPageBytes, half);
  ASSERT_FALSE(again.has_value());
  EXPECT_EQ(again.error().code, Errc::kExists);
  program.go();
  fault();
  install(0, Access::kRead, 5);
  int status = 0;
  EXPECT_TRUE(pump_until([&] { return program.ended(&status); }));
  EXPECT_EQ(WEXITSTATUS(status), 5);
}

TEST_P(PagerTest, ALostPageGivesSigbusNowAndLater) {
  Running& a = start();
  Running& b = start();
  send(a, Kind::kLoad, 4);
  fault();
  pager_->poison(kSegment, 4);
  EXPECT_EQ(answer(a).signal, SIGBUS);
  EXPECT_EQ(ask(b, Kind::kAdd, 4, 1).signal, SIGBUS);
  EXPECT_EQ(ask(a, Kind::kLoad, 4).signal, SIGBUS);
  make_writable(a, 5, 6);
  pager_->poison(kSegment, 5);
  EXPECT_EQ(ask(a, Kind::kLoad, 5).signal, SIGBUS);
  make_writable(b, 6, 8);
}

TEST_P(PagerTest, WithoutMemoryAProgramWaitsAndNothingIsLost) {
  Running& p = start();
  copies_to_fail_ = 2;
  send(p, Kind::kAdd, 0, 1);
  fault();
  install(0, Access::kWrite, 10);
  EXPECT_TRUE(pager_->has_kept());
  pump_once();
  EXPECT_FALSE(has_answer(p));
  EXPECT_EQ(word_of(bytes_of(0)), 10u);
  pager_->retry_kept();
  EXPECT_TRUE(pager_->has_kept());
  pager_->retry_kept();
  EXPECT_FALSE(pager_->has_kept());
  answer(p);
  EXPECT_EQ(word_of(taken(0)), 11u);
  copies_to_fail_ = 1;
  send(p, Kind::kAdd, 0, 1);
  fault();
  install(0, Access::kWrite, 11);
  EXPECT_EQ(word_of(taken(0)), 11u);  // taken away while it waits for memory
  EXPECT_FALSE(pager_->has_kept());
  install(0, Access::kWrite, 12);
  answer(p);
  EXPECT_EQ(word_of(bytes_of(0)), 13u);
}

TEST_P(PagerTest, WithoutMemoryForMorePagesThanTheReserveHoldsNothingIsLost) {
  constexpr SegmentId kOther{77};
  constexpr uint64_t kMany = 320;
  ASSERT_TRUE(pager_->open_segment(kOther, kMany));
  copies_to_fail_ = static_cast<int>(kMany);
  for (uint64_t page = 0; page < kMany; ++page) {
    pager_->install(kOther, page, 1, Access::kWrite, filled(1, 1000 + page));
  }
  EXPECT_EQ(copies_to_fail_, 0);
  std::vector<std::byte> out(kPageBytes);
  for (uint64_t page = 0; page < kMany; page += 2) {
    pager_->take(kOther, page, 1, out);
    EXPECT_EQ(word_of(out), 1000 + page);
  }
  EXPECT_TRUE(pager_->has_kept());
  pager_->retry_kept();
  EXPECT_FALSE(pager_->has_kept());
  for (uint64_t page = 1; page < kMany; page += 2) {
    pager_->read(kOther, page, 1, out);
    EXPECT_EQ(word_of(out), 1000 + page);
  }
  pager_->destroy_segment(kOther);
}

TEST_P(PagerTest, DontNeedLosesNothingAndRemoveGivesZeroes) {
  Running& p = start();
  make_writable(p, 0, 5);
  EXPECT_EQ(ask(p, Kind::kDontNeed, 0).error, 0);
  EXPECT_EQ(ask(p, Kind::kLoad, 0).value, 5u);
  ask(p, Kind::kAdd, 0, 1);
  EXPECT_EQ(ask(p, Kind::kRemove, 0).error, 0);
  EXPECT_EQ(ask(p, Kind::kLoad, 0).value, 0u);
  ask(p, Kind::kAdd, 0, 3);
  EXPECT_EQ(word_of(taken(0)), 3u);
  make_writable(p, 1, 5);
  EXPECT_EQ(ask(p, Kind::kRemove, 1).error, 0);
  ask(p, Kind::kAdd, 1, 2);
  EXPECT_EQ(word_of(taken(1)), 2u);
}

TEST_P(PagerTest, AFrameThatAProgramWroteThroughTheFileIsReplacedByTheTrueOne) {
  Running& p = start();
  send(p, Kind::kLoad, 3);
  fault();
  const uint64_t junk = 666;
  ASSERT_EQ(::pwrite(memfd_, &junk, 8, 3 * kPageBytes), 8);
  install(3, Access::kRead, 1);
  EXPECT_EQ(answer(p).value, 1u);
  EXPECT_GE(pager_->counters().rivals, 1u);
}

TEST_P(PagerTest, FramesFromBeforeTheAttachAreNotTrusted) {
  const uint64_t junk = 999;
  ASSERT_EQ(::pwrite(memfd_, &junk, 8, 0), 8);
  Running& p = start();
  send(p, Kind::kLoad, 0);
  fault();
  install(0, Access::kRead, 1);
  EXPECT_EQ(answer(p).value, 1u);
  EXPECT_EQ(pager_->counters().rivals, 0u);
}

TEST_P(PagerTest, MoreProgramsThanWriterBitsAreAllProtected) {
  constexpr int kMany = 70;
  for (int i = 0; i < kMany; ++i) {
    start();
  }
  make_writable(programs_[0], 0, 0);
  for (Running& p : programs_) {
    ask(p, Kind::kAdd, 0, 1);
  }
  pager_->downgrade(kSegment, 0, 1);
  for (Running& p : programs_) {
    send(p, Kind::kAdd, 0, 1);
  }
  EXPECT_TRUE(pump_until([&] { return sink_.faults.size() >= kMany; }));
  EXPECT_EQ(word_of(bytes_of(0)), static_cast<uint64_t>(kMany));
  pager_->upgrade(kSegment, 0);
  for (Running& p : programs_) {
    answer(p);
  }
  EXPECT_EQ(word_of(taken(0)), 2 * static_cast<uint64_t>(kMany));
}

TEST_P(PagerTest, ASegmentLargerThanMemoryOpensAndASealedOneCannotBeSpoiled) {
  EXPECT_TRUE(pager_->open_segment(SegmentId(8), uint64_t{1} << 34).has_value());
  const auto impossible = pager_->open_segment(SegmentId(9), kPagesMax + 1);
  ASSERT_FALSE(impossible.has_value());
  EXPECT_EQ(impossible.error().code, Errc::kInvalid);
  EXPECT_EQ(::ftruncate(memfd_, 0), -1);
  EXPECT_EQ(::fcntl(memfd_, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
}

TEST_P(PagerTest, FramesMayComeBeforeAnyProgramOpensTheSegment) {
  constexpr SegmentId kEarly{12};
  const auto bytes = filled(2, 80);
  pager_->install(kEarly, 600, 3, Access::kRead, bytes);
  pager_->install(kEarly, 1, 1, Access::kWrite, {});
  const auto fd = pager_->open_segment(kEarly, 700);
  ASSERT_TRUE(fd.has_value());
  EXPECT_EQ(::lseek(*fd, 0, SEEK_END), static_cast<off_t>(700 * kPageBytes));
  std::vector<std::byte> out(2 * kPageBytes);
  pager_->read(kEarly, 600, 3, out);
  EXPECT_EQ(out, bytes);
  pager_->install(kEarly, 700, 1, Access::kRead, filled(1, 1));  // past the end: ignored
  EXPECT_EQ(pager_->access(kEarly, 700), Access::kNone);
}

TEST_P(PagerTest, AnAccessToADestroyedSegmentEndsInSigbusNotInAHang) {
  Running& p = start();
  make_writable(p, 0, 1);
  send(p, Kind::kLoad, 1);
  fault();
  pager_->destroy_segment(kSegment);
  if (!pager_->features().poison) {
    return;  // the thread sleeps until it is killed; see report_fault
  }
  EXPECT_EQ(answer(p).signal, SIGBUS);
  EXPECT_EQ(ask(p, Kind::kLoad, 0).signal, SIGBUS);
}

INSTANTIATE_TEST_SUITE_P(Columns, PagerTest, ::testing::Values(false, true),
                         [](const auto& column) { return column.param ? "OldKernel" : "NewKernel"; });

}  // namespace
}  // namespace kevre::dsm
