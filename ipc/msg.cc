#include "ipc/msg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

namespace kevre::ipc {
namespace {
constexpr int32_t kNoError = 010000, kExcept = 020000, kCopy = 040000;
constexpr int32_t kStatIndex = 11, kInfo = 12, kStatAny = 13;
}  // namespace

Msg::Msg(uint32_t generation, Limits& limits)
    : limits_(limits), table_(generation > 1 ? generation - 1 : 0) {}

void Msg::get(const Event& event) {
  ipc::get(
      table_, event, [](const Object&) { return 0; },
      [&] {
        auto queue = std::make_unique<Object>();
        queue->change_time = event.now;
        queue->bytes_max = limits_.msg_mnb;
        return table_.add(std::move(queue), event.call.key, static_cast<uint32_t>(event.call.flags),
                          event.caller.credentials, limits_.msg_mni, limits_.msg_next_id);
      });
}

bool Msg::Wanted::takes(const Message& message) const {
  switch (search) {
    case Search::kAny:
    case Search::kNumber:
      return true;
    case Search::kEqual:
      return message.type == type;
    case Search::kNotEqual:
      return message.type != type;
    case Search::kLowest:
      return message.type <= type;
  }
  return false;
}

Msg::Wanted Msg::wanted(const Call& call) {
  Wanted wanted;
  wanted.bytes_max = call.size;
  wanted.truncate = (call.flags & kNoError) != 0;
  wanted.type = call.value;
  if ((call.flags & kCopy) != 0) {
    wanted.search = Search::kNumber;
  } else if (call.value == 0) {
    wanted.search = Search::kAny;
  } else if (call.value < 0) {
    wanted.search = Search::kLowest;
    wanted.type =
        call.value == std::numeric_limits<int64_t>::min() ? std::numeric_limits<int64_t>::max() : -call.value;
  } else {
    wanted.search = (call.flags & kExcept) != 0 ? Search::kNotEqual : Search::kEqual;
  }
  return wanted;
}

bool Msg::fits(const Object& queue, const Message& message) {
  return message.bytes() + queue.bytes <= queue.bytes_max && queue.messages.size() + 1 <= queue.bytes_max;
}

std::list<Msg::Message>::iterator Msg::find(Object& queue, const Wanted& wanted) {
  auto best = queue.messages.end();
  int64_t number = 0;
  for (auto message = queue.messages.begin(); message != queue.messages.end(); ++message, ++number) {
    if (wanted.search == Search::kNumber) {
      if (number == wanted.type) {
        return message;
      }
    } else if (wanted.takes(*message)) {
      if (wanted.search != Search::kLowest) {
        return message;
      }
      if (best == queue.messages.end() || message->type < best->type) {
        best = message;
      }
    }
  }
  return best;
}

std::vector<std::byte> Msg::cut(std::vector<std::byte> data, uint64_t bytes_max) {
  if (data.size() - sizeof(int64_t) > bytes_max) {
    data.resize(bytes_max + sizeof(int64_t));
  }
  return data;
}

// The message was accepted: to the first receiver that wants it, else into the queue. Answers the sender.
void Msg::deliver(Object& queue, const Caller& sender, Message message, int64_t now,
                  std::vector<Effect>& effects) {
  queue.send_pid = sender.pid;
  queue.send_time = now;
  answer(effects, sender.call, 0);
  for (auto receiver = queue.receivers.begin(); receiver != queue.receivers.end();) {
    if (!receiver->wanted.takes(message)) {
      ++receiver;
      continue;
    }
    const bool too_big = message.bytes() > receiver->wanted.bytes_max && !receiver->wanted.truncate;
    const Receiver chosen = std::move(*receiver);
    receiver = queue.receivers.erase(receiver);
    waits_.erase(chosen.caller.call);
    if (too_big) {
      answer(effects, chosen.caller.call, E2BIG);
      continue;
    }
    queue.receive_pid = chosen.caller.pid;
    queue.receive_time = now;
    auto data = cut(std::move(message.data), chosen.wanted.bytes_max);
    const auto bytes = static_cast<int64_t>(data.size() - sizeof(int64_t));
    return answer(effects, chosen.caller.call, 0, bytes, std::move(data));
  }
  queue.bytes += message.bytes();
  bytes_ += message.bytes();
  ++messages_;
  queue.messages.push_back(std::move(message));
}

void Msg::wake_senders(Object& queue, int64_t now, std::vector<Effect>& effects) {
  for (auto sender = queue.senders.begin(); sender != queue.senders.end();) {
    if (!fits(queue, sender->message)) {
      ++sender;
      continue;
    }
    Sender chosen = std::move(*sender);
    sender = queue.senders.erase(sender);
    waits_.erase(chosen.caller.call);
    deliver(queue, chosen.caller, std::move(chosen.message), now, effects);
  }
}

void Msg::send(const Event& event) {
  const Call& call = event.call;
  Message message;
  if (event.payload.size() < sizeof message.type ||
      event.payload.size() - sizeof message.type > limits_.msg_max || call.id < 0) {
    return answer(event, EINVAL);
  }
  std::memcpy(&message.type, event.payload.data(), sizeof message.type);
  if (message.type < 1) {
    return answer(event, EINVAL);
  }
  const auto found = table_.by_id(call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  Object& queue = *found.object;
  if (!permitted(queue.permissions, event.caller.credentials, kWriteBits)) {
    return answer(event, EACCES);
  }
  message.data.assign(event.payload.begin(), event.payload.end());
  if (fits(queue, message)) {
    return deliver(queue, event.caller, std::move(message), event.now, event.effects);
  }
  if ((call.flags & kIpcNoWait) != 0) {
    return answer(event, EAGAIN);
  }
  waits_.emplace(event.caller.call, call.id);
  queue.senders.push_back(Sender{event.caller, std::move(message)});
}

void Msg::receive(const Event& event) {
  const Call& call = event.call;
  if (call.id < 0 || call.size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return answer(event, EINVAL);
  }
  const bool copy = (call.flags & kCopy) != 0;
  if (copy && ((call.flags & kExcept) != 0 || (call.flags & kIpcNoWait) == 0)) {
    return answer(event, EINVAL);
  }
  const auto found = table_.by_id(call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  Object& queue = *found.object;
  if (!permitted(queue.permissions, event.caller.credentials, kReadBits)) {
    return answer(event, EACCES);
  }
  const Wanted want = wanted(call);
  const auto message = find(queue, want);
  if (message == queue.messages.end()) {
    if ((call.flags & kIpcNoWait) != 0) {
      return answer(event, ENOMSG);
    }
    waits_.emplace(event.caller.call, call.id);
    queue.receivers.push_back(Receiver{event.caller, want});
    return;
  }
  if (message->bytes() > want.bytes_max && (!want.truncate || copy)) {
    return answer(event, want.truncate ? EINVAL : E2BIG);
  }
  if (copy) {
    return answer(event, 0, static_cast<int64_t>(message->bytes()), message->data);
  }
  queue.receive_pid = event.caller.pid;
  queue.receive_time = event.now;
  queue.bytes -= message->bytes();
  bytes_ -= message->bytes();
  --messages_;
  auto data = cut(std::move(message->data), want.bytes_max);
  queue.messages.erase(message);
  const auto bytes = static_cast<int64_t>(data.size() - sizeof(int64_t));
  answer(event, 0, bytes, std::move(data));
  wake_senders(queue, event.now, event.effects);
}

// Permissions became stricter, perhaps: who waits is asked again.
void Msg::recheck_receivers(Object& queue, std::vector<Effect>& effects) {
  const auto expel = [&](const Caller& caller, uint32_t bits) {
    if (permitted(queue.permissions, caller.credentials, bits)) {
      return false;
    }
    waits_.erase(caller.call);
    answer(effects, caller.call, EACCES);
    return true;
  };
  queue.receivers.remove_if([&](const Receiver& receiver) { return expel(receiver.caller, kReadBits); });
  queue.senders.remove_if([&](const Sender& sender) { return expel(sender.caller, kWriteBits); });
}

void Msg::change(const Event& event) {
  const auto found = table_.by_id(event.call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  Object& queue = *found.object;
  SetArguments arguments;
  if (const int error = set_permissions(event, queue.permissions, &arguments); error != 0) {
    return answer(event, error);
  }
  if (arguments.queue_bytes > limits_.msg_mnb && event.caller.credentials.uid != 0) {
    return answer(event, EPERM);
  }
  apply(arguments, queue.permissions);
  queue.bytes_max = arguments.queue_bytes;
  queue.change_time = event.now;
  answer(event, 0);
  recheck_receivers(queue, event.effects);
  wake_senders(queue, event.now, event.effects);
}

void Msg::remove(const Event& event) {
  const auto found = table_.by_id(event.call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  Object& queue = *found.object;
  if (!owns(queue.permissions, event.caller.credentials)) {
    return answer(event, EPERM);
  }
  const auto expel = [&](const Caller& caller) {
    waits_.erase(caller.call);
    answer(event.effects, caller.call, EIDRM);
  };
  std::for_each(queue.receivers.begin(), queue.receivers.end(), [&](const Receiver& r) { expel(r.caller); });
  std::for_each(queue.senders.begin(), queue.senders.end(), [&](const Sender& s) { expel(s.caller); });
  bytes_ -= queue.bytes;
  messages_ -= queue.messages.size();
  table_.remove(event.call.id);
  answer(event, 0);
}

void Msg::stat(const Event& event) {
  int32_t id = event.call.id;
  const auto found = event.call.cmd == kIpcStat ? table_.by_id(id) : table_.by_index(event.call.id, &id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  const Object& queue = *found.object;
  if (event.call.cmd != kStatAny && !permitted(queue.permissions, event.caller.credentials, kReadBits)) {
    return answer(event, EACCES);
  }
  Stat stat = common_stat(queue.permissions, id);
  stat.size = queue.bytes_max;
  stat.count = queue.messages.size();
  stat.bytes = queue.bytes;
  stat.first_time = queue.send_time;
  stat.second_time = queue.receive_time;
  stat.change_time = queue.change_time;
  stat.first_pid = queue.send_pid;
  stat.second_pid = queue.receive_pid;
  answer(event, 0, event.call.cmd == kIpcStat ? 0 : id, bytes_of(stat));
}

void Msg::control(const Event& event) {
  if (event.call.cmd < 0 || event.call.id < 0) {
    return answer(event, EINVAL);
  }
  switch (event.call.cmd) {
    case kIpcInfo:
    case kInfo:
      return answer(event, 0, table_.highest_index(),
                    bytes_of(Usage{limits_, table_.size(), messages_, bytes_}));
    case kIpcStat:
    case kStatIndex:
    case kStatAny:
      return stat(event);
    case kIpcSet:
      return change(event);
    case kIpcRemove:
      return remove(event);
    default:
      return answer(event, EINVAL);
  }
}

void Msg::drop_waiting(Object& queue, const std::function<bool(const Caller&)>& which) {
  const auto drop = [&](const auto& waiting) {
    if (!which(waiting.caller)) {
      return false;
    }
    waits_.erase(waiting.caller.call);
    return true;
  };
  queue.receivers.remove_if(drop);
  queue.senders.remove_if(drop);
}

bool Msg::cancel(CallId call, int error, std::vector<Effect>& effects) {
  const auto wait = waits_.find(call);
  if (wait == waits_.end()) {
    return false;
  }
  drop_waiting(*table_.by_id(wait->second).object, [&](const Caller& caller) { return caller.call == call; });
  answer(effects, call, error);
  return true;
}

void Msg::on_process_gone(ProcessId process) {
  std::vector<int32_t> at;
  for (const auto& [call, id] : waits_) {
    if (call.node == process.node) {
      at.push_back(id);
    }
  }
  for (const int32_t id : at) {
    drop_waiting(*table_.by_id(id).object, [&](const Caller& caller) { return caller.process == process; });
  }
}

void Msg::on_node_lost(NodeId node) {
  table_.each([&](int32_t, Object& queue) {
    drop_waiting(queue, [&](const Caller& caller) { return caller.process.node == node; });
  });
}

std::string Msg::proc_text() {
  std::string text =
      "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime     "
      " rtime"
      "      ctime\n";
  table_.each([&](int32_t id, Object& queue) {
    const Permissions& p = queue.permissions;
    text +=
        fmt::format("{:10} {:10}  {:4o}  {:10} {:10} {:5} {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10}\n",
                    p.key, id, p.mode, queue.bytes, queue.messages.size(), queue.send_pid, queue.receive_pid,
                    p.uid, p.gid, p.cuid, p.cgid, queue.send_time, queue.receive_time, queue.change_time);
  });
  return text;
}

}  // namespace kevre::ipc
