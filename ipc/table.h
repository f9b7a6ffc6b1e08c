// Table: the objects of one kind by id and by key, with Linux's rules for ids (id = sequence * 32768 + index,
// indices given out in a circle) and for permissions. Part of the namespace: pure, deterministic, one owner.
// Tested through tests/ipc/namespace_test.cc.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ipc/namespace.h"
#include "ipc/protocol.h"

namespace kevre::ipc {

// Of <linux/ipc.h>; the numbers are the ABI of programs.
inline constexpr int32_t kIpcCreate = 01000, kIpcExclusive = 02000, kIpcNoWait = 04000;
inline constexpr int32_t kIpcRemove = 0, kIpcSet = 1, kIpcStat = 2, kIpcInfo = 3;
inline constexpr uint32_t kReadBits = 0444, kWriteBits = 0222, kExecuteBits = 0111;
inline constexpr uint32_t kInvalidUser = 0xffffffffu;

struct Permissions {
  int32_t key = 0;
  uint32_t uid = 0, gid = 0, cuid = 0, cgid = 0, mode = 0;
};

inline bool in_group(const Credentials& who, uint32_t gid) {
  return who.gid == gid || std::find(who.groups.begin(), who.groups.end(), gid) != who.groups.end();
}

// May `who` do what the permission bits of `wanted` say (any of the three triples counts)? CAP_IPC_OWNER =
// uid 0.
inline bool permitted(const Permissions& object, const Credentials& who, uint32_t wanted) {
  const uint32_t requested = (wanted >> 6) | (wanted >> 3) | wanted;
  uint32_t granted = object.mode;
  if (who.uid == object.cuid || who.uid == object.uid) {
    granted >>= 6;
  } else if (in_group(who, object.cgid) || in_group(who, object.gid)) {
    granted >>= 3;
  }
  return (requested & ~granted & 07) == 0 || who.uid == 0;
}

// May `who` remove or change the object? CAP_SYS_ADMIN = uid 0.
inline bool owns(const Permissions& object, const Credentials& who) {
  return who.uid == object.cuid || who.uid == object.uid || who.uid == 0;
}

template <class Object>  // has a member `Permissions permissions`
class Table {
 public:
  // A later generation (the seat was lost) starts behind the ids of those before it, and knows theirs as
  // removed.
  explicit Table(uint32_t generation) : sequence_(generation * 1024 % kSequences) {
    first_sequence_ = sequence_;
  }

  struct Found {
    Object* object = nullptr;
    int error = 0;
  };

  Found by_id(int32_t id) {
    if (id < 0) {
      return {nullptr, EINVAL};
    }
    const auto slot = slots_.find(static_cast<uint32_t>(id) % kIndices);
    if (slot == slots_.end()) {
      return {nullptr, static_cast<uint32_t>(id) / kIndices < first_sequence_ ? EIDRM : EINVAL};
    }
    if (slot->second.id != id) {
      return {nullptr, EIDRM};
    }
    return {slot->second.object.get(), 0};
  }

  // For *_STAT, which take an index.
  Found by_index(int32_t index, int32_t* id) {
    const auto slot = index < 0 ? slots_.end() : slots_.find(static_cast<uint32_t>(index) % kIndices);
    if (slot == slots_.end()) {
      return {nullptr, EINVAL};
    }
    *id = slot->second.id;
    return {slot->second.object.get(), 0};
  }

  std::optional<int32_t> id_of_key(int32_t key) const {
    const auto found = keys_.find(key);
    return found == keys_.end() ? std::nullopt : std::optional(found->second);
  }

  // The new object's id, or -ENOSPC when there are `limit`. Fills in key, owner, creator and mode. `next_id`:
  // the id that is wished, or -1; a wish is fulfilled as far as the index is free, and forgotten.
  int32_t add(std::unique_ptr<Object> object, int32_t key, uint32_t mode, const Credentials& who,
              uint32_t limit, int32_t& next_id) {
    const auto index = free_index(limit, next_id);
    if (!index) {
      return -ENOSPC;
    }
    uint32_t sequence = sequence_;
    if (next_id >= 0) {
      sequence = static_cast<uint32_t>(next_id) / kIndices;
      next_id = -1;
    } else if (last_index_ && *index <= *last_index_) {
      sequence_ = (sequence_ + 1) % kSequences;
      first_sequence_ = sequence_ == 0 ? 0 : first_sequence_;
      sequence = sequence_;
    }
    last_index_ = *index;
    object->permissions = {key, who.uid, who.gid, who.uid, who.gid, mode & 0777};
    const auto id = static_cast<int32_t>(sequence * kIndices + *index);
    slots_.emplace(*index, Slot{id, std::move(object)});
    if (key != 0) {
      keys_.emplace(key, id);
    }
    return id;
  }

  void forget_key(int32_t id) {
    Object* object = by_id(id).object;
    if (object != nullptr && object->permissions.key != 0) {
      keys_.erase(object->permissions.key);
      object->permissions.key = 0;
    }
  }

  void remove(int32_t id) {
    forget_key(id);
    slots_.erase(static_cast<uint32_t>(id) % kIndices);
  }

  size_t size() const { return slots_.size(); }
  int32_t highest_index() const { return slots_.empty() ? 0 : static_cast<int32_t>(slots_.rbegin()->first); }
  // In the order of indices. The call may not add or remove.
  void each(const std::function<void(int32_t id, Object& object)>& call) {
    for (auto& [index, slot] : slots_) {
      call(slot.id, *slot.object);
    }
  }
  std::vector<int32_t> ids() const {
    std::vector<int32_t> all;
    for (const auto& [index, slot] : slots_) {
      all.push_back(slot.id);
    }
    return all;
  }

  static uint32_t sequence_of(int32_t id) { return static_cast<uint32_t>(id) / kIndices; }

 private:
  static constexpr uint32_t kIndices = 32768;
  static constexpr uint32_t kSequences = 65535;
  static constexpr uint32_t kCircleMin = 64;

  struct Slot {
    int32_t id = 0;
    std::unique_ptr<Object> object;
  };

  std::optional<uint32_t> free_index(uint32_t limit, int32_t next_id) {
    if (slots_.size() >= limit) {
      return std::nullopt;
    }
    if (next_id >= 0) {
      for (uint32_t i = static_cast<uint32_t>(next_id) % kIndices; i < kIndices; ++i) {
        if (!slots_.contains(i)) {
          return i;
        }
      }
      return std::nullopt;
    }
    const auto used = static_cast<uint32_t>(slots_.size());
    const uint32_t circle = std::min(std::max(used * 3 / 2, kCircleMin), limit);
    for (uint32_t start : {next_index_, 0u}) {
      for (uint32_t i = start; i < circle; ++i) {
        if (!slots_.contains(i)) {
          next_index_ = i + 1;
          return i;
        }
      }
    }
    return std::nullopt;
  }

  uint32_t sequence_;
  uint32_t first_sequence_ = 0;
  uint32_t next_index_ = 0;
  std::optional<uint32_t> last_index_;
  std::map<uint32_t, Slot> slots_;
  std::map<int32_t, int32_t> keys_;
};

// What the three kinds' handlers share.
struct Event {
  const Caller& caller;
  const Call& call;
  std::span<const std::byte> payload;
  int64_t now;  // seconds since 1970
  std::vector<Effect>& effects;
};

inline void answer(std::vector<Effect>& effects, CallId call, int error, int64_t value = 0,
                   std::vector<std::byte> data = {}) {
  Effect effect;
  effect.kind = Effect::Kind::kAnswer;
  effect.call = call;
  effect.answer.error = error;
  effect.answer.number = call.number;
  effect.answer.value = error != 0 ? -1 : value;
  effect.answer.payload_bytes = static_cast<uint32_t>(data.size());
  effect.data = std::move(data);
  effects.push_back(std::move(effect));
}
inline void answer(const Event& event, int error, int64_t value = 0, std::vector<std::byte> data = {}) {
  answer(event.effects, event.caller.call, error, value, std::move(data));
}

template <class T>
std::vector<std::byte> bytes_of(const T& value) {
  const auto* first = reinterpret_cast<const std::byte*>(&value);
  return {first, first + sizeof value};
}

// The common part of shmget, semget and msgget. `fits(object)`: 0 or the errno of an existing object that
// does not suit; `create()`: the new id or a negative errno.
template <class Object, class Fits, class Create>
void get(Table<Object>& table, const Event& event, Fits fits, Create create) {
  const Call& call = event.call;
  const auto existing = call.key == 0 ? std::nullopt : table.id_of_key(call.key);
  if (!existing) {
    if (call.key != 0 && (call.flags & kIpcCreate) == 0) {
      return answer(event, ENOENT);
    }
    const int32_t id = create();
    return id < 0 ? answer(event, -id) : answer(event, 0, id);
  }
  if ((call.flags & kIpcCreate) != 0 && (call.flags & kIpcExclusive) != 0) {
    return answer(event, EEXIST);
  }
  Object& object = *table.by_id(*existing).object;
  if (const int error = fits(object); error != 0) {
    return answer(event, error);
  }
  if (!permitted(object.permissions, event.caller.credentials, static_cast<uint32_t>(call.flags) & 0777)) {
    return answer(event, EACCES);
  }
  answer(event, 0, *existing);
}

// The arguments of IPC_SET, checked; 0 or an errno.
inline int set_permissions(const Event& event, Permissions& object, SetArguments* arguments) {
  if (event.payload.size() != sizeof *arguments) {
    return EINVAL;
  }
  std::copy(event.payload.begin(), event.payload.end(), reinterpret_cast<std::byte*>(arguments));
  if (!owns(object, event.caller.credentials)) {
    return EPERM;
  }
  if (arguments->uid == kInvalidUser || arguments->gid == kInvalidUser) {
    return EINVAL;
  }
  return 0;
}
inline void apply(const SetArguments& arguments, Permissions& object) {
  object.uid = arguments.uid;
  object.gid = arguments.gid;
  object.mode = (object.mode & ~0777u) | (arguments.mode & 0777u);
}

inline Stat common_stat(const Permissions& permissions, int32_t id) {
  Stat stat;
  stat.key = permissions.key;
  stat.id = id;
  stat.uid = permissions.uid;
  stat.gid = permissions.gid;
  stat.cuid = permissions.cuid;
  stat.cgid = permissions.cgid;
  stat.mode = permissions.mode;
  stat.sequence = static_cast<uint32_t>(id) / 32768;
  return stat;
}

}  // namespace kevre::ipc
