#include "ipc/namespace.h"

#include "ipc/limits.h"
#include "ipc/msg.h"
#include "ipc/sem.h"
#include "ipc/shm.h"

namespace kevre::ipc {

struct Namespace::Parts {
  explicit Parts(uint32_t generation)
      : shm(generation, limits), sem(generation, limits), msg(generation, limits) {}
  Limits limits;
  Shm shm;
  Sem sem;
  Msg msg;
};

Namespace::Namespace(uint32_t generation) : parts_(std::make_unique<Parts>(generation)) {}
Namespace::~Namespace() = default;

namespace {
// What was written to a file of /proc/sys/kernel.
void set_limit(const Event& event, Limits& limits) {
  if (event.caller.credentials.uid != 0) {
    return answer(event, EACCES);
  }
  const std::string_view text(reinterpret_cast<const char*>(event.payload.data()), event.payload.size());
  answer(event, set_setting(limits, static_cast<Setting>(event.call.index), text));
}

void answer_text(const Event& event, const std::string& text) {
  const auto* first = reinterpret_cast<const std::byte*>(text.data());
  answer(event, 0, 0, {first, first + text.size()});
}
}  // namespace

void Namespace::on_call(const Caller& caller, const Call& call, std::span<const std::byte> payload,
                        int64_t now, std::vector<Effect>& effects) {
  const Event event{caller, call, payload, now, effects};
  switch (call.op) {
    case Op::kShmGet:
      return parts_->shm.get(event);
    case Op::kShmAt:
      return parts_->shm.attach(event);
    case Op::kShmCtl:
      return parts_->shm.control(event);
    case Op::kSemGet:
      return parts_->sem.get(event);
    case Op::kSemOp:
      return parts_->sem.operate(event);
    case Op::kSemCtl:
      return parts_->sem.control(event);
    case Op::kSemCount:
      return parts_->sem.count(event);
    case Op::kMsgGet:
      return parts_->msg.get(event);
    case Op::kMsgSend:
      return parts_->msg.send(event);
    case Op::kMsgReceive:
      return parts_->msg.receive(event);
    case Op::kMsgCtl:
      return parts_->msg.control(event);
    case Op::kProcText:
      return answer_text(event, proc_text(static_cast<ObjectKind>(call.index)));
    case Op::kSettingText:
      return answer_text(event, setting_text(parts_->limits, static_cast<Setting>(call.index)));
    case Op::kSettingSet:
      return set_limit(event, parts_->limits);
    case Op::kShmDetach:
      parts_->shm.detached(caller.process.node, call, now, effects);
      return;  // not answered
    case Op::kShmFork:
      parts_->shm.forked(caller.process.node, call, now);
      return;
    case Op::kHello:
    case Op::kCancel:
    case Op::kSettingWriter:
    case Op::kAttached:
    case Op::kAttachFailed:
    case Op::kDetachStart:
    case Op::kDetachDone:
      break;  // between a program and its daemon
  }
  answer(event, ENOSYS);
}

void Namespace::on_view(uint32_t view) {
  parts_->shm.on_view(view);
}

void Namespace::on_memory(uint64_t bytes) {
  parts_->shm.on_memory(bytes);
}

void Namespace::on_cancel(CallId call, int error, std::vector<Effect>& effects) {
  if (!parts_->sem.cancel(call, error, effects)) {
    parts_->msg.cancel(call, error, effects);
  }
}

void Namespace::on_process_gone(ProcessId process, uint32_t pid, int64_t now, std::vector<Effect>& effects) {
  parts_->msg.on_process_gone(process);
  parts_->sem.on_process_gone(process, pid, now, effects);
}

void Namespace::on_node_lost(NodeId node, int64_t now, std::vector<Effect>& effects) {
  parts_->msg.on_node_lost(node);
  parts_->sem.on_node_lost(node, now, effects);
  parts_->shm.on_node_lost(node, now, effects);
}

std::string Namespace::proc_text(ObjectKind kind) const {
  switch (kind) {
    case ObjectKind::kShm:
      return parts_->shm.proc_text();
    case ObjectKind::kSem:
      return parts_->sem.proc_text();
    case ObjectKind::kMsg:
      return parts_->msg.proc_text();
  }
  return {};
}

size_t Namespace::waiting() const {
  return parts_->sem.waiting() + parts_->msg.waiting();
}

}  // namespace kevre::ipc
