#include "transport/verbs/verbs_transport.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

namespace kevre::transport::verbs {
namespace {

constexpr Nanos kShutdown = 400 * kMillisecond;
constexpr uint32_t kIdleTurnsBetweenLooks = 32;
constexpr int kPollBatch = 32;
constexpr int kBatchesPerTurn = 8;

}  // namespace

Result<std::unique_ptr<Transport>> VerbsTransport::create(const Options& options) {
  std::unique_ptr<VerbsTransport> transport(new VerbsTransport(options));
  KEVRE_TRY(transport->start());
  return transport;
}

Result<void> VerbsTransport::start() {
  KEVRE_ASSIGN(device_, OpenDevice::open(options_));
  messages_ = std::make_unique<MessagePool>(device_.get());
  KEVRE_TRY(messages_->start());
  KEVRE_TRY(device_->make_room(device_->limits().receive_buffers));
  wake_.reset(::epoll_create1(EPOLL_CLOEXEC));
  timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!wake_ || !timer_) {
    return fail_errno("epoll_create1 or timerfd_create");
  }
  for (const int fd :
       {device_->channel()->fd, device_->completions()->fd, device_->context()->async_fd, timer_.get()}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (::epoll_ctl(wake_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return fail_errno("epoll_ctl");
    }
  }
  return {};
}

Address VerbsTransport::local_address() const {
  return encode_address({options_.self, device_->port(), device_->subnet()});
}

void VerbsTransport::disconnect(NodeId peer) {
  if (link_of(peer) != nullptr) {
    ended(rules_.take(peer));
  }
}

Capabilities VerbsTransport::capabilities(NodeId peer) const {
  Capabilities capabilities;
  const Link* link = link_of(peer);
  if (link != nullptr && link->open) {
    capabilities.read = true;
    capabilities.write = true;
    capabilities.atomic = device_->limits().atomics && link->peer_atomics;
    capabilities.via = "rc";
    capabilities.backend = "verbs";
  }
  return capabilities;
}

size_t VerbsTransport::queued_bytes(NodeId peer) const {
  const Link* link = link_of(peer);
  return link == nullptr ? 0 : link->queued_bytes;
}

// The sender learns it from the end of its connection.
void VerbsTransport::refuse(LinkState* link, uint64_t from_link) {
  for (const auto& [number, accepted] : accepted_) {
    if (accepted->from == link->peer && accepted->from_link == from_link) {
      end_accepted(accepted.get());
    }
  }
}

// Lost, or disconnected by us: the peer learns both that we send no more and that its own link is dead for
// us.
void VerbsTransport::ended(std::unique_ptr<LinkState> state) {
  std::unique_ptr<Link> link(static_cast<Link*>(state.release()));
  for (const auto& [number, accepted] : accepted_) {
    if (accepted->from == link->peer && accepted->from_link == link->remote) {
      end_accepted(accepted.get());
    }
  }
  end_in_order(link.get());
  ended_.push_back(std::move(link));
}

void VerbsTransport::lose(Link* link, std::string why) {
  link->disconnected = true;
  rules_.note_lost(link, Error{Errc::kPeerLost, 0, fmt::format("node {}: {}", link->peer, why)});
}

void VerbsTransport::lose_device(const std::string& why) {
  if (!broken_.empty()) {
    return;
  }
  broken_ = why;
  KEVRE_LOG_ERROR("verbs: {}", why);
  for (const int fd : {device_->completions()->fd, device_->context()->async_fd}) {
    ::epoll_ctl(wake_.get(), EPOLL_CTL_DEL, fd, nullptr);  // they would be ready for ever
  }
  for (const auto& [number, link] : outgoing_) {
    lose(link, why);
    link->deadline = 0;
  }
  for (const auto& [number, accepted] : accepted_) {
    end_accepted(accepted.get());
    accepted->close_at = 0;
  }
}

// ---- progress

int VerbsTransport::progress() {
  KEVRE_CHECK(!in_progress_, "a handler called progress()");
  in_progress_ = true;
  const size_t drains = drains_.size();
  int done = rules_.act_on_notes();
  const bool look = look_at_wake_ups() || look_now_ || ++idle_turns_ >= kIdleTurnsBetweenLooks;
  // Before a connection's end is acted upon, what came over it is handed up.
  const int polled = poll_completions(look || drains > 0);
  done += polled;
  if (look) {
    done += look_at_device();
  }
  if (room_for_starved_) {
    room_for_starved_ = false;
    for (const auto& [number, link] : outgoing_) {
      pump(link);
    }
  }
  done += rules_.act_on_notes();
  done += answer_drains(drains);
  if (!ended_.empty() || accepted_over_) {
    done += close_what_ended();
  }
  in_progress_ = false;
  return done;
}

// After a sleep: takes the completion queue's event, if that was it. True: one of the device's other events was.
bool VerbsTransport::look_at_wake_ups() {
  if (!std::exchange(slept_, false)) {
    return false;
  }
  std::array<epoll_event, 4> ready;
  const int count = ::epoll_wait(wake_.get(), ready.data(), static_cast<int>(ready.size()), 0);
  bool others = false;
  for (int i = 0; i < count; ++i) {
    if (ready[static_cast<size_t>(i)].data.fd != device_->completions()->fd) {
      others = true;
      continue;
    }
    ibv_cq* cq = nullptr;
    void* context = nullptr;
    if (ibv_get_cq_event(device_->completions(), &cq, &context) == 0) {
      ibv_ack_cq_events(device_->cq(), 1);
      armed_ = false;
    }
  }
  return others;
}

int VerbsTransport::look_at_device() {
  look_now_ = false;
  idle_turns_ = 0;
  int done = take_connection_events();
  look_at_async_events();
  report_peer_ends();
  return done + keep_deadlines();
}

int VerbsTransport::poll_completions(bool until_empty) {
  if (!broken_.empty()) {
    stash_.clear();
    return 0;
  }
  int done = static_cast<int>(stash_.size());
  for (const ibv_wc& completion : std::exchange(stash_, {})) {
    handle(completion);
  }
  std::array<ibv_wc, kPollBatch> batch;
  const uint64_t enough = polled_ + static_cast<uint64_t>(device_->cq()->cqe) + 1;
  for (int i = 0; until_empty ? polled_ < enough : i < kBatchesPerTurn; ++i) {
    const int got = ibv_poll_cq(device_->cq(), kPollBatch, batch.data());
    if (got < 0) {
      lose_device("its completion queue cannot be read");
      break;
    }
    polled_ += static_cast<uint64_t>(got);
    done += got;
    for (int k = 0; k < got && broken_.empty(); ++k) {
      handle(batch[static_cast<size_t>(k)]);
    }
    if (got < kPollBatch) {
      break;
    }
  }
  return done;
}

void VerbsTransport::handle(const ibv_wc& completion) {
  switch (static_cast<Tag>(completion.wr_id >> 60)) {
    case Tag::kReceive:
      on_chunk(completion);
      return;
    case Tag::kSend:
      on_sent(completion);
      return;
    case Tag::kCredit:
      on_credit(completion);
      return;
    case Tag::kAnswer:  // a credit that did not arrive: the connection is over, which its end tells us as
                        // well
      return;
  }
}

// Why an answer means what transport.h says. A peer's read of our memory and the messages it sent before
// stand in one send queue; our device executes them in order, and the completion of a receive is written to
// the completion queue before the next request of that queue pair is executed (on PCIe the device's write of
// it goes ahead of the read). So when a read saw the old contents, the completions of all chunks sent before
// it were in the queue before the memory changed, that is before drain_arrivals() was called. Polling until
// the queue is empty once (or, when more and more comes, as many completions as the queue can hold) hands
// them all up: nothing is kept back for a predecessor, RC does not reorder, and messages held for a connect()
// that has happened by now are handed up before the polling.
Result<void> VerbsTransport::drain_arrivals(std::function<void()> done) {
  std::atomic_thread_fence(std::memory_order_seq_cst);  // the change before the polling
  drains_.push_back(std::move(done));
  return {};
}

int VerbsTransport::answer_drains(size_t asked_before) {
  if (asked_before == 0) {
    return 0;
  }
  std::vector<std::function<void()>> due(
      std::make_move_iterator(drains_.begin()),
      std::make_move_iterator(drains_.begin() + static_cast<std::ptrdiff_t>(asked_before)));
  drains_.erase(drains_.begin(), drains_.begin() + static_cast<std::ptrdiff_t>(asked_before));
  for (const auto& done : due) {
    done();
  }
  return static_cast<int>(asked_before);
}

void VerbsTransport::look_at_async_events() {
  ibv_async_event event{};
  while (ibv_get_async_event(device_->context(), &event) == 0) {
    const ibv_event_type type = event.event_type;
    const uint32_t queue_pair = type == IBV_EVENT_QP_LAST_WQE_REACHED ? event.element.qp->qp_num : 0;
    ibv_ack_async_event(&event);
    if (type == IBV_EVENT_DEVICE_FATAL || type == IBV_EVENT_SRQ_ERR || type == IBV_EVENT_CQ_ERR) {
      lose_device(fmt::format("the RDMA device failed: {}", ibv_event_type_str(type)));
    } else if (const auto found = by_queue_pair_.find(queue_pair);
               queue_pair != 0 && found != by_queue_pair_.end()) {
      found->second->drained = true;
      accepted_over_ = accepted_over_ || found->second->over;
    }
  }
}

// A peer that ended its link, after everything that it sent before was handed up.
void VerbsTransport::report_peer_ends() {
  for (const auto& [number, accepted] : accepted_) {
    if (!accepted->peer_ended || accepted->over) {
      continue;
    }
    Link* link = link_of(accepted->from);
    if (link != nullptr && link->open && link->remote == accepted->from_link) {
      lose(link, "it ended the connection");
    }
    end_accepted(accepted.get());
  }
}

Nanos VerbsTransport::next_deadline() const {
  Nanos next = 0;
  const auto take = [&next](Nanos when) { next = when != 0 && (next == 0 || when < next) ? when : next; };
  for (const auto& [number, link] : outgoing_) {
    take(link->state == Link::State::kUp ? 0 : link->deadline);
  }
  for (const auto& [number, accepted] : accepted_) {
    take(accepted->over ? std::max<Nanos>(accepted->close_at, 1) : 0);
  }
  return next;
}

int VerbsTransport::keep_deadlines() {
  const Nanos next = next_deadline();
  if (next == 0) {
    return 0;
  }
  const Nanos now = now_ns();
  if (now < next) {
    return 0;
  }
  for (const auto& [number, link] : outgoing_) {
    if (link->state == Link::State::kConnecting && link->deadline != 0 && link->deadline <= now) {
      lose(link, "it does not answer the connection request");
    }
  }
  return 1 + close_what_ended();
}

int VerbsTransport::close_what_ended() {
  int done = 0;
  const Nanos now = now_ns();
  std::vector<std::unique_ptr<Link>> closing;
  for (auto& link : ended_) {
    const bool finished = link->line.empty() && link->posted.empty();
    if (finished || link->disconnected || link->state != Link::State::kEnding || link->deadline <= now) {
      closing.push_back(std::move(link));
    }
  }
  std::erase(ended_, nullptr);
  for (const auto& link : closing) {
    close(link.get());
    ++done;
  }
  accepted_over_ = false;
  for (auto i = accepted_.begin(); i != accepted_.end();) {
    Accepted* accepted = i->second.get();
    if (!accepted->over || (!accepted->drained && accepted->close_at > now)) {
      ++i;
      continue;
    }
    // What the device had taken of the shared receive queue is in the completion queue by now.
    poll_completions(true);
    by_queue_pair_.erase(accepted->queue_pair);
    rdma_destroy_qp(accepted->id);
    rdma_destroy_id(accepted->id);
    receive_promised_ -= accepted->window.window();
    i = accepted_.erase(i);
    ++done;
  }
  return done;
}

// ---- sleeping

bool VerbsTransport::arm() {
  if (rules_.has_notes() || look_now_ || room_for_starved_ || !drains_.empty() || !stash_.empty() ||
      accepted_over_) {
    return false;
  }
  if (broken_.empty() && !arm_completions()) {
    return false;
  }
  set_timer();
  slept_ = true;
  return true;
}

// False: something is there already. An event that was not taken yet (armed_) ends the sleep at once.
bool VerbsTransport::arm_completions() {
  if (!armed_) {
    if (const int failed = ibv_req_notify_cq(device_->cq(), 0); failed != 0) {
      lose_device(fmt::format("its completion queue cannot be armed: {}", std::strerror(failed)));
      return false;
    }
    armed_ = true;
  }
  // What came before the queue was armed, or was left by the last turn, wakes nobody.
  stash_.resize(kPollBatch);
  const int got = ibv_poll_cq(device_->cq(), kPollBatch, stash_.data());
  stash_.resize(static_cast<size_t>(std::max(got, 0)));
  polled_ += stash_.size();
  return stash_.empty();
}

void VerbsTransport::set_timer() {
  const Nanos next = next_deadline();
  if (next == 0 && !timer_set_) {
    return;
  }
  itimerspec when{};
  when.it_value.tv_sec = next / kSecond;
  when.it_value.tv_nsec = next % kSecond;
  ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);  // also takes back that it was due
  timer_set_ = next != 0;
}

// ---- the end

// What was sent goes out first, as long as peers take it.
void VerbsTransport::shut_down() {
  rules_.silence();
  silent_ = true;
  drains_.clear();
  std::vector<NodeId> peers;
  rules_.for_each([&](LinkState* link) { peers.push_back(link->peer); });
  for (const NodeId peer : peers) {
    disconnect(peer);
  }
  const Nanos deadline = now_ns() + kShutdown;
  while ((!ended_.empty() || !accepted_.empty()) && now_ns() < deadline && broken_.empty()) {
    look_now_ = true;
    accepted_over_ = true;
    progress();
    for (const auto& [number, accepted] : accepted_) {
      accepted->drained = accepted->drained || ended_.empty();
      end_accepted(accepted.get());
    }
  }
  for (const auto& link : ended_) {
    close(link.get());
  }
  ended_.clear();
  for (const auto& [number, accepted] : accepted_) {
    rdma_destroy_qp(accepted->id);
    rdma_destroy_id(accepted->id);
  }
  accepted_.clear();
}

VerbsTransport::~VerbsTransport() {
  if (timer_) {
    shut_down();
  }
}

}  // namespace kevre::transport::verbs
