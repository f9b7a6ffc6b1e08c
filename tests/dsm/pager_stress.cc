// The page state machine under load: programs with two threads each work on a few pages by every kind of
// access that an unmodified program makes, while an imagined remote node takes, reads and writes the pages;
// at the end every single increment must be there. Some programs are killed at random moments and replaced.
// Both columns (new and old kernel).
//   pager_stress SECONDS      default 2 per case; prints one line per case; exit 1 when anything was lost
#include <linux/futex.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstdlib>
#include <deque>
#include <thread>

#include "base/clock.h"
#include "base/random.h"
#include "dsm/pager.h"
#include "tests/dsm/program.h"

namespace kevre::dsm {
namespace {

using test::Program;

// Pages: 0 mutex, 1 counter under it, 2 shared words, 3 (with 2) a word across both, 4 written by system
// calls, 5 never written
constexpr uint64_t kPages = 6;
constexpr SegmentId kSegment{3};
constexpr int kThreads = 2;
constexpr int kPrograms = 3;
constexpr size_t kSlots = 24;  // threads alive at any time have one each
constexpr uint64_t kConstant = 0x1234567890;

struct Tally {  // outside the segment; one per thread slot, so nothing here contends
  std::atomic<uint64_t> shared, across, locked, own, kernel, begun;
};
struct Control {
  std::atomic<bool> stop;
  std::atomic<uint64_t> read_only_changed, futex_efault;
  std::array<Tally, kSlots> tallies;
};

std::byte* at(std::byte* memory, uint64_t page, uint64_t offset) {
  return memory + page * kPageBytes + offset;
}
volatile uint64_t& word(std::byte* memory, uint64_t page, uint64_t offset) {
  return *reinterpret_cast<volatile uint64_t*>(at(memory, page, offset));
}

// A futex mutex in the segment. A punch makes futex() fail with EFAULT now and then: tried again.
void futex(Control* control, std::atomic<int>* lock, int operation, int value) {
  while (::syscall(SYS_futex, lock, operation, value, nullptr, nullptr, 0) < 0 && errno == EFAULT) {
    ++control->futex_efault;
  }
}
void lock_mutex(Control* control, std::atomic<int>* lock) {
  int expected = 0;
  if (lock->compare_exchange_strong(expected, 1)) {
    return;
  }
  while (lock->exchange(2) != 0) {
    futex(control, lock, FUTEX_WAIT, 2);
  }
}
void unlock_mutex(Control* control, std::atomic<int>* lock) {
  if (lock->exchange(0) == 2) {
    futex(control, lock, FUTEX_WAKE, 1);
  }
}

// `mortal`: may be killed, so it takes no lock, and each of its additions is announced first (begun), so that
// the one under way when it dies is known.
void work(std::byte* memory, Control* control, size_t slot, bool mortal) {
  Tally& mine = control->tallies[slot];
  auto* const lock = reinterpret_cast<std::atomic<int>*>(at(memory, 0, 256));
  int ends[2];
  KEVRE_CHECK(::pipe(ends) == 0);
  for (uint64_t n = 0; !control->stop.load(std::memory_order_relaxed); ++n) {
    mine.begun.fetch_add(1);
    test::add_atomically(at(memory, 2, 0), 1);
    mine.shared.fetch_add(1);
    if (!mortal) {
      volatile uint64_t& own = word(memory, 2, 512 + 64 * slot);
      own = own + 1;
      mine.own.fetch_add(1);
    }
    if (n % 16 == 0 && !mortal) {
      test::add_atomically(at(memory, 3, 0) - 3, 1);
      mine.across.fetch_add(1);
    }
    if (n % 8 == 3 && !mortal) {
      lock_mutex(control, lock);
      volatile uint64_t& counter = word(memory, 1, 0);
      const uint64_t seen = counter;
      if (n % 64 == 3) {
        ::sched_yield();
      }
      counter = seen + 1;
      unlock_mutex(control, lock);
      mine.locked.fetch_add(1);
    }
    if (n % 16 == 5) {
      std::byte* const place = at(memory, 4, 64 * slot);
      uint64_t value = 0;
      KEVRE_CHECK(::write(ends[1], place, 8) == 8 && ::read(ends[0], &value, 8) == 8);
      ++value;
      KEVRE_CHECK(::write(ends[1], &value, 8) == 8 && ::read(ends[0], place, 8) == 8);
      mine.kernel.fetch_add(1);
    }
    if (n % 4 == 1 && word(memory, 5, 0) != kConstant) {
      ++control->read_only_changed;
    }
  }
}

class Stress : public Pager::Sink {
 public:
  Stress(bool old_kernel, uint64_t seed) : random_(seed) {
    Pager::Options options;
    options.old_kernel = old_kernel;
    auto made = Pager::create(this, options);
    if (!made) {
      fmt::print("kevre: test skipped: {}\n", made.error().text);
      std::exit(0);
    }
    pager_ = std::move(*made);
    memfd_ = pager_->open_segment(kSegment, kPages).value();
    std::memcpy(remote(5).data(), &kConstant, 8);
    void* const shared =
        ::mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    KEVRE_CHECK(shared != MAP_FAILED);
    control_ = new (shared) Control();
  }

  bool run(Nanos time, bool kill) {
    for (int i = 0; i < kPrograms; ++i) {
      start(static_cast<size_t>(i) * kThreads, false);
    }
    const size_t mortal_slot = kPrograms * kThreads;
    if (kill) {
      start(mortal_slot, true);
    }
    const Nanos end = now_ns() + time;
    Nanos next_kill = now_ns();
    while (now_ns() < end) {
      serve();
      act();
      if (kill && now_ns() > next_kill) {
        next_kill = now_ns() + static_cast<Nanos>(random_.below(20'000'000));
        Running& victim = programs_.back();
        victim.program->kill();
        victim.program->reap();
        pager_->drop(victim.mm);
        programs_.pop_back();
        ++kills_;
        forgive_slot(mortal_slot);
        start(mortal_slot, true);
      }
    }
    control_->stop = true;
    bool rest = finish();
    return check() && rest;
  }

  void on_fault(const Pager::Fault& fault) override {
    ++faults_;
    if (pager_->resolve_locally(fault)) {
      return;
    }
    if (pager_->access(kSegment, fault.page) == Access::kRead) {
      pager_->upgrade(kSegment, fault.page);
    } else {
      pager_->install(kSegment, fault.page, 1, fault.want, remote(fault.page));
    }
  }
  void on_fork(MmId, MmId, int) override {}
  void on_unmapped(MmId, uint64_t, uint64_t) override {}

  std::string summary() const {
    const Pager::Counters& c = pager_->counters();
    return fmt::format(
        "takes {} downgrades {} drops {} faults {} xadds {} kills {} rivals {} again {} futex EFAULT {}; "
        "one take {:.1f} us, one downgrade {:.1f} us (mean)",
        c.takes, c.downgrades, c.drops, faults_, total_shared_, kills_, c.rivals, c.again,
        control_->futex_efault.load(), mean(take_ns_, c.takes), mean(downgrade_ns_, c.downgrades));
  }

 private:
  struct Running {
    std::unique_ptr<Program> program;
    MmId mm;
  };

  static double mean(Nanos total, uint64_t count) {
    return count == 0 ? 0 : static_cast<double>(total) / static_cast<double>(count) / 1e3;
  }
  std::span<std::byte> remote(uint64_t page) { return {remote_.data() + page * kPageBytes, kPageBytes}; }

  void start(size_t slot, bool mortal) {
    Control* const control = control_;
    const auto body = [control, slot, mortal](std::byte* memory, int) {
      ::setpriority(PRIO_PROCESS, 0, 0);
      std::thread other([=] { work(memory, control, slot + 1, mortal); });
      work(memory, control, slot, mortal);
      other.join();
      return 0;
    };
    Running running;
    running.program = std::make_unique<Program>(pager_->userfaultfd_device(), memfd_, kPages * kPageBytes,
                                                Program::Options{}, body);
    running.mm = pager_->adopt(running.program->take_uffd()).value();
    KEVRE_CHECK(
        pager_->attach(running.mm, kSegment, running.program->address(), kPages * kPageBytes).has_value());
    running.program->go();
    programs_.push_back(std::move(running));
  }

  void serve() {
    for (const Running& running : programs_) {
      pager_->read_events(running.mm);
    }
  }

  // The remote node wants some page: for writing (and then it writes), or for reading.
  void act() {
    const uint64_t page = random_.below(kPages);
    const Access here = pager_->access(kSegment, page);
    std::array<std::byte, kPageBytes> bytes;
    const Nanos start = now_ns();
    if (here == Access::kWrite && random_.one_in(3)) {
      pager_->downgrade(kSegment, page, 1);
      pager_->read(kSegment, page, 1, remote(page));
      downgrade_ns_ += now_ns() - start;
    } else if (here == Access::kWrite) {
      pager_->take(kSegment, page, 1, remote(page));
      take_ns_ += now_ns() - start;
      if (page == 2) {
        volatile uint64_t& mine = word(remote_.data(), 2, 256);
        mine = mine + 1;
        ++remote_additions_;
      }
    } else if (here == Access::kRead) {
      pager_->read(kSegment, page, 1, bytes);  // nobody may have changed a read copy
      read_copy_changed_ += std::memcmp(bytes.data(), remote(page).data(), kPageBytes) != 0 ? 1 : 0;
      pager_->drop_copy(kSegment, page, 1);
    }
    pager_->report_queued();
  }

  // The additions of a killed program: what it announced bounds them; its slot starts anew.
  void forgive_slot(size_t slot) {
    for (size_t i = slot; i < slot + kThreads; ++i) {
      Tally& tally = control_->tallies[i];
      dead_least_ += tally.shared.exchange(0);
      dead_most_ += tally.begun.exchange(0);
    }
  }

  bool finish() {
    const Nanos end = now_ns() + 20 * kSecond;
    for (;;) {
      bool all = true;
      for (Running& running : programs_) {
        int status = 0;
        running.program->ended(&status);
        all = all && running.program->pid() < 0;
      }
      if (all) {
        return true;
      }
      if (now_ns() > end) {
        fmt::print("  a program hangs\n");
        return false;
      }
      serve();
    }
  }

  bool same(const char* what, uint64_t got, uint64_t least, uint64_t most) {
    if (got >= least && got <= most) {
      return true;
    }
    fmt::print("  LOST or too many: {}: {} is not in {}..{}\n", what, got, least, most);
    return false;
  }

  bool check() {
    for (uint64_t page = 0; page < kPages; ++page) {
      if (pager_->access(kSegment, page) != Access::kNone) {
        pager_->read(kSegment, page, 1, remote(page));
      }
    }
    std::byte* const memory = remote_.data();
    uint64_t across = 0, locked = 0;
    bool good = true;
    for (size_t slot = 0; slot < kSlots; ++slot) {
      const Tally& tally = control_->tallies[slot];
      total_shared_ += tally.shared;
      across += tally.across;
      locked += tally.locked;
      good &= same("own word", word(memory, 2, 512 + 64 * slot), tally.own, tally.own);
      if (slot < kPrograms * kThreads) {
        good &= same("word written by system calls", word(memory, 4, 64 * slot), tally.kernel, tally.kernel);
      }
    }
    good &= same("atomic word", word(memory, 2, 0), total_shared_ + dead_least_, total_shared_ + dead_most_);
    uint64_t split = 0;
    std::memcpy(&split, at(memory, 3, 0) - 3, 8);
    good &= same("word across two pages", split, across, across);
    good &= same("counter under the mutex", word(memory, 1, 0), locked, locked);
    good &= same("remote additions", word(memory, 2, 256), remote_additions_, remote_additions_);
    good &= same("changes of the constant page", control_->read_only_changed, 0, 0);
    good &= same("changed read copies", read_copy_changed_, 0, 0);
    return good;
  }

  Random random_;
  std::unique_ptr<Pager> pager_;
  int memfd_ = -1;
  Control* control_ = nullptr;
  std::deque<Running> programs_;
  alignas(4096) std::array<std::byte, kPages * kPageBytes> remote_{};
  uint64_t faults_ = 0, kills_ = 0, total_shared_ = 0, remote_additions_ = 0, read_copy_changed_ = 0;
  uint64_t dead_least_ = 0, dead_most_ = 0;
  Nanos take_ns_ = 0, downgrade_ns_ = 0;
};

}  // namespace
}  // namespace kevre::dsm

int main(int argc, char** argv) {
  using namespace kevre;
  const Nanos time = (argc > 1 ? std::atoi(argv[1]) : 2) * kSecond;
  bool good = true;
  ::setpriority(PRIO_PROCESS, 0, -10);  // the programs never sleep: without this most turns go to them
  for (const bool old_kernel : {false, true}) {
    for (const bool kill : {false, true}) {
      dsm::Stress stress(old_kernel, 42);
      const bool fine = stress.run(time, kill);
      fmt::print("{} {}: {}: {}\n", old_kernel ? "old kernel" : "new kernel", kill ? "with kills" : "",
                 stress.summary(), fine ? "nothing lost" : "BROKEN");
      good = good && fine;
    }
  }
  return good ? 0 : 1;
}
