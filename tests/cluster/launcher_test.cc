// Launcher on one loop: node 1 calls, programs run on node 1 or, over the real transport, on node 2.
#include "cluster/launcher.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/clock.h"

namespace kevre::cluster {
namespace {

class TestSession final : public Session {
 public:
  void on_started(uint32_t pid) override { pid_ = pid; }
  void on_output(Stream stream, std::span<const std::byte> bytes) override {
    (stream == Stream::kError ? error_ : output_)
        .append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    ahead_ += bytes.size();
    if (launcher_ != nullptr) {
      launcher_->consumed(run_, stream, bytes.size());
    }
  }
  void on_input_consumed(size_t bytes) override { input_consumed_ += bytes; }
  void on_exit(const ExitStatus& status) override { exit_ = status; }

  Launcher* launcher_ = nullptr;  // null: consumes nothing
  Launcher::RunId run_ = 0;
  uint32_t pid_ = 0;
  std::string output_, error_;
  size_t ahead_ = 0, input_consumed_ = 0;
  std::optional<ExitStatus> exit_;
};

class LauncherTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    loop_ = std::move(*EventLoop::create());
    for (uint16_t i = 1; i <= 2; ++i) {
      transport::Options o;
      o.self = NodeId(i);
      o.ucx_tls = "tcp,self";
      o.bind_address = "127.0.0.1";
      auto made = transport::create(o);
      ASSERT_TRUE(made) << made.error().text;
      transports_[i] = std::move(*made);
      ASSERT_TRUE(loop_->add_poller(transports_[i].get()));
      launchers_[i] =
          std::make_unique<Launcher>(Launcher::Options{NodeId(i), {fmt::format("KEVRE_NODE=n{}", i)}},
                                     loop_.get(), transports_[i].get());
    }
    ASSERT_TRUE(transports_[1]->connect(NodeId(2), transports_[2]->local_address()));
    ASSERT_TRUE(transports_[2]->connect(NodeId(1), transports_[1]->local_address()));
    char name[] = "/tmp/kevre-launch-XXXXXX";
    folder_ = ::mkdtemp(name);
  }
  void TearDown() override {
    for (int i = 1; i <= 2; ++i) {
      launchers_[i].reset();
      if (transports_[i] != nullptr) {
        loop_->remove_poller(transports_[i].get());
        transports_[i].reset();
      }
    }
    std::filesystem::remove_all(folder_);
  }
  LaunchRequest request(std::vector<std::string> argv) {
    LaunchRequest r;
    r.argv = std::move(argv);
    r.env = {"PATH=/usr/bin:/bin", "KEVRE_NODE=wrong", "A=b"};
    r.cwd = "/tmp";
    r.uid = ::getuid();
    r.gid = ::getgid();
    return r;
  }
  LaunchRequest shell(const std::string& script) { return request({"sh", "-c", script}); }
  NodeId where() const { return NodeId(static_cast<uint16_t>(GetParam())); }
  void start(TestSession& session, LaunchRequest r, bool consumes = true) {
    const auto run = launchers_[1]->start(where(), std::move(r), &session);
    ASSERT_TRUE(run) << run.error().text;
    session.run_ = *run;
    session.launcher_ = consumes ? launchers_[1].get() : nullptr;
  }
  bool turn_until(const std::function<bool()>& good, Nanos limit = 20 * kSecond) {
    const Nanos deadline = now_ns() + limit;
    while (!good()) {
      if (now_ns() > deadline) {
        return false;
      }
      loop_->turn(10 * kMillisecond);
    }
    return true;
  }
  ExitStatus run(TestSession& session, LaunchRequest r) {
    start(session, std::move(r));
    EXPECT_TRUE(turn_until([&] { return session.exit_.has_value(); }))
        << "no end; output: " << session.output_;
    return session.exit_.value_or(ExitStatus{});
  }

  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<transport::Transport> transports_[3];
  std::unique_ptr<Launcher> launchers_[3];
  std::string folder_;
};

TEST_P(LauncherTest, OutputErrorAndExitStatusComeBack) {
  TestSession s;
  const ExitStatus status = run(s, shell("echo out; echo err >&2; pwd; echo $KEVRE_NODE $A; umask; exit 7"));
  EXPECT_EQ(status.kind, ExitStatus::Kind::kExited);
  EXPECT_EQ(status.code, 7);
  EXPECT_EQ(s.output_, fmt::format("out\n/tmp\nn{} b\n0022\n", GetParam()));
  EXPECT_EQ(s.error_, "err\n");
  EXPECT_GT(s.pid_, 1u);
}

TEST_P(LauncherTest, DeathByASignalIsTold) {
  TestSession s;
  const ExitStatus status = run(s, shell("kill -9 $$"));
  EXPECT_EQ(status.kind, ExitStatus::Kind::kSignaled);
  EXPECT_EQ(status.code, SIGKILL);
  EXPECT_EQ(status.shell_code(), 137);
}

TEST_P(LauncherTest, InputIsBinarySafeAndItsEndArrives) {
  TestSession s;
  start(s, request({"cat"}));
  std::string sent;
  for (int i = 0; i < 100000; ++i) {
    sent.push_back(static_cast<char>(i * 7));
  }
  launchers_[1]->write_input(s.run_, std::as_bytes(std::span(sent)));
  launchers_[1]->end_input(s.run_);
  ASSERT_TRUE(turn_until([&] { return s.exit_.has_value(); }));
  EXPECT_EQ(s.output_, sent);
  EXPECT_EQ(s.input_consumed_, sent.size());
}

TEST_P(LauncherTest, ABigOutputArrivesWhole) {
  TestSession s;
  const ExitStatus status = run(s, shell("head -c 33554432 /dev/zero; echo end"));
  EXPECT_EQ(status.code, 0);
  EXPECT_EQ(s.output_.size(), 33554432u + 4);
}

TEST_P(LauncherTest, AProgramIsNotReadAheadOfACallerThatDoesNotConsume) {
  TestSession s;
  start(s, shell("head -c 8388608 /dev/zero"), false);
  ASSERT_TRUE(turn_until([&] { return s.ahead_ >= kWindowBytes; }));
  turn_until([] { return false; }, 100 * kMillisecond);
  EXPECT_EQ(s.ahead_, kWindowBytes);
  s.launcher_ = launchers_[1].get();
  launchers_[1]->consumed(s.run_, Stream::kOutput, s.ahead_);
  ASSERT_TRUE(turn_until([&] { return s.exit_.has_value(); }));
  EXPECT_EQ(s.output_.size(), 8388608u);
}

TEST_P(LauncherTest, WhatCannotStartIsReportedAsByAShell) {
  TestSession unknown;
  EXPECT_EQ(run(unknown, request({"kevre-no-such-command"})).code, 127);
  EXPECT_EQ(unknown.exit_->text, "kevre-no-such-command: command not found");
  TestSession folder;
  EXPECT_EQ(run(folder, request({"/tmp"})).code, 126);
  TestSession away;
  LaunchRequest r = request({"true"});
  r.cwd = "/no/such/folder";
  EXPECT_EQ(run(away, r).code, 1);
  EXPECT_EQ(away.exit_->kind, ExitStatus::Kind::kFailed);
  EXPECT_NE(away.exit_->text.find("/no/such/folder"), std::string::npos);
}

TEST_P(LauncherTest, AScriptWithoutAFirstLineRunsInTheShell) {
  std::ofstream(folder_ + "/script") << "echo $1\n";
  ::chmod((folder_ + "/script").c_str(), 0755);
  TestSession s;
  EXPECT_EQ(run(s, request({folder_ + "/script", "hello"})).code, 0);
  EXPECT_EQ(s.output_, "hello\n");
}

TEST_P(LauncherTest, SignalsReachTheProgram) {
  TestSession s;
  start(s, shell("trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.05; done"));
  ASSERT_TRUE(turn_until([&] { return s.output_ == "ready\n"; }));
  launchers_[1]->signal(s.run_, SIGUSR1);
  ASSERT_TRUE(turn_until([&] { return s.exit_.has_value(); }));
  EXPECT_EQ(s.exit_->code, 5);
  EXPECT_EQ(s.output_, "ready\ngot\n");
}

TEST_P(LauncherTest, ATerminalHasItsSizeAndEndsWell) {
  TestSession s;
  LaunchRequest r = shell(
      "stty size; test -t 0 && test -t 1 && test -t 2 && echo tty; read x; echo $x; stty size; seq 1 2000 | "
      "tail -1");
  r.pty = true;
  r.window = {33, 99};
  start(s, r);
  ASSERT_TRUE(turn_until([&] { return s.output_.find("tty\r\n") != std::string::npos; })) << s.output_;
  launchers_[1]->resize(s.run_, {40, 80});
  launchers_[1]->write_input(s.run_, std::as_bytes(std::span("word\n", 5)));
  ASSERT_TRUE(turn_until([&] { return s.exit_.has_value(); }));
  EXPECT_EQ(s.output_, "33 99\r\ntty\r\nword\r\nword\r\n40 80\r\n2000\r\n");
}

TEST_P(LauncherTest, ACallerThatGoesAwayEndsItsProgram) {
  TestSession s;
  start(s, shell("trap '' HUP; echo $$; while :; do sleep 0.05; done"));  // does not go by itself
  ASSERT_TRUE(turn_until([&] { return !s.output_.empty(); }));
  const auto pid = static_cast<pid_t>(s.pid_);
  launchers_[1]->cancel(s.run_);
  EXPECT_TRUE(turn_until([&] { return ::kill(pid, 0) != 0; }));
  EXPECT_TRUE(turn_until([&] { return launchers_[GetParam()]->list().empty(); }));
  EXPECT_FALSE(s.exit_.has_value());
}

TEST_P(LauncherTest, ADetachedProgramWritesToItsFileAndCanBeWaitedFor) {
  TestSession s;
  LaunchRequest r = shell("read x; echo started $x; sleep 0.3; exit 4");
  r.detach = true;
  r.output_file = folder_ + "/out";
  start(s, r);
  ASSERT_TRUE(turn_until([&] { return s.pid_ != 0; }));
  ASSERT_EQ(launchers_[GetParam()]->list().size(), 1u);
  EXPECT_TRUE(launchers_[GetParam()]->list()[0].detached);
  launchers_[1]->cancel(s.run_);
  for (int i = 0; i < 2; ++i) {  // while it runs, and after
    TestSession w;
    const auto waiting = launchers_[1]->wait(where(), s.pid_, &w);
    ASSERT_TRUE(waiting);
    ASSERT_TRUE(turn_until([&] { return w.exit_.has_value(); }));
    EXPECT_EQ(w.exit_->code, 4);
  }
  std::ifstream file(r.output_file);
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "started");
  TestSession none;
  ASSERT_TRUE(launchers_[1]->wait(where(), 1, &none));
  ASSERT_TRUE(turn_until([&] { return none.exit_.has_value(); }));
  EXPECT_EQ(none.exit_->kind, ExitStatus::Kind::kFailed);
}

TEST_P(LauncherTest, ABackgroundChildThatHoldsTheStreamsDoesNotHoldTheCaller) {
  TestSession s;
  const Nanos before = now_ns();
  EXPECT_EQ(run(s, shell("sleep 30 & echo $!; exit 3")).code, 3);
  EXPECT_LT(now_ns() - before, 10 * kSecond);
  ::kill(std::atoi(s.output_.c_str()), SIGKILL);
}

TEST_P(LauncherTest, ManyProgramsRunAtOnce) {
  std::vector<TestSession> sessions(40);
  for (TestSession& s : sessions) {
    start(s, shell("head -c 300000 /dev/zero; exit 9"));
  }
  for (TestSession& s : sessions) {
    ASSERT_TRUE(turn_until([&] { return s.exit_.has_value(); }));
    EXPECT_EQ(s.exit_->code, 9);
    EXPECT_EQ(s.output_.size(), 300000u);
  }
}

TEST_P(LauncherTest, AnotherUserGetsHisIdentityAndNoMore) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "kevre test skipped: becoming another user needs root";
  }
  TestSession s;
  LaunchRequest r = request({"id"});
  r.uid = r.gid = 65534;
  r.groups = {65534, 12};
  EXPECT_EQ(run(s, r).code, 0);
  EXPECT_EQ(s.output_.find("uid=65534"), 0u) << s.output_;
  EXPECT_NE(s.output_.find(",12"), std::string::npos) << s.output_;
  EXPECT_EQ(s.output_.find("root"), std::string::npos) << s.output_;
}

INSTANTIATE_TEST_SUITE_P(HereAndThere, LauncherTest, testing::Values(1, 2),
                         [](const auto& i) { return i.param == 1 ? "OnThisNode" : "OnAnotherNode"; });

using LauncherLossTest = LauncherTest;
TEST_P(LauncherLossTest, TheCallerIsToldWhenTheNodeIsLostAndTheProgramEndsWhenItsCallersNodeIs) {
  TestSession s;
  start(s, shell("echo x; exec sleep 100"));
  ASSERT_TRUE(turn_until([&] { return !s.output_.empty(); }));
  const auto pid = static_cast<pid_t>(s.pid_);
  View alone;
  alone.id = ViewId(9);
  alone.members.push_back({NodeId(1), "n1", "", {}, 0, 0});
  alone.lost = {NodeId(2)};
  launchers_[1]->on_view(alone);
  ASSERT_TRUE(turn_until([&] { return s.exit_.has_value(); }));
  EXPECT_EQ(s.exit_->kind, ExitStatus::Kind::kLost);
  launchers_[2]->on_peer_lost(NodeId(1), Error{Errc::kPeerLost, 0, "gone"});
  EXPECT_TRUE(turn_until([&] { return ::kill(pid, 0) != 0; }));
}
INSTANTIATE_TEST_SUITE_P(There, LauncherLossTest, testing::Values(2));

}  // namespace
}  // namespace kevre::cluster
