// EventLoop: the one loop of a node. It owns nothing that it watches. Every handler runs on the thread that calls
// run(); only post() and stop() may be called from other threads.
//
// A turn: progress every poller, run due timers and posted calls, then look at epoll. After work the loop spins for
// a bounded time (spin_ns), yielding its CPU to whoever wants it, and then sleeps: a poller is armed first, and arm()
// == false means "progress again". That order excludes the lost wake-up: whatever arrives after a successful arm() makes wake_fd() readable.
//
// Removing a descriptor inside a handler is safe, also one whose event is already fetched in this turn: handlers are
// found by registration number, not by pointer.
// Tested in tests/base/event_loop_test.cc.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"

namespace kevre {

// Something that must be driven rather than waited for (a transport).
class Poller {
 public:
  virtual ~Poller() = default;
  virtual int progress() = 0;       // units of work done; 0 = nothing to do
  virtual bool arm() = 0;           // true: wake_fd() becomes readable at the next event; false: call progress() again
  virtual int wake_fd() const = 0;  // stays the same for the poller's life
};

class EventLoop {
 public:
  using FdHandler = std::function<void(uint32_t epoll_events)>;
  using Call = std::function<void()>;
  using TimerId = uint64_t;

  static Result<std::unique_ptr<EventLoop>> create();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // One registration per descriptor; the caller keeps the descriptor open until remove().
  Result<void> add(int fd, uint32_t epoll_events, FdHandler handler);
  void modify(int fd, uint32_t epoll_events);
  void remove(int fd);

  TimerId after(Nanos delay_ns, Call call);
  void cancel(TimerId id);  // unknown or past ids are ignored

  Result<void> add_poller(Poller* poller);
  void remove_poller(Poller* poller);

  void post(Call call);  // any thread; runs in the next turn

  void set_spin(Nanos spin_ns) { spin_ns_ = spin_ns; }

  void run();  // until stop()
  void stop();  // any thread
  // One turn, sleeping at most `timeout_ns` (0: not at all). Returns the units of work done.
  int turn(Nanos timeout_ns);

 private:
  EventLoop() = default;
  int turn(Nanos timeout_ns, bool sleep_after_work);
  int run_due_timers();
  int run_posted();
  int wait_and_dispatch(Nanos timeout_ns);

  struct Watch {
    int fd = -1;
    std::shared_ptr<FdHandler> handler;
  };
  UniqueFd epoll_;
  UniqueFd wake_;  // eventfd for post() and stop()
  uint64_t next_watch_ = 1;
  std::unordered_map<uint64_t, Watch> watches_;  // by registration number, which epoll carries
  std::unordered_map<int, uint64_t> watch_of_fd_;
  std::multimap<Nanos, std::pair<TimerId, Call>> timers_;
  std::unordered_map<TimerId, Nanos> timer_due_;
  TimerId next_timer_ = 1;
  std::vector<Poller*> pollers_;
  Nanos spin_ns_ = 0;
  Nanos last_work_ns_ = 0;
  std::mutex posted_mutex_;
  std::vector<Call> posted_;
  std::atomic<bool> has_posted_{false};
  std::atomic<bool> stop_{false};
};

}  // namespace kevre
