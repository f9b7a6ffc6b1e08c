#include "ipc/seat_link.h"

#include <sys/sysinfo.h>

#include <cstring>
#include <ctime>

#include "base/check.h"
#include "base/log.h"

namespace kevre::ipc {
namespace {
constexpr size_t kHeldMax = 65536;

int64_t wall_seconds() {
  return static_cast<int64_t>(::time(nullptr));
}

// RAM and swap of this machine; 0: not known.
uint64_t memory_here() {
  struct sysinfo info;
  return ::sysinfo(&info) == 0 ? (uint64_t{info.totalram} + info.totalswap) * info.mem_unit : 0;
}

SeatMessage from_who(SeatMessage::Kind kind, const SeatLink::Who& who) {
  SeatMessage message;
  message.kind = kind;
  message.process = who.process;
  message.pid = who.pid;
  return message;
}
}  // namespace

SeatLink::SeatLink(NodeId self, transport::Transport* transport, OnDestroy on_destroy)
    : self_(self), transport_(transport), on_destroy_(std::move(on_destroy)) {
  if (transport_ != nullptr) {
    transport_->set_handler(transport::Service::kIpc, this);
  }
}

SeatLink::~SeatLink() {
  if (transport_ != nullptr) {
    transport_->set_handler(transport::Service::kIpc, nullptr);
  }
}

void SeatLink::call(uint64_t number, const Who& who, const Call& call, std::span<const std::byte> payload,
                    Done done) {
  waiting_.emplace(number, std::move(done));
  ++(has_seat() ? calls_local_ : calls_remote_);
  SeatMessage message = from_who(SeatMessage::Kind::kCall, who);
  message.call = call;
  message.call.number = number;
  // The effective ids that were verified, whatever the program wrote.
  message.call.uid = who.credentials.uid;
  message.call.gid = who.credentials.gid;
  message.groups = static_cast<uint16_t>(std::min<size_t>(who.credentials.groups.size(), 0xffff));
  send_to_seat(message, std::span(who.credentials.groups).first(message.groups), payload);
}

void SeatLink::cancel(uint64_t number, int error) {
  if (!waiting_.contains(number)) {
    return;
  }
  SeatMessage message;
  message.kind = SeatMessage::Kind::kCancel;
  message.call.number = number;
  message.call.cmd = error;
  send_to_seat(message, {}, {});
}

void SeatLink::forget(uint64_t number) {
  const auto call = waiting_.find(number);
  if (call != waiting_.end()) {
    call->second = [](const Answer&, std::span<const std::byte>) {};
    cancel(number, EINTR);
  }
}

void SeatLink::tell(const Who& who, const Call& call) {
  SeatMessage message = from_who(SeatMessage::Kind::kCall, who);
  message.call = call;
  send_to_seat(message, {}, {});
}

void SeatLink::process_gone(uint64_t process, uint32_t pid) {
  SeatMessage message = from_who(SeatMessage::Kind::kProcessGone, Who{process, pid, {}});
  send_to_seat(message, {}, {});
}

void SeatLink::send_to_seat(SeatMessage message, std::span<const uint32_t> groups,
                            std::span<const std::byte> payload) {
  if (has_seat()) {
    return rule(self_, message, groups, payload);
  }
  const auto group_bytes = std::as_bytes(groups);
  std::vector<std::byte> bytes(group_bytes.begin(), group_bytes.end());
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  if (view_.members.empty()) {
    unsent_.push_back({message, std::move(bytes)});
    return;
  }
  send(view_.coordinator(), message, bytes);
}

void SeatLink::send(NodeId to, const SeatMessage& message, std::span<const std::byte> payload) {
  Record record{message, {payload.begin(), payload.end()}};
  record.message.view = view_.id.value;
  auto& queue = outbox_[to];
  if (!queue.empty() || !try_send(to, record)) {
    queue.push_back(std::move(record));
  }
}

// False: no room, keep it. What a lost peer does not get is settled by the next view.
bool SeatLink::try_send(NodeId to, const Record& record) {
  if (transport_ == nullptr) {
    return true;
  }
  const auto sent =
      transport_->send(to, transport::Service::kIpc, std::as_bytes(std::span(&record.message, 1)),
                       std::span<const std::byte>(record.payload));
  if (!sent && sent.error().code == Errc::kBusy) {
    return false;
  }
  if (!sent) {
    KEVRE_LOG_DEBUG("ipc: message to node {} not sent: {}", to, sent.error().text);
  }
  return true;
}

void SeatLink::on_writable(NodeId peer) {
  auto& queue = outbox_[peer];
  while (!queue.empty() && try_send(peer, queue.front())) {
    queue.pop_front();
  }
}

void SeatLink::on_peer_lost(NodeId peer, const Error& /*why*/) {
  outbox_.erase(peer);
}

void SeatLink::rule(NodeId from, const SeatMessage& message, std::span<const uint32_t> groups,
                    std::span<const std::byte> payload) {
  std::vector<Effect> effects;
  switch (message.kind) {
    case SeatMessage::Kind::kCall: {
      Caller caller;
      caller.call = CallId{from, message.call.number};
      caller.process = ProcessId{from, message.process};
      caller.pid = message.pid;
      caller.credentials = Credentials{message.call.uid, message.call.gid, {groups.begin(), groups.end()}};
      names_->on_call(caller, message.call, payload, wall_seconds(), effects);
      break;
    }
    case SeatMessage::Kind::kCancel:
      names_->on_cancel(CallId{from, message.call.number}, message.call.cmd, effects);
      break;
    case SeatMessage::Kind::kProcessGone:
      names_->on_process_gone(ProcessId{from, message.process}, message.pid, wall_seconds(), effects);
      break;
    case SeatMessage::Kind::kAnswer:
    case SeatMessage::Kind::kDestroy:
      break;
  }
  execute(effects);
}

void SeatLink::execute(std::vector<Effect>& effects) {
  for (Effect& effect : effects) {
    SeatMessage message;
    if (effect.kind == Effect::Kind::kDestroy) {
      message.kind = SeatMessage::Kind::kDestroy;
      message.answer.segment = effect.segment.value;
      for (const cluster::Member& member : view_.members) {
        if (member.id != self_) {
          send(member.id, message, {});
        }
      }
      on_destroy_(effect.segment);
    } else if (effect.call.node == self_) {
      complete(effect.call.number, effect.answer, effect.data);
    } else {
      message.kind = SeatMessage::Kind::kAnswer;
      message.answer = effect.answer;
      send(effect.call.node, message, effect.data);
    }
  }
}

void SeatLink::complete(uint64_t number, const Answer& answer, std::span<const std::byte> data) {
  auto call = waiting_.extract(number);
  if (!call.empty()) {
    call.mapped()(answer, data);
  }
}

void SeatLink::on_message(NodeId from, std::span<const std::byte> header,
                          std::span<const std::byte> payload) {
  const auto decoded = decode_seat_message(header, payload);
  if (!decoded) {
    KEVRE_LOG_WARN("ipc: dropped a message of node {}: {}", from, decoded.error().text);
    return;
  }
  const SeatMessage& message = decoded->message;
  if (message.view > view_.id.value) {
    if (held_.size() < kHeldMax) {
      held_.push_back({from, message, {payload.begin(), payload.end()}});
    }
    return;
  }
  if (!view_.has(from)) {
    return;
  }
  switch (message.kind) {
    case SeatMessage::Kind::kCall:
    case SeatMessage::Kind::kCancel:
    case SeatMessage::Kind::kProcessGone:
      if (has_seat()) {
        rule(from, message, decoded->groups, decoded->payload);
      }
      return;
    case SeatMessage::Kind::kAnswer:
      if (from == view_.coordinator()) {
        complete(message.answer.number, message.answer, decoded->payload);
      }
      return;
    case SeatMessage::Kind::kDestroy:
      if (from == view_.coordinator()) {
        on_destroy_(SegmentId(message.answer.segment));
      }
      return;
  }
}

void SeatLink::seat_lost() {
  auto waiting = std::move(waiting_);
  waiting_.clear();
  Answer gone;
  gone.error = EIDRM;
  gone.value = -1;
  for (auto& [number, done] : waiting) {
    gone.number = number;
    done(gone, {});
  }
}

void SeatLink::on_view(const cluster::View& view) {
  const NodeId before = view_.coordinator();
  view_ = view;
  const NodeId seat = view.coordinator();
  for (const auto* gone : {&view.lost, &view.left}) {
    for (const NodeId node : *gone) {
      outbox_.erase(node);
    }
  }
  if (seat == self_ && !has_seat()) {
    names_ = std::make_unique<Namespace>(view.id.value);
  } else if (seat != self_) {
    names_.reset();
  }
  if (before != kNoNode && before != seat) {
    KEVRE_LOG_INFO("ipc: the seat moved from node {} to node {}; objects of before are gone", before, seat);
    seat_lost();
  }
  if (has_seat()) {
    names_->on_view(view.id.value);
    names_->on_memory(memory_here() * view.members.size());  // machines of a cluster are alike, mostly
    std::vector<Effect> effects;
    for (const auto* gone : {&view.lost, &view.left}) {
      for (const NodeId node : *gone) {
        names_->on_node_lost(node, wall_seconds(), effects);
      }
    }
    execute(effects);
  }
  // Sent before there was a view: as if they came now. Their payload has the groups in front.
  for (auto unsent = std::move(unsent_); Record & record : unsent) {
    if (has_seat()) {
      on_message(self_, std::as_bytes(std::span(&record.message, 1)), record.payload);
    } else {
      send(seat, record.message, record.payload);
    }
  }
  unsent_.clear();
  auto held = std::move(held_);
  held_.clear();
  for (const Held& late : held) {
    on_message(late.from, std::as_bytes(std::span(&late.message, 1)), late.payload);
  }
}

}  // namespace kevre::ipc
