// semctl: everything about semaphore sets that is not semget and semop.
#include <fmt/format.h>

#include <cstring>

#include "ipc/sem.h"

namespace kevre::ipc {
namespace {
constexpr int32_t kGetPid = 11, kGetValue = 12, kGetAll = 13, kGetNegative = 14, kGetZero = 15,
                  kSetValue = 16, kSetAll = 17, kStatIndex = 18, kInfo = 19, kStatAny = 20;
}

void Sem::remove(const Event& event) {
  const int32_t id = event.call.id;
  const auto found = table_.by_id(id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  Object& set = *found.object;
  if (!owns(set.permissions, event.caller.credentials)) {
    return answer(event, EPERM);
  }
  for (auto* list : {&set.zero_waiters, &set.waiters}) {
    for (const Waiter& waiter : *list) {
      waits_.erase(waiter.caller.call);
      answer(event.effects, waiter.caller.call, EIDRM);
    }
  }
  for (const auto& [process, undo] : set.undo) {
    const auto sets = undo_sets_.find(process);
    if (sets != undo_sets_.end() && sets->second.erase(id) > 0 && sets->second.empty()) {
      undo_sets_.erase(sets);
    }
  }
  semaphores_ -= set.values.size();
  table_.remove(id);
  answer(event, 0);
}

void Sem::change(const Event& event) {
  const auto found = table_.by_id(event.call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  SetArguments arguments;
  const int error = set_permissions(event, found.object->permissions, &arguments);
  if (error == 0) {
    apply(arguments, found.object->permissions);
    found.object->change_time = event.now;
  }
  answer(event, error);
}

void Sem::stat(const Event& event) {
  int32_t id = event.call.id;
  const auto found = event.call.cmd == kIpcStat ? table_.by_id(id) : table_.by_index(event.call.id, &id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  const Object& set = *found.object;
  if (event.call.cmd != kStatAny && !permitted(set.permissions, event.caller.credentials, kReadBits)) {
    return answer(event, EACCES);
  }
  Stat stat = common_stat(set.permissions, id);
  stat.size = set.values.size();
  stat.first_time = set.operation_time;
  stat.change_time = set.change_time;
  answer(event, 0, event.call.cmd == kIpcStat ? 0 : id, bytes_of(stat));
}

void Sem::set_value(const Event& event) {
  if (event.call.value < 0 || event.call.value > kSemVmx) {
    return answer(event, ERANGE);
  }
  const auto found = table_.by_id(event.call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  Object& set = *found.object;
  if (event.call.index < 0 || static_cast<size_t>(event.call.index) >= set.values.size()) {
    return answer(event, EINVAL);
  }
  if (!permitted(set.permissions, event.caller.credentials, kWriteBits)) {
    return answer(event, EACCES);
  }
  const auto number = static_cast<uint16_t>(event.call.index);
  for (auto& [process, undo] : set.undo) {
    undo.adjust.erase(number);
  }
  set.values[number] = {static_cast<int32_t>(event.call.value), event.caller.pid};
  set.change_time = event.now;
  answer(event, 0);
  settle(set, event.now, event.effects);
}

void Sem::set_all(const Event& event, Object& set) {
  if (event.payload.size() != set.values.size() * sizeof(uint16_t)) {
    return answer(event, EINVAL);
  }
  std::vector<uint16_t> wanted(set.values.size());
  std::memcpy(wanted.data(), event.payload.data(), event.payload.size());
  if (std::any_of(wanted.begin(), wanted.end(), [](uint16_t value) { return value > kSemVmx; })) {
    return answer(event, ERANGE);
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    set.values[i] = {wanted[i], event.caller.pid};
  }
  for (auto& [process, undo] : set.undo) {
    undo.adjust.clear();
  }
  set.change_time = event.now;
  answer(event, 0);
  settle(set, event.now, event.effects);
}

int64_t Sem::count_waiting(const Object& set, uint16_t number, bool zero) const {
  int64_t count = 0;
  for (const auto* list : {&set.zero_waiters, &set.waiters}) {
    for (const Waiter& waiter : *list) {
      const SemOperation& blocked = waiter.operations[waiter.blocked_at];
      count += blocked.number == number && (blocked.value == 0) == zero ? 1 : 0;
    }
  }
  return count;
}

void Sem::values(const Event& event) {
  const auto found = table_.by_id(event.call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  Object& set = *found.object;
  const uint32_t wanted = event.call.cmd == kSetAll ? kWriteBits : kReadBits;
  if (!permitted(set.permissions, event.caller.credentials, wanted)) {
    return answer(event, EACCES);
  }
  if (event.call.cmd == kSetAll) {
    return set_all(event, set);
  }
  if (event.call.cmd == kGetAll) {
    std::vector<std::byte> data(set.values.size() * sizeof(uint16_t));
    for (size_t i = 0; i < set.values.size(); ++i) {
      const auto value = static_cast<uint16_t>(set.values[i].value);
      std::memcpy(data.data() + i * sizeof value, &value, sizeof value);
    }
    return answer(event, 0, 0, std::move(data));
  }
  if (event.call.index < 0 || static_cast<size_t>(event.call.index) >= set.values.size()) {
    return answer(event, EINVAL);
  }
  const auto number = static_cast<uint16_t>(event.call.index);
  switch (event.call.cmd) {
    case kGetValue:
      return answer(event, 0, set.values[number].value);
    case kGetPid:
      return answer(event, 0, set.values[number].pid);
    default:
      return answer(event, 0, count_waiting(set, number, event.call.cmd == kGetZero));
  }
}

void Sem::count(const Event& event) {
  const auto found = table_.by_id(event.call.id);
  answer(event, found.error, found.error == 0 ? static_cast<int64_t>(found.object->values.size()) : 0);
}

void Sem::control(const Event& event) {
  if (event.call.id < 0) {
    return answer(event, EINVAL);
  }
  switch (event.call.cmd) {
    case kIpcInfo:
    case kInfo:
      return answer(event, 0, table_.highest_index(),
                    bytes_of(Usage{limits_, table_.size(), semaphores_, 0}));
    case kIpcStat:
    case kStatIndex:
    case kStatAny:
      return stat(event);
    case kGetAll:
    case kGetValue:
    case kGetPid:
    case kGetNegative:
    case kGetZero:
    case kSetAll:
      return values(event);
    case kSetValue:
      return set_value(event);
    case kIpcSet:
      return change(event);
    case kIpcRemove:
      return remove(event);
    default:
      return answer(event, EINVAL);
  }
}

std::string Sem::proc_text() {
  std::string text = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n";
  table_.each([&](int32_t id, Object& set) {
    const Permissions& p = set.permissions;
    text += fmt::format("{:10} {:10}  {:4o} {:10} {:5} {:5} {:5} {:5} {:10} {:10}\n", p.key, id, p.mode,
                        set.values.size(), p.uid, p.gid, p.cuid, p.cgid, set.operation_time, set.change_time);
  });
  return text;
}

}  // namespace kevre::ipc
