#include "base/event_loop.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "base/clock.h"

using kevre::EventLoop;
using kevre::UniqueFd;

namespace {
void signal_fd(int fd) {
  const uint64_t one = 1;
  ASSERT_EQ(::write(fd, &one, sizeof one), static_cast<ssize_t>(sizeof one));
}
void drain_fd(int fd) {
  uint64_t value = 0;
  [[maybe_unused]] const ssize_t got = ::read(fd, &value, sizeof value);
}
std::unique_ptr<EventLoop> make_loop() { return std::move(*EventLoop::create()); }
UniqueFd make_event(unsigned value = 0) { return UniqueFd(::eventfd(value, EFD_NONBLOCK | EFD_CLOEXEC)); }

class FakePoller : public kevre::Poller {
 public:
  int progress() override { return work-- > 0 ? 1 : (work = 0); }
  bool arm() override {
    ++arms;
    return refusals-- <= 0;
  }
  int wake_fd() const override { return event.get(); }
  UniqueFd event = make_event();
  int work = 0;
  int arms = 0;
  int refusals = 0;
};
}  // namespace

TEST(EventLoops, AHandlerRunsWhenItsDescriptorIsReadable) {
  auto loop = make_loop();
  const UniqueFd event = make_event(1);
  int calls = 0;
  ASSERT_TRUE(loop->add(event.get(), EPOLLIN, [&](uint32_t) {
    drain_fd(event.get());
    ++calls;
  }));
  loop->turn(kevre::kSecond);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(loop->turn(0), 0);
}

TEST(EventLoops, AHandlerMayRemoveAnotherWhoseEventIsFetchedAlready) {
  auto loop = make_loop();
  const UniqueFd a = make_event(1), b = make_event(1);
  int calls = 0;
  const auto handler = [&](uint32_t) {
    ++calls;
    loop->remove(a.get());
    loop->remove(b.get());
  };
  ASSERT_TRUE(loop->add(a.get(), EPOLLIN, handler));
  ASSERT_TRUE(loop->add(b.get(), EPOLLIN, handler));
  loop->turn(kevre::kSecond);
  EXPECT_EQ(calls, 1);
}

TEST(EventLoops, TimersRunInOrderAndCancelledOnesDoNot) {
  auto loop = make_loop();
  std::string order;
  loop->after(3 * kevre::kMillisecond, [&] { order += 'c'; });
  loop->after(1 * kevre::kMillisecond, [&] { order += 'a'; });
  const auto cancelled = loop->after(2 * kevre::kMillisecond, [&] { order += 'x'; });
  loop->cancel(cancelled);
  const kevre::Nanos deadline = kevre::now_ns() + 5 * kevre::kSecond;
  while (order.size() < 2 && kevre::now_ns() < deadline) {
    loop->turn(kevre::kSecond);
  }
  EXPECT_EQ(order, "ac");
}

TEST(EventLoops, ATimerThatSetsItselfAgainDoesNotStarveDescriptors) {
  auto loop = make_loop();
  const UniqueFd event = make_event(1);
  bool seen = false;
  std::function<void()> again = [&] { loop->after(0, again); };
  again();
  ASSERT_TRUE(loop->add(event.get(), EPOLLIN, [&](uint32_t) { seen = true; }));
  for (int i = 0; i < 3; ++i) {
    loop->turn(0);
  }
  EXPECT_TRUE(seen);
}

TEST(EventLoops, PostFromAnotherThreadEndsASleep) {
  auto loop = make_loop();
  std::thread other([&] { loop->post([&] { loop->stop(); }); });
  loop->run();
  other.join();
}

TEST(EventLoops, APollerIsArmedBeforeEverySleepAndARefusalMeansProgressAgain) {
  auto loop = make_loop();
  FakePoller poller;
  poller.refusals = 2;
  ASSERT_TRUE(loop->add_poller(&poller));
  loop->turn(20 * kevre::kMillisecond);  // refused: no sleep
  loop->turn(20 * kevre::kMillisecond);  // refused: no sleep
  signal_fd(poller.event.get());
  EXPECT_EQ(loop->turn(60 * kevre::kSecond), 0);  // armed, and the wake descriptor ends the sleep
  EXPECT_EQ(poller.arms, 3);
}

TEST(EventLoops, TheLoopSpinsOnlyForTheBoundedTimeAfterWork) {
  auto loop = make_loop();
  loop->set_spin(2 * kevre::kMillisecond);
  FakePoller poller;
  poller.work = 1;
  ASSERT_TRUE(loop->add_poller(&poller));
  loop->turn(kevre::kSecond);
  EXPECT_EQ(poller.arms, 0);
  const kevre::Nanos deadline = kevre::now_ns() + 10 * kevre::kSecond;
  while (poller.arms == 0 && kevre::now_ns() < deadline) {
    loop->turn(kevre::kMillisecond);
  }
  EXPECT_GT(poller.arms, 0);
}
