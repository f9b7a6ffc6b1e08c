#include "base/fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>

using kevre::UniqueFd;

namespace {
bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }
std::array<UniqueFd, 2> socket_pair(int type) {
  int fds[2];
  EXPECT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}
}  // namespace

TEST(UniqueFds, CloseOnceWhenTheOwnerGoes) {
  int raw = -1;
  {
    UniqueFd a(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    raw = a.get();
    const UniqueFd b = std::move(a);
    EXPECT_FALSE(a);
    EXPECT_TRUE(is_open(raw));
  }
  EXPECT_FALSE(is_open(raw));
}

TEST(FdPassing, BytesAndDescriptorsArriveTogether) {
  auto pair = socket_pair(SOCK_SEQPACKET);
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const std::array<std::byte, 3> bytes{std::byte{1}, std::byte{2}, std::byte{3}};
  const std::array<int, 2> fds{null.get(), null.get()};
  ASSERT_TRUE(kevre::send_with_fds(pair[0].get(), bytes, fds));
  std::array<std::byte, 16> buffer{};
  const auto got = kevre::receive_with_fds(pair[1].get(), buffer);
  ASSERT_TRUE(got) << got.error().text;
  EXPECT_EQ(got->bytes, 3u);
  EXPECT_EQ(std::memcmp(buffer.data(), bytes.data(), 3), 0);
  ASSERT_EQ(got->fds.size(), 2u);
  EXPECT_TRUE(is_open(got->fds[0].get()));
}

TEST(FdPassing, ARecordLongerThanTheBufferIsCorruptAndLeaksNoDescriptor) {
  auto pair = socket_pair(SOCK_SEQPACKET);
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const std::array<std::byte, 64> bytes{};
  const std::array<int, 1> fds{null.get()};
  ASSERT_TRUE(kevre::send_with_fds(pair[0].get(), bytes, fds));
  const int next_free = ::dup(0);
  ::close(next_free);
  std::array<std::byte, 8> buffer{};
  const auto got = kevre::receive_with_fds(pair[1].get(), buffer);
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, kevre::Errc::kCorrupt);
  EXPECT_FALSE(is_open(next_free));
}

TEST(FdPassing, AClosedPeerIsAnErrorNotASignal) {
  auto pair = socket_pair(SOCK_STREAM);
  pair[1].reset();
  const std::array<std::byte, 1> bytes{};
  EXPECT_EQ(kevre::send_with_fds(pair[0].get(), bytes, {}).error().code, kevre::Errc::kPeerLost);
}

TEST(FdPassing, TooManyDescriptorsAreRefused) {
  auto pair = socket_pair(SOCK_STREAM);
  const std::array<int, 9> fds{};
  EXPECT_EQ(kevre::send_with_fds(pair[0].get(), {}, fds).error().code, kevre::Errc::kInvalid);
}
