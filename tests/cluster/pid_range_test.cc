#include "cluster/pid_range.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

using kevre::cluster::PidRange;

TEST(PidRanges, OfTheNodesOfAClusterAreDisjointAndNotEmpty) {
  for (const uint32_t nodes : {1u, 2u, 3u, 8u, 64u}) {
    uint32_t after = 0;
    for (uint32_t k = 1; k <= nodes; ++k) {
      const PidRange range = PidRange::divide(k, nodes);
      EXPECT_GT(range.first(), after) << k << " of " << nodes;
      EXPECT_GT(range.last(), range.first() + 100);
      after = range.last();
    }
  }
}

namespace {

pid_t fork_and_reap() {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  return child;
}

// In a pid namespace of its own; the exit status says which check failed.
int pids_stay_inside() {
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 || ::mount("proc", "/proc", "proc", 0, nullptr) != 0) {
    return 2;
  }
  const PidRange range(20000, 20400);
  if (!range.enter()) {
    return 3;
  }
  if (fork_and_reap() != 20000) {
    return 4;
  }
  auto loop = std::move(*kevre::EventLoop::create());
  range.guard(loop.get());
  for (int i = 0; i < 2000; ++i) {
    const pid_t pid = fork_and_reap();
    if (pid < 20000 || pid > 20400) {
      return 5;
    }
    if (i % 20 == 0) {  // at least as often as the guard looks: wait until it had its turn
      bool looked = false;
      loop->after(25 * kevre::kMillisecond, [&] { looked = true; });
      while (!looked) {
        loop->turn(-1);
      }
    }
  }
  return 0;
}

}  // namespace

TEST(PidRanges, ProcessesStayInsideWhileTheGuardLooks) {
  const pid_t outer = ::fork();
  if (outer == 0) {
    if (::unshare(CLONE_NEWPID | CLONE_NEWNS) != 0) {
      ::_exit(77);
    }
    const pid_t init = ::fork();
    if (init == 0) {
      ::_exit(pids_stay_inside());
    }
    int status = 0;
    ::waitpid(init, &status, 0);
    ::_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 99);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(outer, &status, 0), outer);
  if (WEXITSTATUS(status) == 77) {
    GTEST_SKIP() << "kevre test skipped: no right to make a pid namespace";
  }
  EXPECT_EQ(WEXITSTATUS(status), 0);
}
