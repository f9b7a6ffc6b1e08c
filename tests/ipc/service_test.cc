// The socket: bad records, programs that do not read, stale and taken paths. Programs are played by this
// test.
#include "ipc/service.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>

#include "ipc/log_limit.h"
#include "ipc/protocol.h"
#include "tests/ipc/local_service.h"

namespace kevre::ipc::testing {
namespace {

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string why = cluster.start(1);
    if (!why.empty()) {
      GTEST_SKIP() << "kevre: test skipped: " << why;
    }
  }
  UniqueFd connect() {
    UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, cluster.socket(0).c_str());
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return fd;
  }
  static void send(int fd, const Call& call, std::span<const std::byte> payload = {}) {
    std::vector<std::byte> bytes(sizeof call + payload.size());
    std::memcpy(bytes.data(), &call, sizeof call);
    std::copy(payload.begin(), payload.end(), bytes.begin() + sizeof call);
    EXPECT_EQ(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  static bool readable(int fd, int ms = 10000) {
    pollfd poll{fd, POLLIN, 0};
    return ::poll(&poll, 1, ms) == 1;
  }
  // 0: closed by the service.
  static ssize_t receive(int fd, Answer* answer) {
    if (!readable(fd)) {
      return -2;
    }
    return ::recv(fd, answer, sizeof *answer, 0);
  }
  static Call get(uint64_t number) {
    Call call;
    call.op = Op::kSemGet;
    call.number = number;
    call.size = 1;
    call.flags = 0600;
    return call;
  }
  void expect_alive() {
    const UniqueFd fd = connect();
    send(fd.get(), get(1));
    Answer answer;
    ASSERT_EQ(receive(fd.get(), &answer), static_cast<ssize_t>(sizeof answer));
    EXPECT_EQ(answer.error, 0);
  }
  LocalCluster cluster;
};

TEST_F(ServiceTest, AProgramThatSendsGarbageIsDroppedAndTheDaemonLivesOn) {
  for (const size_t length : {size_t{1}, sizeof(Call), size_t{9000}}) {
    const UniqueFd fd = connect();
    const std::vector<char> noise(length, 'x');
    ASSERT_GT(::send(fd.get(), noise.data(), noise.size(), 0), 0);
    Answer answer;
    EXPECT_EQ(receive(fd.get(), &answer), 0) << length;
  }
  expect_alive();
}

TEST_F(ServiceTest, ARecordLongerThanAnyCallIsDropped) {
  const UniqueFd fd = connect();
  const std::vector<char> noise(100000, 'x');
  ASSERT_GT(::send(fd.get(), noise.data(), noise.size(), 0), 0);
  Answer answer;
  EXPECT_EQ(receive(fd.get(), &answer), 0);
  expect_alive();
}

TEST_F(ServiceTest, ASecondCallWhileOneWaitsEndsTheConnection) {
  const UniqueFd fd = connect();
  Answer answer;
  send(fd.get(), get(1));
  ASSERT_GT(receive(fd.get(), &answer), 0);
  Call op;
  op.op = Op::kSemOp;
  op.number = 2;
  op.id = static_cast<int32_t>(answer.value);
  op.size = 1;
  op.payload_bytes = sizeof(SemOperation);
  const SemOperation take{0, -1, 0};
  send(fd.get(), op, std::as_bytes(std::span(&take, 1)));
  send(fd.get(), get(3));
  EXPECT_EQ(receive(fd.get(), &answer), 0);
  expect_alive();
}

TEST_F(ServiceTest, AProgramThatDoesNotReadIsDroppedAndNobodyWaitsForIt) {
  const UniqueFd fd = connect();
  const int small = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  Call call;
  call.op = Op::kMsgGet;
  call.flags = 0600;
  std::vector<std::byte> bytes(sizeof call);
  ssize_t sent = 1;
  for (uint64_t i = 1; i < 100000 && sent > 0; ++i) {
    call.number = i;
    call.op = Op::kSemCount;  // answered with an error: nothing is made
    std::memcpy(bytes.data(), &call, sizeof call);
    sent = ::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  EXPECT_LT(sent, 0);
  expect_alive();
}

TEST_F(ServiceTest, AttachStepsOutOfOrderAreRefused) {
  const UniqueFd fd = connect();
  Answer answer;
  for (const Op op : {Op::kAttached, Op::kAttachFailed, Op::kDetachStart, Op::kDetachDone}) {
    Call call;
    call.op = op;
    call.number = 5;
    call.value = 4096;
    send(fd.get(), call);
    ASSERT_GT(receive(fd.get(), &answer), 0);
    EXPECT_EQ(answer.error, op == Op::kAttachFailed || op == Op::kDetachDone ? 0 : EINVAL)
        << static_cast<int>(op);
  }
}

TEST_F(ServiceTest, AnAttachThatIsNeverFinishedIsGivenBack) {
  Answer answer;
  int32_t id = 0;
  {
    const UniqueFd fd = connect();
    Call call;
    call.op = Op::kShmGet;
    call.number = 1;
    call.size = 10;
    call.flags = 0600;
    send(fd.get(), call);
    ASSERT_GT(receive(fd.get(), &answer), 0);
    id = static_cast<int32_t>(answer.value);
    call.op = Op::kShmAt;
    call.number = 2;
    call.id = id;
    send(fd.get(), call);
    ASSERT_GT(receive(fd.get(), &answer), 0);
    ASSERT_EQ(answer.error, 0);
  }
  const UniqueFd fd = connect();
  Stat stat;
  Call call;
  call.op = Op::kShmCtl;
  call.cmd = 2;
  call.id = id;
  for (int i = 0; i < 1000; ++i) {
    call.number = static_cast<uint64_t>(i) + 1;
    send(fd.get(), call);
    std::byte bytes[sizeof answer + sizeof stat];
    ASSERT_TRUE(readable(fd.get()));
    ASSERT_EQ(::recv(fd.get(), bytes, sizeof bytes, 0), static_cast<ssize_t>(sizeof bytes));
    std::memcpy(&stat, bytes + sizeof answer, sizeof stat);
    if (stat.count == 0) {
      break;
    }
  }
  EXPECT_EQ(stat.count, 0u);
}

TEST_F(ServiceTest, ASocketThatIsServedIsNotTakenAndAStaleOneIs) {
  cluster.on_loop([&] {
    const auto second =
        Service::create({NodeId(1), cluster.socket(0)}, &cluster.loop(), nullptr, &cluster.node(0));
    ASSERT_FALSE(second.has_value());
    EXPECT_EQ(second.error().code, Errc::kExists);
    const auto bad =
        Service::create({NodeId(1), std::string(200, 'x')}, &cluster.loop(), nullptr, &cluster.node(0));
    ASSERT_FALSE(bad.has_value());
    EXPECT_EQ(bad.error().code, Errc::kInvalid);
  });
  const std::string stale = cluster.socket(7);
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, stale.c_str());
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  fd.reset();
  cluster.on_loop([&] {
    const auto taken = Service::create({NodeId(1), stale}, &cluster.loop(), nullptr, &cluster.node(0));
    EXPECT_TRUE(taken.has_value()) << taken.error().text;
  });
}

TEST(LogLimit, AProgramCannotFillTheLog) {
  LogLimit limit;
  int lines = 0;
  for (Nanos now = 1; now < 2 * LogLimit::kPeriodNs; now += LogLimit::kPeriodNs / 1000) {
    lines += limit.allow(now) ? 1 : 0;
  }
  EXPECT_EQ(lines, 2 * LogLimit::kLines);
}

}  // namespace
}  // namespace kevre::ipc::testing
