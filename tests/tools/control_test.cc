#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <string>
#include <thread>

#include "base/clock.h"
#include "tools/control_client.h"
#include "tools/control_server.h"
#include "tools/sockets.h"

using namespace kevre;
using namespace kevre::tools;

namespace {

std::string socket_path(const char* name) { return "/tmp/kevre-control-test-" + std::to_string(::getpid()) + "-" + name; }

// A server on a loop of its own thread that answers each request with itself, and each stdin frame with stdout.
class Echo {
 public:
  explicit Echo(const char* name) : path(socket_path(name)), loop_(std::move(*EventLoop::create())) {
    auto server = ControlServer::create(loop_.get(), path, [](ControlConnection& c) {
      c.on_frame = [&c](FrameKind kind, std::span<const std::byte> bytes) {
        c.send(kind == FrameKind::kStdin ? FrameKind::kStdout : kind, bytes);
        if (kind == FrameKind::kSignal) {
          c.close();
        }
      };
    });
    EXPECT_TRUE(server) << server.error().text;
    server_ = std::move(*server);
    thread_ = std::thread([this] { loop_->run(); });
  }
  ~Echo() {
    loop_->stop();
    thread_.join();
  }
  const std::string path;

 private:
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<ControlServer> server_;
  std::thread thread_;
};

}  // namespace

TEST(ControlWire, FramesSurviveAnyCutOfTheStream) {
  std::vector<std::byte> stream;
  append_frame(stream, FrameKind::kStdout, as_bytes("first"));
  append_frame(stream, FrameKind::kExit, {});
  append_frame(stream, FrameKind::kStdin, as_bytes(std::string(1000, 'x')));
  for (size_t piece = 1; piece < stream.size(); piece += 7) {
    FrameReader reader;
    std::string seen;
    for (size_t at = 0; at < stream.size(); at += piece) {
      ASSERT_TRUE(reader.feed(std::span(stream).subspan(at, std::min(piece, stream.size() - at)), [&](FrameKind kind, auto bytes) {
        seen += std::to_string(static_cast<int>(kind)) + ":" + std::to_string(bytes.size()) + " ";
      }));
    }
    EXPECT_EQ(seen, "3:5 7:0 2:1000 ");
  }
}

TEST(ControlWire, UnknownKindsAndHugeLengthsAreCorrupt) {
  for (const std::string& bad : {std::string("\x01\0\0\0\x63", 5), std::string("\xff\xff\xff\x7f\x01", 5), std::string("\0\0\0\0\0", 5)}) {
    FrameReader reader;
    EXPECT_EQ(reader.feed(as_bytes(bad), [](FrameKind, auto) {}).error().code, Errc::kCorrupt);
  }
}

TEST(Control, ARequestIsAnsweredAndAnErrorInTheAnswerIsAnError) {
  const Echo echo("answer");
  auto client = ControlClient::connect(echo.path);
  ASSERT_TRUE(client) << client.error().text;
  EXPECT_EQ((*client->call({{"do", "x"}}))["do"], "x");
  EXPECT_EQ(client->call({{"error", "no such thing"}}).error().text, "no such thing");
  EXPECT_EQ(client->daemon_pid(), ::getpid());
}

TEST(Control, MegabytesGoBothWays) {
  const Echo echo("bulk");
  auto client = ControlClient::connect(echo.path);
  ASSERT_TRUE(client);
  const std::string piece(100'000, 'y');
  size_t got = 0;
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(client->send(FrameKind::kStdin, as_bytes(piece)));
    while (got < static_cast<size_t>(i + 1) * piece.size()) {
      ASSERT_TRUE(*client->receive([&](FrameKind, auto bytes) { got += bytes.size(); }));
    }
  }
}

TEST(Control, CloseFlushesFirst) {
  const Echo echo("close");
  auto client = ControlClient::connect(echo.path);
  ASSERT_TRUE(client->send(FrameKind::kStdin, as_bytes(std::string(900'000, 'z'))));
  ASSERT_TRUE(client->send(FrameKind::kSignal, as_bytes("k")));
  size_t got = 0;
  while (*client->receive([&](FrameKind, auto bytes) { got += bytes.size(); })) {
  }
  EXPECT_EQ(got, 900'001u);
}

TEST(Control, NobodyListensSaysHowToStart) {
  const auto client = ControlClient::connect(socket_path("nobody"));
  EXPECT_EQ(client.error().code, Errc::kNotFound);
  EXPECT_NE(client.error().text.find("kevre cluster up"), std::string::npos);
}

TEST(Control, EveryByteStringSurvivesJson) {
  std::string all;
  for (int i = 1; i < 256; ++i) {
    all += static_cast<char>(i);
  }
  const auto back = nlohmann::json::parse(nlohmann::json(bytes_to_json(all)).dump());
  EXPECT_EQ(*bytes_from_json(back), all);
  EXPECT_EQ(bytes_from_json(nlohmann::json("\u20ac")).error().code, Errc::kCorrupt);
  EXPECT_EQ(bytes_from_json(nlohmann::json(5)).error().code, Errc::kCorrupt);
}

TEST(Control, DrainedIsSaidAlsoWhenALaterSendFoundTheRoom) {
  auto loop = std::move(*EventLoop::create());
  const std::string path = socket_path("drained");
  std::atomic<size_t> read_by_client{0};
  std::atomic<bool> drained{false};
  auto server = ControlServer::create(loop.get(), path, [&](ControlConnection& c) {
    c.on_drained = [&] { drained = true; };
    c.on_frame = [&](FrameKind, std::span<const std::byte>) {
      size_t queued = 0;
      while (c.queued_bytes() == 0) {
        c.send(FrameKind::kStdout, as_bytes(std::string(100'000, 'q')));
        queued += 100'000 + kFrameHeaderBytes;
      }
      // The loop does not turn until there is room for all of it again.
      while (read_by_client < queued - c.queued_bytes()) {
        std::this_thread::yield();
      }
      while (c.queued_bytes() > 0) {
        c.send(FrameKind::kCredit, as_bytes("more"));
      }
    };
  });
  ASSERT_TRUE(server);
  std::thread turning([&] { loop->run(); });
  auto client = ControlClient::connect(path);
  ASSERT_TRUE(client->send(FrameKind::kSignal, as_bytes("g")));
  std::array<std::byte, 65536> buffer;
  const Nanos deadline = now_ns() + 20 * kSecond;
  while (!drained && now_ns() < deadline) {
    const ssize_t got = ::recv(client->socket(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    read_by_client += static_cast<size_t>(std::max<ssize_t>(got, 0));
  }
  EXPECT_TRUE(drained);
  loop->stop();
  turning.join();
}
