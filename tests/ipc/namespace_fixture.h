// A Namespace with helpers that speak like a program: each call returns its answer, or nothing while it
// waits. Used by the tests of the folder.
#pragma once

#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/namespace.h"
#include "ipc/protocol.h"

namespace kevre::ipc::testing {

struct Done {
  int error = 0;
  int64_t value = 0;
  std::vector<std::byte> data;
  Answer answer;
};

class Cluster {
 public:
  explicit Cluster(uint32_t generation = 0) : names(generation) {}

  struct Program {
    NodeId node{1};
    uint64_t process = 1;
    uint32_t pid = 100;
    Credentials who;
  };

  // The number of the call; its answer, when there is one, is in `done`.
  uint64_t start(const Program& program, Call call, std::span<const std::byte> payload = {}) {
    Caller caller;
    caller.call = CallId{program.node, ++last_call};
    caller.process = ProcessId{program.node, program.process};
    caller.pid = program.pid;
    caller.credentials = program.who;
    call.number = last_call;
    call.payload_bytes = static_cast<uint32_t>(payload.size());
    std::vector<Effect> effects;
    names.on_call(caller, call, payload, now, effects);
    take(effects);
    return last_call;
  }
  Done run(const Program& program, const Call& call, std::span<const std::byte> payload = {}) {
    const uint64_t number = start(program, call, payload);
    return done.contains(number) ? done[number] : Done{-1, -1, {}, {}};  // error -1: it waits
  }
  void take(std::vector<Effect>& effects) {
    for (Effect& effect : effects) {
      if (effect.kind == Effect::Kind::kDestroy) {
        destroyed.push_back(effect.segment);
        continue;
      }
      order.push_back(effect.call.number);
      ++answers[effect.call.number];
      done[effect.call.number] = {effect.answer.error, effect.answer.value, std::move(effect.data),
                                  effect.answer};
    }
    effects.clear();
  }
  void cancel(NodeId node, uint64_t call, int error) {
    std::vector<Effect> effects;
    names.on_cancel({node, call}, error, effects);
    take(effects);
  }
  void gone(const Program& program) {
    std::vector<Effect> effects;
    names.on_process_gone({program.node, program.process}, program.pid, now, effects);
    take(effects);
  }
  void lost(NodeId node) {
    std::vector<Effect> effects;
    names.on_node_lost(node, now, effects);
    take(effects);
  }

  // Shorthand.
  Done get(const Program& p, Op op, int32_t key, uint64_t size, int32_t flags) {
    Call call;
    call.op = op;
    call.key = key;
    call.size = size;
    call.flags = flags;
    return run(p, call);
  }
  Done ctl(const Program& p, Op op, int64_t id, int32_t cmd, int32_t index = 0, int64_t value = 0) {
    Call call;
    call.op = op;
    call.id = static_cast<int32_t>(id);
    call.cmd = cmd;
    call.index = index;
    call.value = value;
    return run(p, call);
  }
  Done set(const Program& p, Op op, int64_t id, const SetArguments& arguments) {
    Call call;
    call.op = op;
    call.id = static_cast<int32_t>(id);
    call.cmd = 1;
    return run(p, call, std::as_bytes(std::span(&arguments, 1)));
  }
  static Call semop_call(int64_t id, const std::vector<SemOperation>& operations) {
    Call call;
    call.op = Op::kSemOp;
    call.id = static_cast<int32_t>(id);
    call.size = operations.size();
    return call;
  }
  uint64_t start_semop(const Program& p, int64_t id, const std::vector<SemOperation>& operations) {
    return start(p, semop_call(id, operations), std::as_bytes(std::span(operations)));
  }
  Done semop(const Program& p, int64_t id, const std::vector<SemOperation>& operations) {
    return run(p, semop_call(id, operations), std::as_bytes(std::span(operations)));
  }
  static std::vector<std::byte> message(int64_t type, std::string_view text) {
    std::vector<std::byte> bytes(sizeof type + text.size());
    std::memcpy(bytes.data(), &type, sizeof type);
    std::memcpy(bytes.data() + sizeof type, text.data(), text.size());
    return bytes;
  }
  uint64_t start_send(const Program& p, int64_t id, int64_t type, std::string_view text, int32_t flags = 0) {
    Call call;
    call.op = Op::kMsgSend;
    call.id = static_cast<int32_t>(id);
    call.flags = flags;
    return start(p, call, message(type, text));
  }
  Done send(const Program& p, int64_t id, int64_t type, std::string_view text, int32_t flags = 0) {
    const uint64_t number = start_send(p, id, type, text, flags);
    return done.contains(number) ? done[number] : Done{-1, -1, {}, {}};
  }
  uint64_t start_receive(const Program& p, int64_t id, uint64_t bytes, int64_t type, int32_t flags = 0) {
    Call call;
    call.op = Op::kMsgReceive;
    call.id = static_cast<int32_t>(id);
    call.size = bytes;
    call.value = type;
    call.flags = flags;
    return start(p, call);
  }
  Done receive(const Program& p, int64_t id, uint64_t bytes, int64_t type, int32_t flags = 0) {
    const uint64_t number = start_receive(p, id, bytes, type, flags);
    return done.contains(number) ? done[number] : Done{-1, -1, {}, {}};
  }
  static std::string text(const Done& answer) {
    return answer.data.size() < 8
               ? std::string()
               : std::string(reinterpret_cast<const char*>(answer.data.data()) + 8, answer.data.size() - 8);
  }
  static Stat stat(const Done& answer) {
    Stat stat;
    if (answer.data.size() == sizeof stat) {
      std::memcpy(&stat, answer.data.data(), sizeof stat);
    }
    return stat;
  }
  bool waits(uint64_t call) const { return !done.contains(call); }

  Namespace names;
  int64_t now = 1000;
  uint64_t last_call = 0;
  std::map<uint64_t, Done> done;
  std::map<uint64_t, int> answers;  // how often a call was answered
  std::vector<uint64_t> order;      // calls in the order of their answers
  std::vector<SegmentId> destroyed;
};

}  // namespace kevre::ipc::testing
