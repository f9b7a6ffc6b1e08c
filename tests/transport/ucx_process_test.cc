// The ucx backend between processes: what one process cannot show. A killed peer, namespaces between the two,
// strangers on the open port. The other process is transport_peer (peer_main.cc).
#include <arpa/inet.h>
#include <dirent.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "base/check.h"
#include "base/fd.h"
#include "base/random.h"
#include "tests/transport/backends.h"
#include "tests/transport/peer_process.h"

namespace kevre::transport::testing {
namespace {

constexpr NodeId kPeer{2};
constexpr std::span<const std::byte> kNothing{};

class UcxProcess : public ::testing::TestWithParam<std::string> {
 protected:
  void start(const std::string& tls, const char* mode = nullptr, int unshare_flags = 0) {
    Options options;
    options.self = NodeId(1);
    options.kind = "ucx";
    options.ucx_tls = tls == "auto" ? "" : tls;
    options.bind_address = "127.0.0.1";
    options.cluster_tag = 77;
    child_ = std::make_unique<Child>(tls, mode, unshare_flags);
    auto made = create(options);
    ASSERT_TRUE(made.has_value()) << made.error().text;
    transport_ = std::move(*made);
    transport_->set_handler(Service::kTest, &got_);
    const Address address = child_->swap_addresses(transport_->local_address());
    ASSERT_FALSE(address.empty()) << "the other process did not start";
    const auto connected = transport_->connect(kPeer, address);
    ASSERT_TRUE(connected.has_value()) << connected.error().text;
  }
  bool until(const std::function<bool()>& condition, Nanos deadline_ns = 20 * kSecond) {
    const Nanos end = now_ns() + deadline_ns;
    while (!condition() && now_ns() < end) {
      transport_->progress();
    }
    return condition();
  }
  // The message comes back as it went.
  void expect_echo(size_t bytes) {
    const size_t before = got_.messages.size();
    const auto payload = pattern(bytes, bytes);
    ASSERT_TRUE(transport_->send(kPeer, Service::kTest, as_bytes("echo"), payload).has_value());
    ASSERT_TRUE(until([&] { return got_.messages.size() > before; })) << bytes;
    EXPECT_TRUE(got_.messages.back().payload == payload);
    got_.messages.clear();
  }

  Recorder got_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Child> child_;
};

TEST_P(UcxProcess, EverySizeComesBackUnchanged) {
  ASSERT_NO_FATAL_FAILURE(start(GetParam()));
  for (const size_t bytes :
       {size_t{0}, size_t{1}, size_t{8191}, size_t{8192}, size_t{65537}, size_t{1000003}, kPayloadBytesMax}) {
    ASSERT_NO_FATAL_FAILURE(expect_echo(bytes));
  }
  EXPECT_EQ(transport_->capabilities(kPeer).via, GetParam() == "tcp" ? "tcp" : "shm");
}

TEST_P(UcxProcess, AKilledPeerIsReportedLost) {
  ASSERT_NO_FATAL_FAILURE(start(GetParam()));
  ASSERT_NO_FATAL_FAILURE(expect_echo(100));
  child_->kill();
  const Nanos killed = now_ns();
  ASSERT_TRUE(until([&] { return !got_.lost.empty(); }, 10 * kSecond));
  RecordProperty("lost_after_ms", static_cast<int>((now_ns() - killed) / kMillisecond));
  EXPECT_EQ(got_.lost[0].first, kPeer);
  EXPECT_EQ(transport_->send(kPeer, Service::kTest, {}, kNothing).error().code, Errc::kPeerLost);
  for (int i = 0; i < 1000; ++i) {
    transport_->progress();
  }
  EXPECT_EQ(got_.lost.size(), 1u);
}

TEST_P(UcxProcess, APeerKilledInTheMiddleOfAStreamLeavesNoHoleAndReturnsEveryBuffer) {
  for (int round = 0; round < 3; ++round) {
    got_ = Recorder();
    got_.keep = false;
    uint64_t next = 0;
    uint64_t wrong = 0;
    got_.also = [&](NodeId, std::span<const std::byte> header, auto) {
      uint64_t number = 0;
      std::memcpy(&number, header.data(), std::min(header.size(), sizeof number));
      wrong += header.size() == sizeof number && number != next ? 1 : 0;
      next += header.size() == sizeof number ? 1 : 0;
    };
    ASSERT_NO_FATAL_FAILURE(start(GetParam(), "flood"));
    ASSERT_TRUE(until([&] { return next > 500u; }));
    const auto payload = pattern(300'000, 3);
    for (int i = 0; i < 20; ++i) {
      static_cast<void>(transport_->send(kPeer, Service::kTest, as_bytes("x"), payload));
    }
    child_->kill();
    ASSERT_TRUE(until([&] { return !got_.lost.empty(); }, 10 * kSecond));
    EXPECT_EQ(wrong, 0u);
    transport_.reset();
  }
}

TEST_P(UcxProcess, APeerThatLeavesInOrderIsReportedLostAtOnce) {
  ASSERT_NO_FATAL_FAILURE(start(GetParam()));
  ASSERT_NO_FATAL_FAILURE(expect_echo(100));
  child_->hang_up();
  ASSERT_TRUE(until([&] { return !got_.lost.empty(); }, 5 * kSecond));
  EXPECT_EQ(child_->wait(), 0) << "it must end by itself, without an abort in UCX";
}

INSTANTIATE_TEST_SUITE_P(Carriers, UcxProcess, ::testing::Values("tcp", "posix", "auto"),
                         [](const auto& test) { return test.param; });

using UcxNamespaces = UcxProcess;

TEST_F(UcxNamespaces, APeerInNamespacesOfItsOwnIsReachedOverTcp) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "kevre: test skipped: namespaces need root";
  }
  for (const int flags :
       {CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS,
        CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWPID | CLONE_NEWNS}) {
    ASSERT_NO_FATAL_FAILURE(start("auto", nullptr, flags));
    ASSERT_NO_FATAL_FAILURE(expect_echo(100)) << std::hex << flags;
    ASSERT_NO_FATAL_FAILURE(expect_echo(1'000'000)) << std::hex << flags;
    std::printf("namespaces %#x: via %s\n", flags, std::string(transport_->capabilities(kPeer).via).c_str());
    transport_.reset();
    child_.reset();
  }
}

// ---- strangers on the port

std::vector<uint16_t> listening_ports_of_this_process() {
  std::set<std::string> inodes;
  DIR* directory = ::opendir("/proc/self/fd");
  while (const dirent* entry = ::readdir(directory)) {
    std::array<char, 64> target{};
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    if (::readlink(path.c_str(), target.data(), target.size() - 1) > 8 &&
        std::strncmp(target.data(), "socket:[", 8) == 0) {
      inodes.insert(std::string(target.data() + 8, std::strlen(target.data()) - 9));
    }
  }
  ::closedir(directory);
  std::vector<uint16_t> ports;
  std::ifstream table("/proc/net/tcp");
  std::string line;
  std::getline(table, line);
  while (std::getline(table, line)) {
    std::istringstream in(line);
    std::string slot, local, remote, state, skip, inode;
    in >> slot >> local >> remote >> state >> skip >> skip >> skip >> skip >> skip >> inode;
    if (state == "0A" && inodes.contains(inode)) {
      ports.push_back(static_cast<uint16_t>(std::stoul(local.substr(9), nullptr, 16)));
    }
  }
  return ports;
}

UniqueFd dial(uint16_t port) {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval patience{1, 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  KEVRE_CHECK(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
              "errno {}", errno);
  return socket;
}

constexpr uint64_t kUcxMagic = 0xCAFEBABE12345678u;  // what UCX's tcp expects first on a connection

using UcxStrangers = UcxProcess;

TEST_F(UcxStrangers, GarbageOnThePortDoesNotDisturbTheNode) {
  ASSERT_NO_FATAL_FAILURE(start("tcp"));
  ASSERT_NO_FATAL_FAILURE(expect_echo(100));
  const auto ports = listening_ports_of_this_process();
  ASSERT_FALSE(ports.empty());
  Random random(99);
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 150; ++i) {
    for (const uint16_t port : ports) {
      UniqueFd socket = dial(port);
      auto bytes = pattern(random.below(i % 10 == 0 ? 100'000 : 40), random.next());
      [[maybe_unused]] const ssize_t sent =
          ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (i % 7 == 0) {
        silent.push_back(std::move(socket));  // stays open and says no more
      }
    }
    transport_->progress();
  }
  ASSERT_NO_FATAL_FAILURE(expect_echo(100'000));
  EXPECT_TRUE(got_.lost.empty());
}

}  // namespace
}  // namespace kevre::transport::testing
