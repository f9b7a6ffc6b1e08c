// KEVRE_CHECK: a programmer error stops loudly, with state, in every build. KEVRE_DCHECK: only where NDEBUG is not set.
// Bad input from a program, a peer or a file is never a CHECK: it is a Result.
// Threads: any. Tested in tests/base/check_test.cc.
#pragma once

#include <fmt/format.h>

#include <string>

namespace kevre {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& state);
}

#define KEVRE_CHECK(condition, ...)                                                          \
  do {                                                                                       \
    if (!(condition)) [[unlikely]] {                                                         \
      ::kevre::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__));  \
    }                                                                                        \
  } while (false)

#ifdef NDEBUG
#define KEVRE_DCHECK(condition, ...) \
  do {                               \
  } while (false)
#else
#define KEVRE_DCHECK(condition, ...) KEVRE_CHECK(condition, __VA_ARGS__)
#endif
