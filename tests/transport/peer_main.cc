// transport_peer: the other process of ucx_process_test and verbs_process_test. Talks over the socket that is its descriptor 3:
// sends its transport address, gets node 1's, then answers every message of node 1 with the same bytes until
// the socket closes. Usage: transport_peer ID TLS|verbs [MODE]
//   flood   sends numbered messages as fast as it may
//   region  registers a region of kRegionBytes, byte i being i * 7 modulo 251 but for a word of zero at its end, and sends its
//           key as the header of a message
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "transport/transport.h"

namespace {

using namespace kevre;  // NOLINT: a small program
constexpr int kSocket = 3;
constexpr NodeId kParent{1};
constexpr size_t kRegionBytes = size_t{1} << 20;

class Peer : public transport::Handler {
 public:
  void on_message(NodeId from, std::span<const std::byte> header,
                  std::span<const std::byte> payload) override {
    // A flooding peer may be busy: its answers do not matter then.
    const auto sent = transport->send(from, transport::Service::kTest, header, payload);
    if (!sent && sent.error().code != Errc::kBusy) {
      std::fprintf(stderr, "transport_peer: %s\n", sent.error().text.c_str());
    }
  }
  void on_peer_lost(NodeId, const Error&) override { loop->stop(); }
  Result<void> offer_region() {
    for (size_t i = 0; i + sizeof(uint64_t) < region.size(); ++i) {
      region[i] = static_cast<std::byte>(i * 7 % 251);
    }
    KEVRE_ASSIGN(const transport::RegionKey key, transport->register_region(region));
    return transport->send(kParent, transport::Service::kTest, std::span(key.bytes).first(key.size),
                           std::span<const std::byte>());
  }
  void flood() {
    const std::array<std::byte, 3000> payload{};
    while (true) {
      const auto header = std::as_bytes(std::span(&next, 1));
      if (!transport->send(kParent, transport::Service::kTest, header, payload)) {
        break;
      }
      ++next;
      if (next % 64 == 0) {
        break;
      }
    }
    loop->after(0, [this] { flood(); });
  }

  std::unique_ptr<EventLoop> loop;
  std::unique_ptr<transport::Transport> transport;
  uint64_t next = 0;
  std::vector<std::byte> region = std::vector<std::byte>(kRegionBytes);
};

Result<void> run(int argc, char** argv) {
  Peer peer;
  KEVRE_ASSIGN(peer.loop, EventLoop::create());
  transport::Options options;
  options.self = NodeId(static_cast<uint16_t>(std::strtoul(argv[1], nullptr, 10)));
  const std::string carrier = argv[2];
  const std::string mode = argc > 3 ? argv[3] : "";
  options.kind = carrier == "verbs" ? "verbs" : "ucx";
  options.ucx_tls = carrier == "auto" ? "" : carrier;
  options.bind_address = carrier == "verbs" ? "" : "127.0.0.1";
  options.cluster_tag = 77;
  options.peer_queue_bytes_max = 1 << 20;
  KEVRE_ASSIGN(peer.transport, transport::create(options));
  peer.transport->set_handler(transport::Service::kTest, &peer);
  KEVRE_TRY(peer.loop->add_poller(peer.transport.get()));
  const transport::Address mine = peer.transport->local_address();
  std::array<std::byte, transport::kAddressBytesMax> address;
  if (::send(kSocket, mine.data(), mine.size(), MSG_NOSIGNAL) < 0) {
    return fail_errno("send");
  }
  const ssize_t got = ::recv(kSocket, address.data(), address.size(), 0);
  if (got <= 0) {
    return fail(Errc::kPeerLost, "no address came");
  }
  KEVRE_TRY(peer.transport->connect(kParent, std::span(address).first(static_cast<size_t>(got))));
  KEVRE_TRY(peer.loop->add(kSocket, EPOLLIN, [&](uint32_t) { peer.loop->stop(); }));
  if (mode == "flood") {
    peer.flood();
  } else if (mode == "region") {
    KEVRE_TRY(peer.offer_region());
  }
  peer.loop->run();
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  log_start("transport_peer");
  if (argc < 3) {
    return 2;
  }
  if (const auto done = run(argc, argv); !done) {
    std::fprintf(stderr, "transport_peer: %s\n", done.error().text.c_str());
    return 1;
  }
  return 0;
}
