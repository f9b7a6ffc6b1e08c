#include "ipc/limits.h"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <limits>
#include <vector>

namespace kevre::ipc {
namespace {
constexpr uint64_t kObjectsMax = 32768;  // of one kind: an id has 15 bits for the index
constexpr uint64_t kIntMax = std::numeric_limits<int32_t>::max();

bool blank(char c) {
  return c == ' ' || c == '\t' || c == '\n';
}

// At most `count` numbers, none above `most`; empty: the text is something else.
std::vector<uint64_t> numbers(std::string_view text, size_t count, uint64_t most) {
  std::vector<uint64_t> found;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (found.size() < count) {
    while (at != end && blank(*at)) {
      ++at;
    }
    if (at == end || *at == '\0') {
      return found;
    }
    uint64_t value = 0;
    const auto parsed = std::from_chars(at, end, value);
    const bool ends = parsed.ptr == end || blank(*parsed.ptr) || *parsed.ptr == '\0';
    if (parsed.ec != std::errc() || !ends || value > most) {
      return {};
    }
    found.push_back(value);
    at = parsed.ptr;
  }
  return found;
}

template <class T>
int set_one(T& value, std::string_view text, uint64_t most) {
  const auto found = numbers(text, 1, most);
  if (found.empty()) {
    return EINVAL;
  }
  value = static_cast<T>(found.front());
  return 0;
}

int set_sem(Limits& limits, std::string_view text) {
  const auto found = numbers(text, 4, kIntMax);
  uint32_t* const values[] = {&limits.sem_msl, &limits.sem_mns, &limits.sem_opm, &limits.sem_mni};
  // The longest arrays that a record carries are those of the defaults.
  const uint64_t most[] = {kSemMsl, kIntMax, kSemOpm, kObjectsMax};
  for (size_t i = 0; i < found.size(); ++i) {
    if (found[i] > most[i]) {
      return EINVAL;
    }
  }
  for (size_t i = 0; i < found.size(); ++i) {
    *values[i] = static_cast<uint32_t>(found[i]);
  }
  return found.empty() ? EINVAL : 0;
}
}  // namespace

std::string setting_text(const Limits& limits, Setting which) {
  switch (which) {
    case Setting::kShmmax:
      return fmt::format("{}\n", limits.shm_max);
    case Setting::kShmall:
      return fmt::format("{}\n", limits.shm_all);
    case Setting::kShmmni:
      return fmt::format("{}\n", limits.shm_mni);
    case Setting::kShmRmidForced:
      return fmt::format("{}\n", limits.shm_rmid_forced);
    case Setting::kShmNextId:
      return fmt::format("{}\n", limits.shm_next_id);
    case Setting::kSem:
      return fmt::format("{}\t{}\t{}\t{}\n", limits.sem_msl, limits.sem_mns, limits.sem_opm, limits.sem_mni);
    case Setting::kSemNextId:
      return fmt::format("{}\n", limits.sem_next_id);
    case Setting::kMsgmax:
      return fmt::format("{}\n", limits.msg_max);
    case Setting::kMsgmnb:
      return fmt::format("{}\n", limits.msg_mnb);
    case Setting::kMsgmni:
      return fmt::format("{}\n", limits.msg_mni);
    case Setting::kMsgNextId:
      return fmt::format("{}\n", limits.msg_next_id);
  }
  return {};
}

int set_setting(Limits& limits, Setting which, std::string_view text) {
  switch (which) {
    case Setting::kShmmax:
      return set_one(limits.shm_max, text, std::numeric_limits<uint64_t>::max());
    case Setting::kShmall:
      return set_one(limits.shm_all, text, std::numeric_limits<uint64_t>::max());
    case Setting::kShmmni:
      return set_one(limits.shm_mni, text, kObjectsMax);
    case Setting::kShmRmidForced:
      return set_one(limits.shm_rmid_forced, text, 1);
    case Setting::kShmNextId:
      return set_one(limits.shm_next_id, text, kIntMax);
    case Setting::kSem:
      return set_sem(limits, text);
    case Setting::kSemNextId:
      return set_one(limits.sem_next_id, text, kIntMax);
    case Setting::kMsgmax:
      return set_one(limits.msg_max, text, kMsgBytesMost);
    case Setting::kMsgmnb:
      return set_one(limits.msg_mnb, text, kIntMax);
    case Setting::kMsgmni:
      return set_one(limits.msg_mni, text, kObjectsMax);
    case Setting::kMsgNextId:
      return set_one(limits.msg_next_id, text, kIntMax);
  }
  return EINVAL;
}

}  // namespace kevre::ipc
