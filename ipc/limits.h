// The limits of the namespace, which programs read and set as /proc/sys/kernel/{shm*,sem*,msg*}, and their
// texts. Plain data and pure functions. Threads: any. Tested in tests/ipc/limits_test.cc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "ipc/protocol.h"

namespace kevre::ipc {

// As the file in /proc/sys/kernel shows it.
std::string setting_text(const Limits& limits, Setting which);

// What a write to the file does: 0, or EINVAL and nothing changed.
int set_setting(Limits& limits, Setting which, std::string_view text);

}  // namespace kevre::ipc
