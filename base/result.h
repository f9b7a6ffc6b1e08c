// Result<T>: what an operation that can fail returns. Error carries the cause, grouped by what is broken, so that a
// caller knows the recovery from the group, and one sentence for a person: cause and, where there is one, remedy.
// Owns: nothing. Threads: any. Tested in tests/base/result_test.cc.
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace kevre {

enum class Errc : uint8_t {
  kInvalid,      // the request is wrong: mend the caller
  kNotFound,     // the named thing does not exist
  kExists,       // it exists already
  kDenied,       // permission or key
  kBusy,         // full for the moment: try again after progress
  kExhausted,    // memory, descriptors, disk, a limit
  kUnsupported,  // this kernel, device or peer cannot do it
  kTimedOut,
  kPeerLost,     // the other node or program is gone
  kViewChanged,  // the request belongs to an older view
  kCorrupt,      // bytes that no correct sender writes
  kSystem,       // a system call failed for another reason; see sys_errno
};

std::string_view errc_name(Errc code);

struct Error {
  Errc code = Errc::kSystem;
  int sys_errno = 0;  // 0 when no system call was involved
  std::string text;   // one line, without "error:" and without a full stop
};

template <class T>
using Result = tl::expected<T, Error>;

// The Errc that fits an errno value best.
Errc errc_from_errno(int value);

template <class... Args>
[[nodiscard]] tl::unexpected<Error> fail(Errc code, fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(Error{code, 0, fmt::format(format, std::forward<Args>(args)...)});
}

// Reads errno: call it before anything else can change it. Appends ": strerror".
[[nodiscard]] tl::unexpected<Error> fail_errno_text(int value, std::string what);

template <class... Args>
[[nodiscard]] tl::unexpected<Error> fail_errno(fmt::format_string<Args...> format, Args&&... args) {
  const int value = errno;
  return fail_errno_text(value, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace kevre

// Leaves the function with the error when `expression` (a Result) holds one.
#define KEVRE_TRY(expression)                               \
  do {                                                      \
    auto kevre_try_result = (expression);                   \
    if (!kevre_try_result) {                                \
      return tl::unexpected(std::move(kevre_try_result).error()); \
    }                                                       \
  } while (false)

#define KEVRE_TRY_CAT2(a, b) a##b
#define KEVRE_TRY_CAT(a, b) KEVRE_TRY_CAT2(a, b)

// KEVRE_ASSIGN(auto x, f()): x is the value, or the function is left with the error.
#define KEVRE_ASSIGN(declaration, expression)                              \
  auto KEVRE_TRY_CAT(kevre_result_, __LINE__) = (expression);              \
  if (!KEVRE_TRY_CAT(kevre_result_, __LINE__)) {                           \
    return tl::unexpected(std::move(KEVRE_TRY_CAT(kevre_result_, __LINE__)).error()); \
  }                                                                        \
  declaration = std::move(*KEVRE_TRY_CAT(kevre_result_, __LINE__))
