#include "ipc/sem.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace kevre::ipc {
namespace {
constexpr int16_t kUndoFlag = 0x1000;
constexpr int32_t kUndoMin = -kSemVmx - 1, kUndoMax = kSemVmx;

std::vector<SemOperation> operations_of(std::span<const std::byte> payload) {
  std::vector<SemOperation> operations(payload.size() / sizeof(SemOperation));
  if (!operations.empty()) {
    std::memcpy(operations.data(), payload.data(), operations.size() * sizeof(SemOperation));
  }
  return operations;
}
bool no_wait(const SemOperation& operation) {
  return (operation.flags & kIpcNoWait) != 0;
}
bool undone(const SemOperation& operation) {
  return (operation.flags & kUndoFlag) != 0;
}
}  // namespace

Sem::Sem(uint32_t generation, Limits& limits)
    : limits_(limits), table_(generation > 1 ? generation - 1 : 0) {}

int32_t Sem::create(const Event& event) {
  const uint64_t count = event.call.size;
  if (count == 0) {
    return -EINVAL;
  }
  if (semaphores_ + count > limits_.sem_mns) {
    return -ENOSPC;
  }
  auto object = std::make_unique<Object>();
  object->values.resize(count);
  object->change_time = event.now;
  const int32_t id = table_.add(std::move(object), event.call.key, static_cast<uint32_t>(event.call.flags),
                                event.caller.credentials, limits_.sem_mni, limits_.sem_next_id);
  semaphores_ += id >= 0 ? count : 0;
  return id;
}

void Sem::get(const Event& event) {
  if (event.call.size > limits_.sem_msl) {
    return answer(event, EINVAL);
  }
  ipc::get(
      table_, event, [&](const Object& set) { return set.values.size() < event.call.size ? EINVAL : 0; },
      [&] { return create(event); });
}

// All of it or nothing. Values change while the array is walked (the same semaphore may stand in it twice).
Sem::Outcome Sem::attempt(Object& set, const Caller& caller, const std::vector<SemOperation>& operations,
                          size_t* blocked_at) {
  Outcome outcome = Outcome::kDone;
  size_t done = 0;
  Undo* undo = nullptr;
  for (; done < operations.size(); ++done) {
    const SemOperation& operation = operations[done];
    int32_t& value = set.values[operation.number].value;
    const int32_t result = value + operation.value;
    if ((operation.value == 0 && value != 0) || result < 0) {
      *blocked_at = done;
      outcome = no_wait(operation) ? Outcome::kAgain : Outcome::kBlocked;
      break;
    }
    if (result > kSemVmx) {
      outcome = Outcome::kRange;
      break;
    }
    if (undone(operation)) {
      undo = undo == nullptr ? &set.undo[caller.process] : undo;
      int32_t& adjust = undo->adjust[operation.number];
      if (adjust - operation.value < kUndoMin || adjust - operation.value > kUndoMax) {
        outcome = Outcome::kRange;
        break;
      }
      adjust -= operation.value;
    }
    value = result;
  }
  if (outcome == Outcome::kDone) {
    for (const SemOperation& operation : operations) {
      set.values[operation.number].pid = caller.pid;
    }
    if (undo != nullptr) {
      undo->pid = caller.pid;
    }
    return outcome;
  }
  while (done > 0) {
    const SemOperation& operation = operations[--done];
    set.values[operation.number].value -= operation.value;
    if (undone(operation)) {
      undo->adjust[operation.number] += operation.value;
    }
  }
  return outcome;
}

void Sem::operate(const Event& event) {
  const Call& call = event.call;
  if (call.size < 1 || call.id < 0) {
    return answer(event, EINVAL);
  }
  if (call.size > limits_.sem_opm) {
    return answer(event, E2BIG);
  }
  const std::vector<SemOperation> operations = operations_of(event.payload);
  if (operations.size() != call.size) {
    return answer(event, EINVAL);
  }
  const auto found = table_.by_id(call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  Object& set = *found.object;
  const auto highest = std::max_element(operations.begin(), operations.end(),
                                        [](const auto& a, const auto& b) { return a.number < b.number; });
  if (highest->number >= set.values.size()) {
    return answer(event, EFBIG);
  }
  const auto has = [&](auto what) { return std::any_of(operations.begin(), operations.end(), what); };
  const bool alters = has([](const SemOperation& operation) { return operation.value != 0; });
  if (!permitted(set.permissions, event.caller.credentials, alters ? kWriteBits : kReadBits)) {
    return answer(event, EACCES);
  }
  if (has(undone)) {
    undo_sets_[event.caller.process][call.id] = true;
  }
  size_t blocked_at = 0;
  switch (attempt(set, event.caller, operations, &blocked_at)) {
    case Outcome::kDone:
      set.operation_time = event.now;
      answer(event, 0);
      if (alters) {
        settle(set, event.now, event.effects);
      }
      return;
    case Outcome::kAgain:
      return answer(event, EAGAIN);
    case Outcome::kRange:
      return answer(event, ERANGE);
    case Outcome::kBlocked:
      break;
  }
  waits_.emplace(event.caller.call, call.id);
  auto& list = alters ? set.waiters : set.zero_waiters;
  list.push_back(Waiter{event.caller, operations, alters, blocked_at});
}

// Serves what can be served in one list; true when a value grew, which may free earlier ones of the other
// kind.
bool Sem::settle_list(Object& set, std::list<Waiter>& list, int64_t now, std::vector<Effect>& effects) {
  for (auto waiter = list.begin(); waiter != list.end();) {
    const Outcome outcome = attempt(set, waiter->caller, waiter->operations, &waiter->blocked_at);
    if (outcome == Outcome::kBlocked) {
      ++waiter;
      continue;
    }
    const bool again = outcome == Outcome::kDone && waiter->alters;
    const int error = outcome == Outcome::kDone ? 0 : outcome == Outcome::kRange ? ERANGE : EAGAIN;
    if (outcome == Outcome::kDone) {
      set.operation_time = now;
    }
    answer(effects, waiter->caller.call, error);
    waits_.erase(waiter->caller.call);
    waiter = list.erase(waiter);
    if (again) {
      return true;
    }
  }
  return false;
}

void Sem::settle(Object& set, int64_t now, std::vector<Effect>& effects) {
  do {
    settle_list(set, set.zero_waiters, now, effects);
  } while (settle_list(set, set.waiters, now, effects));
}

bool Sem::drop_waiters(Object& set, const std::function<bool(const Waiter&)>& which) {
  const auto drop = [&](const Waiter& waiter) {
    if (!which(waiter)) {
      return false;
    }
    waits_.erase(waiter.caller.call);
    return true;
  };
  return set.waiters.remove_if(drop) + set.zero_waiters.remove_if(drop) > 0;
}

bool Sem::cancel(CallId call, int error, std::vector<Effect>& effects) {
  const auto wait = waits_.find(call);
  if (wait == waits_.end()) {
    return false;
  }
  Object& set = *table_.by_id(wait->second).object;
  drop_waiters(set, [&](const Waiter& waiter) { return waiter.caller.call == call; });
  answer(effects, call, error);
  return true;
}

void Sem::apply_undo(Object& set, const Undo& undo, int64_t now, std::vector<Effect>& effects) {
  for (const auto& [number, adjust] : undo.adjust) {
    if (adjust != 0) {
      Value& value = set.values[number];
      value.value = std::clamp(value.value + adjust, 0, kSemVmx);
      value.pid = undo.pid;
    }
  }
  set.operation_time = now;
  settle(set, now, effects);
}

void Sem::on_process_gone(ProcessId process, uint32_t pid, int64_t now, std::vector<Effect>& effects) {
  std::vector<int32_t> waits_at;
  for (const auto& [call, id] : waits_) {
    if (call.node == process.node) {
      waits_at.push_back(id);
    }
  }
  for (const int32_t id : waits_at) {
    drop_waiters(*table_.by_id(id).object,
                 [&](const Waiter& waiter) { return waiter.caller.process == process; });
  }
  const auto sets = undo_sets_.find(process);
  if (sets == undo_sets_.end()) {
    return;
  }
  for (const auto& [id, unused] : sets->second) {
    Object* set = table_.by_id(id).object;
    if (set == nullptr) {
      continue;
    }
    auto undo = set->undo.extract(process);
    if (!undo.empty()) {
      undo.mapped().pid = pid != 0 ? pid : undo.mapped().pid;
      apply_undo(*set, undo.mapped(), now, effects);
    }
  }
  undo_sets_.erase(process);
}

void Sem::on_node_lost(NodeId node, int64_t now, std::vector<Effect>& effects) {
  table_.each([&](int32_t, Object& set) {
    drop_waiters(set, [&](const Waiter& waiter) { return waiter.caller.process.node == node; });
  });
  std::vector<ProcessId> processes;
  for (const auto& [process, sets] : undo_sets_) {
    if (process.node == node) {
      processes.push_back(process);
    }
  }
  for (const ProcessId process : processes) {
    on_process_gone(process, 0, now, effects);
  }
}

}  // namespace kevre::ipc
