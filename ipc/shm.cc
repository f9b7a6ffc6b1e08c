#include "ipc/shm.h"

#include <fmt/format.h>

namespace kevre::ipc {
namespace {
constexpr uint32_t kModeDestroyed = 01000, kModeLocked = 02000;
constexpr int32_t kAttachReadOnly = 010000, kAttachExecute = 0100000, kHugePages = 04000, kNoReserve = 010000;
constexpr int32_t kLock = 11, kUnlock = 12, kStatIndex = 13, kInfo = 14, kStatAny = 15;
// What the dsm can address; a larger segment is memory that nobody has.
constexpr uint64_t kBytesMax = uint64_t{1} << 48;

uint64_t pages_of(uint64_t bytes) {
  return bytes / kPageBytes + (bytes % kPageBytes != 0 ? 1 : 0);
}
}  // namespace

uint64_t Shm::Object::attachments() const {
  uint64_t sum = 0;
  for (const auto& [node, count] : attached) {
    sum += count;
  }
  return sum;
}

Shm::Shm(uint32_t generation, Limits& limits)
    : limits_(limits), table_(generation > 1 ? generation - 1 : 0), view_(generation) {}

int32_t Shm::create(const Event& event) {
  const uint64_t bytes = event.call.size;
  if (bytes == 0 || bytes > limits_.shm_max) {
    return -EINVAL;
  }
  if (next_segment_ == 0) {
    return -ENOSPC;  // numbers are not used twice
  }
  const uint64_t pages = pages_of(bytes);
  if (pages_ + pages < pages_ || pages_ + pages > limits_.shm_all) {
    return -ENOSPC;
  }
  const bool reserve = (event.call.flags & kNoReserve) == 0;
  const bool too_much = reserve && memory_bytes_ != 0 && bytes > memory_bytes_;
  if ((event.call.flags & kHugePages) != 0 || bytes > kBytesMax || too_much) {
    return -ENOMEM;
  }
  auto object = std::make_unique<Object>();
  object->segment = SegmentId(static_cast<uint64_t>(view_) << 32 | next_segment_);
  object->bytes = bytes;
  object->creator_pid = event.caller.pid;
  object->change_time = event.now;
  const SegmentId segment = object->segment;
  const int32_t id = table_.add(std::move(object), event.call.key, static_cast<uint32_t>(event.call.flags),
                                event.caller.credentials, limits_.shm_mni, limits_.shm_next_id);
  if (id >= 0) {
    ++next_segment_;
    of_segment_.emplace(segment, id);
    pages_ += pages;
  }
  return id;
}

void Shm::get(const Event& event) {
  ipc::get(
      table_, event, [&](const Object& object) { return object.bytes < event.call.size ? EINVAL : 0; },
      [&] { return create(event); });
}

void Shm::attach(const Event& event) {
  const auto found = table_.by_id(event.call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  uint32_t wanted = (event.call.flags & kAttachReadOnly) != 0 ? kReadBits : kReadBits | kWriteBits;
  wanted |= (event.call.flags & kAttachExecute) != 0 ? kExecuteBits : 0;
  if (!permitted(found.object->permissions, event.caller.credentials, wanted)) {
    return answer(event, EACCES);
  }
  ++found.object->attached[event.caller.process.node];
  found.object->attach_time = event.now;
  found.object->last_pid = event.caller.pid;
  answer(event, 0);
  event.effects.back().answer.size = found.object->bytes;
  event.effects.back().answer.segment = found.object->segment.value;
}

Shm::Object* Shm::by_segment(SegmentId segment, int32_t* id) {
  const auto found = of_segment_.find(segment);
  if (found == of_segment_.end()) {
    return nullptr;
  }
  *id = found->second;
  return table_.by_id(found->second).object;
}

void Shm::detached(NodeId node, const Call& call, int64_t now, std::vector<Effect>& effects) {
  int32_t id = 0;
  Object* object = by_segment(SegmentId(static_cast<uint64_t>(call.value)), &id);
  if (object == nullptr) {
    return;  // of an earlier generation
  }
  const auto count = object->attached.find(node);
  if (count == object->attached.end()) {
    return;
  }
  if (count->second <= call.size) {
    object->attached.erase(count);
  } else {
    count->second -= call.size;
  }
  object->detach_time = now;
  object->last_pid = static_cast<uint32_t>(call.index);
  destroy_if_unused(id, effects);
}

void Shm::forked(NodeId node, const Call& call, int64_t now) {
  int32_t id = 0;
  Object* object = by_segment(SegmentId(static_cast<uint64_t>(call.value)), &id);
  if (object != nullptr) {
    object->attached[node] += call.size;
    object->attach_time = now;
    object->last_pid = static_cast<uint32_t>(call.index);
  }
}

void Shm::on_node_lost(NodeId node, int64_t now, std::vector<Effect>& effects) {
  for (const int32_t id : table_.ids()) {
    Object* object = table_.by_id(id).object;
    if (object->attached.erase(node) > 0) {
      object->detach_time = now;
      destroy_if_unused(id, effects);
    }
  }
}

void Shm::destroy_if_unused(int32_t id, std::vector<Effect>& effects) {
  Object* object = table_.by_id(id).object;
  const bool wanted = (object->permissions.mode & kModeDestroyed) == 0 && limits_.shm_rmid_forced == 0;
  if (wanted || object->attachments() > 0) {
    return;
  }
  Effect effect;
  effect.kind = Effect::Kind::kDestroy;
  effect.segment = object->segment;
  effects.push_back(std::move(effect));
  pages_ -= pages_of(object->bytes);
  of_segment_.erase(object->segment);
  table_.remove(id);
}

void Shm::change(const Event& event) {
  const auto found = table_.by_id(event.call.id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  Object& object = *found.object;
  if (event.call.cmd == kLock || event.call.cmd == kUnlock) {
    if (!owns(object.permissions, event.caller.credentials)) {
      return answer(event, EPERM);
    }
    const bool lock = event.call.cmd == kLock;
    object.permissions.mode =
        lock ? object.permissions.mode | kModeLocked : object.permissions.mode & ~kModeLocked;
    return answer(event, 0);
  }
  if (event.call.cmd == kIpcSet) {
    SetArguments arguments;
    const int error = set_permissions(event, object.permissions, &arguments);
    if (error == 0) {
      apply(arguments, object.permissions);
      object.change_time = event.now;
    }
    return answer(event, error);
  }
  if (!owns(object.permissions, event.caller.credentials)) {
    return answer(event, EPERM);
  }
  object.permissions.mode |= kModeDestroyed;
  table_.forget_key(event.call.id);
  answer(event, 0);
  destroy_if_unused(event.call.id, event.effects);
}

void Shm::stat(const Event& event) {
  int32_t id = event.call.id;
  const auto found = event.call.cmd == kIpcStat ? table_.by_id(id) : table_.by_index(event.call.id, &id);
  if (found.error != 0) {
    return answer(event, found.error);
  }
  const Object& object = *found.object;
  if (event.call.cmd != kStatAny && !permitted(object.permissions, event.caller.credentials, kReadBits)) {
    return answer(event, EACCES);
  }
  Stat stat = common_stat(object.permissions, id);
  stat.size = object.bytes;
  stat.count = object.attachments();
  stat.first_time = object.attach_time;
  stat.second_time = object.detach_time;
  stat.change_time = object.change_time;
  stat.first_pid = object.creator_pid;
  stat.second_pid = object.last_pid;
  answer(event, 0, event.call.cmd == kIpcStat ? 0 : id, bytes_of(stat));
}

void Shm::control(const Event& event) {
  if (event.call.cmd < 0 || event.call.id < 0) {
    return answer(event, EINVAL);
  }
  switch (event.call.cmd) {
    case kIpcInfo:
    case kInfo:
      return answer(event, 0, table_.highest_index(), bytes_of(Usage{limits_, table_.size(), pages_, 0}));
    case kIpcStat:
    case kStatIndex:
    case kStatAny:
      return stat(event);
    case kIpcSet:
    case kIpcRemove:
    case kLock:
    case kUnlock:
      return change(event);
    default:
      return answer(event, EINVAL);
  }
}

std::string Shm::proc_text() {
  std::string text =
      "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      "
      "atime      dtime"
      "      ctime                   rss                  swap\n";
  table_.each([&](int32_t id, Object& object) {
    const Permissions& p = object.permissions;
    text += fmt::format(
        "{:10} {:10}  {:4o} {:21} {:5} {:5}  {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {:21} {:21}\n", p.key,
        id, p.mode, object.bytes, object.creator_pid, object.last_pid, object.attachments(), p.uid, p.gid,
        p.cuid, p.cgid, object.attach_time, object.detach_time, object.change_time, 0, 0);
  });
  return text;
}

}  // namespace kevre::ipc
