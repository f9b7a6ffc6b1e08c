#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace kevre {

void log_start(std::string_view name) {
  auto logger = std::make_shared<spdlog::logger>(std::string(name), std::make_shared<spdlog::sinks::stderr_sink_mt>());
  const char* level = std::getenv("KEVRE_LOG");
  logger->set_level(level == nullptr ? spdlog::level::warn : spdlog::level::from_str(level));
  logger->set_pattern("%H:%M:%S.%f %n %l: %v");
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace kevre
