// Unmodified programs under the preload library against a service on a thread of this test, and the same
// conformance programs natively: one oracle for both.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/clock.h"
#include "base/random.h"
#include "ipc/service.h"
#include "tests/ipc/local_service.h"

namespace kevre::ipc::testing {
namespace {

constexpr size_t kNodes = 3;

class ProgramsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string why = service.start(kNodes);
    if (!why.empty()) {
      GTEST_SKIP() << "kevre: test skipped: " << why;
    }
  }
  LocalCluster service;
};

std::string program(const std::string& name) {
  return std::string(KEVRE_IPC_PROGRAMS) + "/" + name;
}

class Conformance : public ProgramsTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(Conformance, HoldsNatively) {
  const Ended run = run_native({program(GetParam())});
  EXPECT_EQ(run.status, 0) << run.err;
}

TEST_P(Conformance, HoldsOnTheSeatsNode) {
  const Ended run = service.run({program(GetParam())});
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(run.err, "");
}

TEST_P(Conformance, HoldsOnAnotherNode) {
  const Ended run = service.run({program(GetParam())}, 1);
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_GT(service.stats(1).calls_remote, 0u);
}

INSTANTIATE_TEST_SUITE_P(Programs, Conformance, ::testing::Values(KEVRE_IPC_PROGRAM_NAMES),
                         [](const auto& which) { return std::string(which.param); });

TEST_F(ProgramsTest, PerlSharesWithPerlOnAnotherNode) {
  const Ended first =
      service.run({"perl", "-e",
                   "use IPC::SysV qw(IPC_CREAT S_IRUSR S_IWUSR); my $m = shmget(77, 100, IPC_CREAT|0600);"
                   "shmwrite($m, 'from perl', 0, 9) or die; my $q = msgget(77, IPC_CREAT|0600);"
                   "msgsnd($q, pack('l! a*', 3, 'work'), 0) or die; my $s = semget(77, 2, IPC_CREAT|0600);"
                   "semop($s, pack('s!3', 1, 2, 0)) or die; print 'ok'"});
  EXPECT_EQ(first.out, "ok") << first.err;
  const Ended second =
      service.run({"perl", "-e",
                   "my $m = shmget(77, 0, 0); my $b; shmread($m, $b, 0, 9) or die;"
                   "my $q = msgget(77, 0); my $r; msgrcv($q, $r, 100, 0, 0) or die;"
                   "my ($t, $w) = unpack('l! a*', $r); my $s = semget(77, 0, 0);"
                   "my $a = ''; semctl($s, 0, 13, $a); print \"$b $t $w \", join(',', unpack('S*', $a))"},
                  2);
  EXPECT_EQ(second.out, "from perl 3 work 0,2") << second.err;
}

TEST_F(ProgramsTest, PythonAndItsModuleWork) {
  const char* script =
      "import sysv_ipc as s\n"
      "m = s.SharedMemory(55, s.IPC_CREX, size=4096)\n"
      "m.write(b'python'); assert m.read(6) == b'python'; assert m.number_attached == 1\n"
      "q = s.MessageQueue(55, s.IPC_CREX); q.send(b'hello', type=2); assert q.receive() == (b'hello', 2)\n"
      "x = s.Semaphore(55, s.IPC_CREX, initial_value=1); x.acquire(); assert x.value == 0\n"
      "try:\n  x.acquire(timeout=0.05); assert False\n"
      "except s.BusyError: pass\n"
      "x.release(); m.detach(); m.remove(); q.remove(); x.remove(); print('ok')\n";
  const Ended run = service.run({"/usr/bin/python3", "-c", script});
  if (run.err.find("No module named") != std::string::npos) {
    GTEST_SKIP() << "kevre: test skipped: python3-sysv-ipc is not installed";
  }
  EXPECT_EQ(run.out, "ok\n") << run.err;
}

TEST_F(ProgramsTest, UtilLinuxToolsSeeMakeAndRemoveObjects) {
  EXPECT_EQ(service.run({"ipcmk", "-Q", "-p", "0640"}).status, 0);
  EXPECT_EQ(service.run({"ipcmk", "-M", "5000", "-p", "0600"}).status, 0);
  EXPECT_EQ(service.run({"ipcmk", "-S", "3"}).status, 0);
  const Ended all = service.run({"ipcs", "-a"});
  EXPECT_NE(all.out.find(" 5000 "), std::string::npos) << all.out << all.err;
  EXPECT_NE(all.out.find("640"), std::string::npos) << all.out;
  const Ended list = service.run({"lsipc", "-m", "--noheadings", "-o", "SIZE", "-b"});
  EXPECT_NE(list.out.find("5000"), std::string::npos) << list.out << list.err;
  EXPECT_NE(service.run({"cat", "/proc/sysvipc/sem"}).out.find("nsems"), std::string::npos);
  EXPECT_EQ(service.run({"ipcrm", "--all"}).status, 0);
  EXPECT_EQ(service.run({"ipcs", "-m"}).out.find(" 5000 "), std::string::npos);
  EXPECT_EQ(
      service.run({"bash", "-c", "wc -l < /proc/sysvipc/msg; ipcmk -Q >/dev/null; wc -l < /proc/sysvipc/msg"})
          .out,
      "1\n2\n");
}

TEST_F(ProgramsTest, WithoutADaemonACallFailsWithOneLine) {
  for (const char* socket : {"", "KEVRE_SOCKET=/nowhere/at/all"}) {
    const Ended run =
        run_with({"perl", "-e", "for (1..3) { print shmget(1, 10, 0) ? 'yes' : $!{ENOSYS} ? 'no' : $! }"},
                 {preload_setting(), socket});
    EXPECT_EQ(run.out, "nonono");
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    EXPECT_EQ(run.err.rfind("kevre: System V IPC is not available: ", 0), 0u) << run.err;
  }
}

TEST_F(ProgramsTest, AProgramThatBecameAnotherUserIsAnotherUser) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "kevre: test skipped: needs root";
  }
  const Ended run =
      service.run({"perl", "-e",
                   "my $q = msgget(9, 0100600|01000); $) = '65534 65534'; $> = 65534;"
                   "print msgsnd($q, pack('l! a*', 1, 'x'), 0) ? 'yes' : $!{EACCES} ? 'no' : $!;"
                   "my $own = msgget(10, 01600); print ' ', msgsnd($own, pack('l! a*', 1, 'x'), 0);"});
  EXPECT_EQ(run.out, "no 1") << run.err;
}

TEST_F(ProgramsTest, AttachmentsOfAKilledProgramAreForgotten) {
  const Ended run =
      service.run({"perl", "-e",
                   "my $m = shmget(5, 100, 01600); shmwrite($m, 'x', 0, 1);"
                   "if (!fork) { require IPC::SharedMem; IPC::SharedMem->new(5, 100, 0)->attach; "
                   "kill 9, $$; } wait; print 'done'"},
                  1);
  EXPECT_EQ(run.out, "done") << run.err;
  const Nanos end = now_ns() + 10 * kSecond;
  std::string text;
  do {
    text = service.run({"cat", "/proc/sysvipc/shm"}).out;
  } while (text.find("     0     0     0") == std::string::npos && now_ns() < end);
  EXPECT_EQ(service.run({"ipcrm", "-M", "5"}).status, 0);
}

// Two programs on each of three nodes.
TEST_F(ProgramsTest, NoIncrementIsLostOverThreeNodes) {
  ASSERT_EQ(service.run({program("counter"), "700", "make"}).status, 0);
  std::vector<std::thread> runs;
  std::array<int, 2 * kNodes> statuses{};
  for (size_t i = 0; i < statuses.size(); ++i) {
    runs.emplace_back([&, i] {
      statuses[i] = service.run({program("counter"), "700", "500"}, i % kNodes).status;
    });
  }
  for (std::thread& run : runs) {
    run.join();
  }
  EXPECT_THAT(statuses, ::testing::Each(0));
  EXPECT_EQ(service.run({program("counter"), "700", "show"}).out, "3000 3000 1\n");
}

// A program killed anywhere, also between its semop and its answer, leaves the semaphore free for the others.
TEST_F(ProgramsTest, KilledProgramsLeaveTheSemaphoreFree) {
  ASSERT_EQ(service.run({program("counter"), "701", "make"}).status, 0);
  Random random(7);
  for (int i = 0; i < 60; ++i) {
    const std::string seconds = std::to_string(0.005 + 0.00001 * static_cast<double>(random.below(3000)));
    service.run({"timeout", "-s", "KILL", seconds, program("counter"), "701", "1000000"},
                static_cast<size_t>(i) % kNodes);
  }
  EXPECT_EQ(service.run({program("counter"), "701", "200"}, 1).status, 0);
  const std::string out = service.run({program("counter"), "701", "show"}, 2).out;
  EXPECT_EQ(out.substr(out.rfind(' ')), " 1\n") << out;
  EXPECT_GT(std::stol(out), 200 + 60) << "the killed programs did not get to work";
}

}  // namespace
}  // namespace kevre::ipc::testing
