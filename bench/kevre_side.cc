#include "bench/kevre_side.h"

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/event_loop.h"
#include "transport/transport.h"

namespace kevre::bench {
namespace {

using transport::Service;
constexpr NodeId kClient{1};
constexpr NodeId kServer{2};

class Kevre final : public Side, public transport::Handler {
 public:
  ~Kevre() override {
    if (loop_ != nullptr && transport_ != nullptr) {
      loop_->remove_poller(transport_.get());
    }
  }
  Result<void> open(const Options& options, const std::string& kind, int socket, bool server);

  Result<void> request(const Head& head, size_t bytes) override;
  Result<void> wait(bool sleeping) override;
  bool can(Verb verb) const override {
    const transport::Capabilities can = transport_->capabilities(peer_);
    switch (verb) {
      case Verb::kMessage: return true;
      case Verb::kRead: return can.read && key_.size > 0;
      case Verb::kFetchAdd: return can.atomic && key_.size > 0;
    }
    return false;
  }
  Result<void> start(Verb verb, size_t bytes, uint32_t slot) override;
  std::string about() const override {
    const transport::Capabilities can = transport_->capabilities(peer_);
    return fmt::format("{} {}", can.backend, can.via);
  }

  void on_message(NodeId from, std::span<const std::byte> header, std::span<const std::byte> payload) override;
  void on_peer_lost(NodeId, const Error& why) override { lose(why); }

 private:
  Result<void> exchange_keys(int socket);
  void lose(const Error& why) {
    lost_ = true;
    why_ = why;
  }

  std::vector<std::byte> memory_ = std::vector<std::byte>(kBytesMax * kWindowMax);
  std::vector<std::byte> out_ = std::vector<std::byte>(kBytesMax);
  std::unique_ptr<transport::Transport> transport_;
  std::unique_ptr<EventLoop> loop_;
  transport::RegionKey key_;  // the peer's; size 0: no one-sided operations
  NodeId peer_;
  bool lost_ = false;
  Error why_;
};

Result<void> Kevre::open(const Options& options, const std::string& kind, int socket, bool server) {
  transport::Options mine;
  mine.self = server ? kServer : kClient;
  mine.kind = kind;
  mine.ucx_tls = options.tls;
  mine.bind_address = options.bind_address;
  mine.cluster_tag = 7;
  peer_ = server ? kClient : kServer;
  KEVRE_ASSIGN(transport_, transport::create(mine));
  transport_->set_handler(Service::kBench, this);
  KEVRE_ASSIGN(loop_, EventLoop::create());
  KEVRE_TRY(loop_->add_poller(transport_.get()));
  const transport::Address address = transport_->local_address();
  KEVRE_TRY(give(socket, address.data(), address.size()));
  KEVRE_ASSIGN(const std::vector<std::byte> theirs, take(socket, transport::kAddressBytesMax));
  KEVRE_TRY(transport_->connect(peer_, theirs));
  return exchange_keys(socket);
}

Result<void> Kevre::exchange_keys(int socket) {
  const auto mine = transport_->register_region(memory_);
  KEVRE_TRY(give(socket, mine ? mine->bytes.data() : nullptr, mine ? mine->size : 0));
  KEVRE_ASSIGN(const std::vector<std::byte> theirs, take(socket, key_.bytes.size()));
  std::copy(theirs.begin(), theirs.end(), key_.bytes.begin());
  key_.size = static_cast<uint16_t>(theirs.size());
  return {};
}

Result<void> Kevre::request(const Head& head, size_t bytes) {
  while (true) {
    const auto sent = transport_->send(peer_, Service::kBench, std::as_bytes(std::span(&head, 1)),
                                       std::span<const std::byte>(out_).first(bytes));
    if (sent || sent.error().code != Errc::kBusy) {
      return sent;
    }
    KEVRE_TRY(wait(false));
  }
}

void Kevre::on_message(NodeId, std::span<const std::byte> header, std::span<const std::byte> payload) {
  if (header.size() != sizeof(Head)) {
    return;
  }
  if (peer_ == kServer) {
    ++replies;
    return;
  }
  std::memcpy(&last_request, header.data(), sizeof last_request);
  (void)payload;
  if (last_request.want_reply != 0) {
    const size_t bytes = std::min<size_t>(last_request.reply_bytes, out_.size());
    const auto sent =
        transport_->send(peer_, Service::kBench, header, std::span<const std::byte>(out_).first(bytes));
    if (!sent) {
      lose(sent.error());
    }
  }
}

Result<void> Kevre::start(Verb verb, size_t bytes, uint32_t slot) {
  const auto done = [this](const Result<uint64_t>& value) {
    ++finished;
    if (!value) {
      lose(value.error());
    }
  };
  const size_t offset = slot * kBytesMax;
  while (true) {
    const auto started =
        verb == Verb::kRead
            ? transport_->read(peer_, {&key_, offset}, std::span(memory_).subspan(offset, bytes), done)
            : transport_->fetch_add(peer_, {&key_, 0}, 1, done);
    if (started || started.error().code != Errc::kBusy) {
      return started;
    }
    KEVRE_TRY(wait(false));
  }
}

Result<void> Kevre::wait(bool sleeping) {
  if (sleeping) {
    loop_->turn(kSecond);
  } else {
    transport_->progress();
  }
  if (lost_ && last_request.stop == 0) {
    return tl::unexpected(why_);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Side>> kevre_side(const Options& options, const std::string& kind, int socket, bool server) {
  auto side = std::make_unique<Kevre>();
  KEVRE_TRY(side->open(options, kind, socket, server));
  return side;
}

}  // namespace kevre::bench
