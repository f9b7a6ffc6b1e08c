// Logging, off the fault path. Levels by volume: error and warn tell an operator what to do, info what happened to the
// cluster (a handful of lines an hour), debug what happened to an object, trace every message.
// Threads: any. Level from KEVRE_LOG=error|warn|info|debug|trace (default warn); text goes to stderr.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

namespace kevre {

// Once, at the start of main. `name` marks the lines ("kevred n2").
void log_start(std::string_view name);

}  // namespace kevre

#define KEVRE_LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)
#define KEVRE_LOG_WARN(...) ::spdlog::warn(__VA_ARGS__)
#define KEVRE_LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define KEVRE_LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define KEVRE_LOG_TRACE(...) ::spdlog::trace(__VA_ARGS__)
