// The verbs backend between processes: a peer that is killed, stopped or leaves, and a device that goes away.
// The other process is transport_peer (peer_main.cc). Runs where a device is; `./run test` has one in its
// guest (label rdma).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/transport/backends.h"
#include "tests/transport/peer_process.h"
#include "transport/verbs/probe.h"
#include "transport/verbs/verbs_transport.h"

namespace kevre::transport::testing {
namespace {

constexpr NodeId kPeer{2};
constexpr std::span<const std::byte> kNothing{};
constexpr size_t kRegionBytes = size_t{1} << 20;  // as in peer_main.cc
constexpr size_t kPlainBytes = kRegionBytes - sizeof(uint64_t);
constexpr Nanos kFailureTimeout = 10 * kSecond;

class VerbsProcess : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto found = verbs::probe();
    if (!found.usable()) {
      GTEST_SKIP() << "kevre: test skipped: " << found.why_not;
    }
  }
  static bool until_usable(const char* address) {
    for (const Nanos end = now_ns() + 20 * kSecond; now_ns() < end; ::usleep(50'000)) {
      if (verbs::choose(verbs::probe(), address)) {
        return true;
      }
    }
    return false;
  }
  void start(const char* mode = nullptr) {
    Options options;
    options.self = NodeId(1);
    options.kind = "verbs";
    options.cluster_tag = 77;
    child_ = std::make_unique<Child>("verbs", mode);
    auto made = create(options);
    ASSERT_TRUE(made.has_value()) << made.error().text;
    transport_ = std::move(*made);
    transport_->set_handler(Service::kTest, &got_);
    const Address address = child_->swap_addresses(transport_->local_address());
    ASSERT_FALSE(address.empty()) << "the other process did not start";
    const auto connected = transport_->connect(kPeer, address);
    ASSERT_TRUE(connected.has_value()) << connected.error().text;
  }
  void start_with_region() {
    ASSERT_NO_FATAL_FAILURE(start("region"));
    ASSERT_TRUE(until([&] { return !got_.messages.empty(); }));
    const auto& header = got_.messages[0].header;
    std::copy(header.begin(), header.end(), key_.bytes.begin());
    key_.size = static_cast<uint16_t>(header.size());
    got_.messages.clear();
  }
  bool until(const std::function<bool()>& condition, Nanos deadline_ns = 100 * kSecond) {
    const Nanos end = now_ns() + deadline_ns;
    while (!condition() && now_ns() < end) {
      transport_->progress();
    }
    return condition();
  }
  void expect_echo(size_t bytes) {
    const size_t before = got_.messages.size();
    const auto payload = pattern(bytes, bytes);
    ASSERT_TRUE(transport_->send(kPeer, Service::kTest, as_bytes("echo"), payload).has_value());
    ASSERT_TRUE(until([&] { return got_.messages.size() > before; })) << bytes;
    EXPECT_TRUE(got_.messages.back().payload == payload);
    got_.messages.clear();
  }
  static bool is_right(std::span<const std::byte> bytes, size_t offset) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] != static_cast<std::byte>((offset + i) * 7 % 251)) {
        return false;
      }
    }
    return true;
  }

  Recorder got_;
  RegionKey key_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Child> child_;
};

TEST_F(VerbsProcess, EverySizeComesBackUnchanged) {
  ASSERT_NO_FATAL_FAILURE(start());
  for (const size_t bytes : {0, 1, 150, 151, 8191, 16335, 16336, 16337, 65537, 1'000'003, 8'000'000}) {
    ASSERT_NO_FATAL_FAILURE(expect_echo(bytes));
  }
  const Capabilities can = transport_->capabilities(kPeer);
  EXPECT_EQ(can.via, "rc");
  EXPECT_EQ(can.backend, "verbs");
  EXPECT_TRUE(can.read && can.write);
}

TEST_F(VerbsProcess, AKilledPeerIsReportedLostOnce) {
  ASSERT_NO_FATAL_FAILURE(start());
  ASSERT_NO_FATAL_FAILURE(expect_echo(100));
  child_->kill();
  const Nanos killed = now_ns();
  ASSERT_TRUE(until([&] { return !got_.lost.empty(); }, kFailureTimeout));
  std::printf("lost %.1f ms after the kill\n", static_cast<double>(now_ns() - killed) / 1e6);
  EXPECT_EQ(got_.lost[0].first, kPeer);
  EXPECT_EQ(transport_->send(kPeer, Service::kTest, {}, kNothing).error().code, Errc::kPeerLost);
  for (int i = 0; i < 1000; ++i) {
    transport_->progress();
  }
  EXPECT_EQ(got_.lost.size(), 1u);
}

TEST_F(VerbsProcess, APeerKilledInTheMiddleOfAStreamLeavesNoHoleAndReturnsEveryBuffer) {
  for (int round = 0; round < 3; ++round) {
    got_ = Recorder();
    got_.keep = false;
    uint64_t next = 0, wrong = 0;
    got_.also = [&](NodeId, std::span<const std::byte> header, auto) {
      uint64_t number = 0;
      std::memcpy(&number, header.data(), std::min(header.size(), sizeof number));
      wrong += header.size() == sizeof number && number != next ? 1 : 0;
      next += header.size() == sizeof number ? 1 : 0;
    };
    ASSERT_NO_FATAL_FAILURE(start("flood"));
    ASSERT_TRUE(until([&] { return next > 500u; }));
    const auto payload = pattern(300'000, 3);
    for (int i = 0; i < 20; ++i) {
      static_cast<void>(transport_->send(kPeer, Service::kTest, as_bytes("x"), payload));
    }
    child_->kill();
    ASSERT_TRUE(until([&] { return !got_.lost.empty(); }, kFailureTimeout));
    EXPECT_EQ(wrong, 0u);
    transport_.reset();
  }
}

TEST_F(VerbsProcess, APeerThatLeavesInOrderIsReportedLostAtOnce) {
  ASSERT_NO_FATAL_FAILURE(start());
  ASSERT_NO_FATAL_FAILURE(expect_echo(100));
  child_->hang_up();
  ASSERT_TRUE(until([&] { return !got_.lost.empty(); }, kFailureTimeout));
  EXPECT_EQ(child_->wait(), 0);
}

// No software runs there, and yet its memory is read: what pages rely on.
TEST_F(VerbsProcess, AStoppedProcessIsStillReadFrom) {
  ASSERT_NO_FATAL_FAILURE(start_with_region());
  ASSERT_NO_FATAL_FAILURE(
      expect_echo(100));  // a stopped process does not answer the request for a connection
  child_->signal(SIGSTOP);
  std::vector<std::byte> page(4096);
  for (size_t i = 0; i < 100; ++i) {
    bool done = false;
    const size_t offset = i * 4096;
    ASSERT_TRUE(transport_
                    ->read(kPeer, {&key_, offset}, page,
                           [&](const Result<uint64_t>& value) {
                             EXPECT_TRUE(value.has_value());
                             done = true;
                           })
                    .has_value());
    ASSERT_TRUE(until([&] { return done; }));
    ASSERT_TRUE(is_right(page, offset)) << offset;
  }
  child_->signal(SIGCONT);
  EXPECT_EQ(transport_->counters().one_sided_reads, 100u);
  ASSERT_NO_FATAL_FAILURE(expect_echo(100));
}

TEST_F(VerbsProcess, TenThousandOperationsWithThePeerKilledInTheMiddleGetAnErrorOrTheRightBytes) {
  constexpr uint64_t kOperations = 10'000;
  ASSERT_NO_FATAL_FAILURE(start_with_region());
  const bool atomics = transport_->capabilities(kPeer).atomic;
  std::vector<std::array<std::byte, 512>> results(kOperations);
  uint64_t begun = 0, right = 0, wrong = 0, failed = 0, refused = 0, sum = 0;
  Nanos killed = 0;
  const auto begin_one = [&](uint64_t number) {
    if (atomics && number % 4 == 0) {
      return transport_->fetch_add(kPeer, {&key_, kPlainBytes}, 1, [&](const Result<uint64_t>& old) {
        right += old && *old == sum ? 1 : 0;
        wrong += old && *old != sum ? 1 : 0;
        failed += old ? 0 : 1;
        ++sum;
      });
    }
    const size_t offset = number * 4093 % (kPlainBytes - 512);
    return transport_->read(kPeer, {&key_, offset}, results[number],
                            [&, number, offset](const Result<uint64_t>& value) {
                              const bool good = value && is_right(results[number], offset);
                              right += good ? 1 : 0;
                              wrong += value && !good ? 1 : 0;
                              failed += value ? 0 : 1;
                            });
  };
  const auto all_answered = [&] { return right + wrong + failed + refused == kOperations; };
  ASSERT_TRUE(until([&] {
    for (int burst = 0; burst < 64 && begun < kOperations && begun - right - failed - refused < 300;
         ++burst) {
      refused += begin_one(begun++) ? 0 : 1;
    }
    if (killed == 0 && right > kOperations / 2) {
      child_->kill();
      killed = now_ns();
    }
    return all_answered() || (killed != 0 && now_ns() > killed + kFailureTimeout);
  }));
  EXPECT_TRUE(all_answered()) << right << " right, " << failed << " failed, " << refused << " refused";
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(right, kOperations / 2);
  EXPECT_GT(failed + refused, 0u);
  ASSERT_TRUE(until([&] { return !got_.lost.empty(); }, kFailureTimeout));
  EXPECT_EQ(got_.lost.size(), 1u);
  std::printf("%lu right, %lu failed, %lu refused; all answered %.1f ms after the kill\n", right, failed,
              refused, static_cast<double>(now_ns() - killed) / 1e6);
}

// A Soft-RoCE device of the test's own, on an interface of its own; both go with it.
class OwnDevice {
 public:
  OwnDevice() {
    made_ = run("ip link add kevret0 type dummy && ip link set kevret0 up mtu 4200 && ip addr add "
                "10.78.0.1/24 dev kevret0"
                " && rdma link add kevrer0 type rxe netdev kevret0") == 0;
  }
  ~OwnDevice() {
    run("rdma link delete kevrer0 2>/dev/null");
    run("ip link delete kevret0 2>/dev/null");
  }
  bool made() const { return made_; }
  static int run(const char* command) { return std::system(command); }

 private:
  bool made_ = false;
};

bool on_soft_roce() {
  const auto found = verbs::probe();
  return !found.devices.empty() && found.devices[0].name.starts_with("rxe");
}

TEST_F(VerbsProcess, ADeviceThatGoesAwayLosesThePeersAnswersEverythingAndHoldsNobodyUp) {
  if (::geteuid() != 0 || !on_soft_roce()) {
    GTEST_SKIP() << "kevre: test skipped: only a Soft-RoCE device may be taken away, by root";
  }
  const OwnDevice device;
  ASSERT_TRUE(device.made());
  ASSERT_TRUE(until_usable("10.78.0.1"));
  Options options;
  options.cluster_tag = 77;
  options.bind_address = "10.78.0.1";
  std::vector<std::byte> memory(1 << 20);
  std::vector<std::byte> page(4096);
  std::array<Recorder, 2> got;
  std::array<std::unique_ptr<Transport>, 2> nodes;
  for (uint16_t i = 0; i < 2; ++i) {
    options.self = NodeId(static_cast<uint16_t>(i + 1));
    auto made = verbs::VerbsTransport::create(options);
    ASSERT_TRUE(made.has_value()) << made.error().text;
    nodes[i] = std::move(*made);
    nodes[i]->set_handler(Service::kTest, &got[i]);
  }
  const auto both_until = [&](const std::function<bool()>& condition, Nanos deadline_ns) {
    for (const Nanos end = now_ns() + deadline_ns; !condition() && now_ns() < end;) {
      nodes[0]->progress();
      nodes[1]->progress();
    }
    return condition();
  };
  ASSERT_TRUE(nodes[0]->connect(kPeer, nodes[1]->local_address()).has_value());
  ASSERT_TRUE(nodes[1]->connect(NodeId(1), nodes[0]->local_address()).has_value());
  const RegionKey key = *nodes[1]->register_region(memory);
  size_t begun = 0, answered = 0, good = 0;
  const auto read_one = [&] {
    begun += nodes[0]->read(kPeer, {&key, 0}, page,
                            [&](const Result<uint64_t>& value) {
                              ++answered;
                              good += value ? 1 : 0;
                            })
                 ? 1
                 : 0;
  };
  read_one();
  ASSERT_TRUE(nodes[1]->send(NodeId(1), Service::kTest, {}, as_bytes("hello")).has_value());
  ASSERT_TRUE(both_until([&] { return good == 1 && !got[0].messages.empty(); }, 60 * kSecond));
  const pid_t remover = ::fork();
  if (remover == 0) {
    ::execlp("rdma", "rdma", "link", "delete", "kevrer0", static_cast<char*>(nullptr));
    ::_exit(9);
  }
  ASSERT_TRUE(both_until(
      [&] {
        if (begun - answered < 20) {
          read_one();
        }
        return !got[0].lost.empty() && !got[1].lost.empty();
      },
      60 * kSecond));
  ASSERT_TRUE(both_until([&] { return answered == begun; }, 10 * kSecond));
  // The broken connection may be seen before the removal that broke it.
  EXPECT_TRUE(both_until(
      [&] {
        const auto again = nodes[0]->connect(kPeer, nodes[1]->local_address());
        nodes[0]->disconnect(kPeer);
        return !again && again.error().code == Errc::kUnsupported;
      },
      20 * kSecond));
  EXPECT_EQ(got[0].lost.size(), 1u);
  int status = -1;
  ASSERT_TRUE(both_until([&] { return ::waitpid(remover, &status, WNOHANG) != 0; }, 30 * kSecond))
      << "the device is still held";
  EXPECT_EQ(status, 0);
  auto loop = EventLoop::create();
  ASSERT_TRUE(loop.has_value());
  ASSERT_TRUE((*loop)->add_poller(nodes[0].get()).has_value());
  int turns = 0;
  for (const Nanos end = now_ns() + 500 * kMillisecond; now_ns() < end; ++turns) {
    (*loop)->turn(end - now_ns());
  }
  EXPECT_LE(turns, 20) << "it does not come to rest";
  (*loop)->remove_poller(nodes[0].get());
}

// Figures for people: compare with ib_read_lat -s 4096 in the same machine.
TEST_F(VerbsProcess, TheTimeOfAReadIsPrinted) {
  ASSERT_NO_FATAL_FAILURE(start_with_region());
  Buffer page = transport_->buffer(4096);
  std::vector<Nanos> times;
  for (size_t i = 0; i < 1000; ++i) {
    const Nanos before = now_ns();
    bool done = false;
    ASSERT_TRUE(
        transport_->read(kPeer, {&key_, 4096}, page.bytes(), [&](const Result<uint64_t>&) { done = true; })
            .has_value());
    ASSERT_TRUE(until([&] { return done; }));
    times.push_back(now_ns() - before);
  }
  EXPECT_TRUE(is_right(page.bytes(), 4096));
  std::sort(times.begin(), times.end());
  std::printf("read of 4096 bytes: median %.1f us, p99 %.1f us, best %.1f us\n",
              static_cast<double>(times[500]) / 1e3, static_cast<double>(times[990]) / 1e3,
              static_cast<double>(times[0]) / 1e3);
}

}  // namespace
}  // namespace kevre::transport::testing
