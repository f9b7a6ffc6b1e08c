#include "base/check.h"

#include <unistd.h>

#include <cstdlib>

namespace kevre {

void check_failed(const char* file, int line, const char* condition, const std::string& state) {
  const std::string text = fmt::format("kevre: CHECK failed at {}:{}: {} {}\n", file, line, condition, state);
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
  std::abort();
}

}  // namespace kevre
