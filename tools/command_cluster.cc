// `kevre cluster up|down|status` and `kevre nodes`.
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "cluster/local.h"
#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/sockets.h"
#include "tools/table.h"

namespace kevre::tools {
namespace {

constexpr int kTimeoutMs = 5000;

Result<nlohmann::json> ask(const std::string& socket, const nlohmann::json& request) {
  KEVRE_ASSIGN(ControlClient client, ControlClient::connect(socket));
  return client.call(request, kTimeoutMs);
}

// What a daemon says of itself, with its pid as it is seen from here.
Result<nlohmann::json> ask_to_describe(const std::string& socket) {
  KEVRE_ASSIGN(ControlClient client, ControlClient::connect(socket));
  KEVRE_ASSIGN(nlohmann::json answer, client.call({{"do", "describe"}}, kTimeoutMs));
  answer["daemon_pid"] = client.daemon_pid();
  return answer;
}

std::string joined(const nlohmann::json& words) {
  std::string text;
  for (const auto& word : words) {
    text += (text.empty() ? "" : ", ") + word.get<std::string>();
  }
  return text;
}

}  // namespace

int cluster_up(const Target& target, const UpOptions& options) {
  cluster::local::Options up;
  up.name = target.cluster;
  up.nodes = options.nodes;
  up.plain = options.plain;
  up.kevred = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "kevred";
  up.transport = options.transport;
  if (!options.ucx_tls.empty()) {
    up.daemon_arguments.insert(up.daemon_arguments.end(), {"--ucx-tls", options.ucx_tls});
  }
  if (options.spin_us >= 0) {
    up.daemon_arguments.insert(up.daemon_arguments.end(), {"--spin-us", std::to_string(options.spin_us)});
  }
  const bool terminal = ::isatty(STDERR_FILENO) == 1 && !options.quiet;
  if (terminal) {
    up.progress = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  }
  // Ctrl-C in the middle leaves nothing behind. Every process that up() starts unblocks its signals.
  sigset_t stop;
  sigemptyset(&stop);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    sigaddset(&stop, number);
  }
  ::sigprocmask(SIG_BLOCK, &stop, nullptr);
  const UniqueFd stop_fd(::signalfd(-1, &stop, SFD_CLOEXEC));
  up.stop_fd = stop_fd.get();
  const auto result = cluster::local::up(up);
  if (!result) {
    return complain(result.error());
  }
  if (!result->missing.empty() && !options.quiet) {
    std::fprintf(stderr, "kevre: %s\n", result->missing.c_str());
  }
  return 0;
}

int cluster_down(const Target& target) {
  const auto result = cluster::local::down(target.cluster);
  return result ? 0 : complain(result.error());
}

int cluster_status(const Target& target, bool json) {
  const auto nodes = cluster::local::describe(target.cluster);
  if (!nodes) {
    return complain(nodes.error());
  }
  auto list = nlohmann::json::array();
  for (const auto& node : *nodes) {
    auto answer = ask_to_describe(node.control_socket);
    nlohmann::json one = answer ? *answer : nlohmann::json{{"name", node.name}, {"state", "down"}, {"address", ""},
                                                           {"transports", nlohmann::json::array()}};
    if (!answer) {
      one["why"] = answer.error().text;
    }
    one["init_pid"] = node.init_pid;
    list.push_back(one);
  }
  if (json) {
    std::printf("%s\n", nlohmann::json{{"cluster", target.cluster}, {"nodes", list}}.dump(2).c_str());
    return 0;
  }
  Table table({"node", "state", "address", "transport", "programs", "faults", "median us", "p99 us", "calls here", "calls away"});
  for (const auto& one : list) {
    if (one["state"] == "down") {
      table.add({one["name"], "down", one["why"]});
      continue;
    }
    table.add({one["name"], one["state"], one["address"], joined(one["transports"]), one["programs"].dump(), one["faults"].dump(),
               fmt::format("{:.1f}", one["fault_us"]["median"].get<double>()),
               fmt::format("{:.1f}", one["fault_us"]["p99"].get<double>()), one["calls_local"].dump(), one["calls_remote"].dump()});
  }
  table.print(stdout);
  return 0;
}

int nodes_list(const Target& target, bool json) {
  const auto path = control_socket_of(target.cluster);
  if (!path) {
    return complain(path.error());
  }
  const auto nodes = ask(*path, {{"do", "nodes"}});
  if (!nodes) {
    return complain(nodes.error());
  }
  if (json) {
    std::printf("%s\n", nodes->dump(2).c_str());
    return 0;
  }
  Table table({"node", "state", "address", "transports"});
  for (const auto& node : *nodes) {
    table.add({node["name"], node["state"], node["address"], joined(node["transports"])});
  }
  table.print(stdout);
  return 0;
}

}  // namespace kevre::tools
