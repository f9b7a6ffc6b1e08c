// Where the command line finds a daemon, and how names that are not UTF-8 travel in JSON. Threads: any.
// Tested in tests/tools/control_test.cc.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"

namespace kevre::tools {

// Inside a node (KEVRE_CONTROL is set): that node's daemon. Outside: node `preferred` of the local cluster, so that a run
// there does not depend on another node, else the first that answers. kNotFound with the remedy when there is none.
Result<std::string> control_socket_of(const std::string& cluster, const std::string& preferred = "");

// Arguments, environment and paths are bytes; JSON strings are UTF-8. Each byte travels as the code point of the same
// number, so every byte string survives.
std::string bytes_to_json(const std::string& bytes);
Result<std::string> bytes_from_json(const nlohmann::json& text);

}  // namespace kevre::tools
