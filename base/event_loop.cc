#include "base/event_loop.h"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/clock.h"

namespace kevre {
namespace {
constexpr uint64_t kWakeNumber = 0;
constexpr int kEventsPerTurn = 64;
}  // namespace

Result<std::unique_ptr<EventLoop>> EventLoop::create() {
  std::unique_ptr<EventLoop> loop(new EventLoop);
  loop->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  loop->wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!loop->epoll_ || !loop->wake_) {
    return fail_errno("epoll_create1 or eventfd (raise the limit of open files)");
  }
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeNumber;
  if (::epoll_ctl(loop->epoll_.get(), EPOLL_CTL_ADD, loop->wake_.get(), &event) != 0) {
    return fail_errno("epoll_ctl");
  }
  return loop;
}

EventLoop::~EventLoop() = default;

Result<void> EventLoop::add(int fd, uint32_t epoll_events, FdHandler handler) {
  KEVRE_CHECK(!watch_of_fd_.contains(fd), "fd {} is watched already", fd);
  const uint64_t number = next_watch_++;
  epoll_event event{};
  event.events = epoll_events;
  event.data.u64 = number;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return fail_errno("epoll_ctl add fd {}", fd);
  }
  watches_.emplace(number, Watch{fd, std::make_shared<FdHandler>(std::move(handler))});
  watch_of_fd_.emplace(fd, number);
  return {};
}

void EventLoop::modify(int fd, uint32_t epoll_events) {
  const auto found = watch_of_fd_.find(fd);
  KEVRE_CHECK(found != watch_of_fd_.end(), "fd {} is not watched", fd);
  epoll_event event{};
  event.events = epoll_events;
  event.data.u64 = found->second;
  KEVRE_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0, "fd {} errno {}", fd, errno);
}

void EventLoop::remove(int fd) {
  const auto found = watch_of_fd_.find(fd);
  if (found == watch_of_fd_.end()) {
    return;
  }
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  watches_.erase(found->second);
  watch_of_fd_.erase(found);
}

EventLoop::TimerId EventLoop::after(Nanos delay_ns, Call call) {
  const TimerId id = next_timer_++;
  const Nanos due = now_ns() + std::max<Nanos>(delay_ns, 0);
  timers_.emplace(due, std::pair{id, std::move(call)});
  timer_due_.emplace(id, due);
  return id;
}

void EventLoop::cancel(TimerId id) {
  const auto due = timer_due_.find(id);
  if (due == timer_due_.end()) {
    return;
  }
  auto [first, last] = timers_.equal_range(due->second);
  for (auto i = first; i != last; ++i) {
    if (i->second.first == id) {
      timers_.erase(i);
      break;
    }
  }
  timer_due_.erase(due);
}

Result<void> EventLoop::add_poller(Poller* poller) {
  // The wake descriptor only ends a sleep; the work itself is done by progress() in the next turn.
  KEVRE_TRY(add(poller->wake_fd(), EPOLLIN, nullptr));
  pollers_.push_back(poller);
  return {};
}

void EventLoop::remove_poller(Poller* poller) {
  std::erase(pollers_, poller);
  remove(poller->wake_fd());
}

void EventLoop::post(Call call) {
  {
    const std::lock_guard lock(posted_mutex_);
    posted_.push_back(std::move(call));
  }
  has_posted_.store(true, std::memory_order_release);
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
}

void EventLoop::stop() {
  stop_.store(true, std::memory_order_release);
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
}

int EventLoop::run_posted() {
  if (!has_posted_.exchange(false, std::memory_order_acq_rel)) {
    return 0;
  }
  std::vector<Call> calls;
  {
    const std::lock_guard lock(posted_mutex_);
    calls.swap(posted_);
  }
  for (Call& call : calls) {
    call();
  }
  return static_cast<int>(calls.size());
}

int EventLoop::run_due_timers() {
  if (timers_.empty() || timers_.begin()->first > now_ns()) {
    return 0;
  }
  // Only those due at entry, so that a timer that sets itself again with no delay cannot starve the rest.
  const Nanos now = now_ns();
  const TimerId newest = next_timer_;
  int done = 0;
  for (auto i = timers_.begin(); i != timers_.end() && i->first <= now; i = timers_.begin()) {
    if (i->second.first >= newest) {
      break;
    }
    Call call = std::move(i->second.second);
    timer_due_.erase(i->second.first);
    timers_.erase(i);
    call();
    ++done;
  }
  return done;
}

int EventLoop::wait_and_dispatch(Nanos timeout_ns) {
  std::array<epoll_event, kEventsPerTurn> events;
  timespec timeout{timeout_ns / kSecond, timeout_ns % kSecond};
  int count = ::epoll_pwait2(epoll_.get(), events.data(), kEventsPerTurn, timeout_ns < 0 ? nullptr : &timeout, nullptr);
  if (count < 0) {
    KEVRE_CHECK(errno == EINTR, "epoll_pwait2 errno {}", errno);
    return 0;
  }
  int done = 0;
  for (int i = 0; i < count; ++i) {
    const uint64_t number = events[static_cast<size_t>(i)].data.u64;
    if (number == kWakeNumber) {
      uint64_t value = 0;
      [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &value, sizeof value);
      continue;
    }
    const auto watch = watches_.find(number);
    if (watch == watches_.end()) {
      continue;  // removed by an earlier handler of this turn
    }
    const std::shared_ptr<FdHandler> handler = watch->second.handler;  // it may remove itself
    if (!*handler) {
      continue;  // a poller's wake descriptor: not work in itself, or a spinning loop would never sleep
    }
    (*handler)(events[static_cast<size_t>(i)].events);
    ++done;
  }
  return done;
}

int EventLoop::turn(Nanos timeout_ns) { return turn(timeout_ns, false); }

int EventLoop::turn(Nanos timeout_ns, bool sleep_after_work) {
  int done = 0;
  for (size_t i = 0; i < pollers_.size(); ++i) {
    done += pollers_[i]->progress();
  }
  done += run_due_timers();
  done += run_posted();
  if (done > 0) {
    // Whoever sleeps at once needs no look at what else there is: arm() and epoll say so. A program that waits for what
    // was just done gets this CPU two system calls earlier.
    timeout_ns = sleep_after_work && spin_ns_ == 0 ? timeout_ns : 0;
  } else if (timeout_ns != 0 && spin_ns_ > 0 && now_ns() - last_work_ns_ < spin_ns_) {
    timeout_ns = 0;
    ::sched_yield();  // a spinner keeps nobody waiting who shares its CPU: the program above all
  }
  if (timeout_ns != 0) {
    for (Poller* poller : pollers_) {
      if (!poller->arm()) {
        timeout_ns = 0;
        break;
      }
    }
  }
  if (timeout_ns != 0 && !timers_.empty()) {
    const Nanos until = std::max<Nanos>(timers_.begin()->first - now_ns(), 0);
    timeout_ns = timeout_ns < 0 ? until : std::min(timeout_ns, until);
  }
  done += wait_and_dispatch(timeout_ns);
  if (done > 0) {
    last_work_ns_ = now_ns();
  }
  return done;
}

void EventLoop::run() {
  while (!stop_.load(std::memory_order_acquire)) {
    turn(-1, true);
  }
  stop_.store(false, std::memory_order_release);
}

}  // namespace kevre
