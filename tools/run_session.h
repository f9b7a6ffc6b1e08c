// RunSession: joins one control connection of `kevre run` to one run of the launcher. Lives as long as the connection,
// which owns it. Threads: the loop's. Tested in tests/tools/run_test.py.
#pragma once

#include <nlohmann/json.hpp>

#include "cluster/agent.h"
#include "cluster/launcher.h"
#include "tools/control_server.h"

namespace kevre::tools {

// Answers on the connection in any case: frames of the run, or one kError.
void start_run_session(cluster::Launcher& launcher, const cluster::Agent& agent, ControlConnection& connection,
                       const nlohmann::json& request);

}  // namespace kevre::tools
