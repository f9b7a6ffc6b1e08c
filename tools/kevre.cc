// kevre: the command line. Maps arguments onto tools/commands.h; decides nothing. Exit: 0 done, 1 failed, 2 usage.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "base/log.h"
#include "cluster/handshake.h"
#include "tools/commands.h"

namespace {

using namespace kevre::tools;

std::string default_cluster() {
  const char* name = std::getenv("KEVRE_CLUSTER");
  return name == nullptr ? "local" : name;
}

struct Arguments {
  Target target{default_cluster()};
  UpOptions up;
  RunOptions run;
  BenchOptions bench;
  bool json = false;
  bool version = false;
};

void add_json(CLI::App* command, bool& json) { command->add_flag("--json", json, "print JSON"); }

// Each final command stores what to do in `action`.
void add_cluster(CLI::App& app, Arguments& a, std::function<int()>& action) {
  CLI::App* cluster = app.add_subcommand("cluster", "bring a cluster on this machine up or down, look at it");
  cluster->require_subcommand(1);
  CLI::App* up = cluster->add_subcommand("up", "start nodes n1, n2, ... on this machine");
  up->add_option("--local", a.up.nodes, "how many nodes")->required()->check(CLI::Range(1, 64));
  up->add_option("--transport", a.up.transport, "auto, ucx or verbs")->check(CLI::IsMember({"auto", "ucx", "verbs"}));
  up->add_flag("--plain", a.up.plain, "plain processes on 127.0.0.1, without namespaces (what happens without root)");
  up->add_option("--ucx-tls", a.up.ucx_tls, "what UCX may use, as UCX_TLS: tcp, or posix for shared memory");
  up->add_option("--spin-us", a.up.spin_us, "how long a daemon spins after traffic before it sleeps")
      ->check(CLI::Range(int64_t{0}, int64_t{10'000'000}));
  up->callback([&] { action = [&a] { return cluster_up(a.target, a.up); }; });
  CLI::App* down = cluster->add_subcommand("down", "stop everything; nothing is left behind");
  down->callback([&] { action = [&a] { return cluster_down(a.target); }; });
  CLI::App* status = cluster->add_subcommand("status", "nodes, programs, faults, transport");
  add_json(status, a.json);
  status->callback([&] { action = [&a] { return cluster_status(a.target, a.json); }; });
}

void add_nodes(CLI::App& app, Arguments& a, std::function<int()>& action) {
  CLI::App* nodes = app.add_subcommand("nodes", "the nodes of the current view");
  add_json(nodes, a.json);
  nodes->require_subcommand(0, 1);
  CLI::App* list = nodes->add_subcommand("list", "list them (the default)");
  add_json(list, a.json);
  nodes->callback([&] { action = [&a] { return nodes_list(a.target, a.json); }; });
}

void add_run(CLI::App& app, Arguments& a, std::function<int()>& action) {
  CLI::App* run_command = app.add_subcommand("run", "run an unmodified program on a node");
  auto* on = run_command->add_option("--on", a.run.node, "the node's name");
  run_command->add_option("-n", a.run.copies, "so many copies, spread over the nodes")->check(CLI::Range(1, 1024))->excludes(on);
  run_command->footer("The program and its arguments follow the options: kevre run [--on NODE | -n N] [--] PROGRAM [ARGUMENT...]");
  run_command->callback([&a, &action] {
    if (a.run.command.empty()) {
      throw CLI::RequiredError("PROGRAM");
    }
    action = [&a] { return run(a.target, a.run); };
  });
}

void add_rest(CLI::App& app, Arguments& a, std::function<int()>& action) {
  CLI::App* bench = app.add_subcommand("bench", "measure: ours and the raw transport in one run");
  bench->require_subcommand(1);
  CLI::App* fault = bench->add_subcommand("fault", "page faults served by another node");
  CLI::App* transport = bench->add_subcommand("transport", "messages and one-sided operations between two processes");
  for (CLI::App* one : {fault, transport}) {
    add_json(one, a.bench.json);
    one->add_flag("--quick", a.bench.quick, "fewer rounds");
    one->add_option("--transport", a.bench.transport, "auto (all that are here), ucx or verbs")
        ->check(CLI::IsMember({"auto", "ucx", "verbs"}));
    one->add_option("--iterations", a.bench.iterations, "so many of each measurement, for slow machines")
        ->check(CLI::Range(uint64_t{1}, uint64_t{1'000'000}));
  }
  fault->callback([&] { action = [&a] { return bench_fault(a.bench); }; });
  transport->callback([&] { action = [&a] { return bench_transport(a.bench); }; });
  CLI::App* look = app.add_subcommand("info", "this node: version, transport, kernel features");
  add_json(look, a.json);
  look->callback([&] { action = [&a] { return info(a.target, a.json); }; });
  CLI::App* mend = app.add_subcommand("doctor", "what this machine lacks, and the command that mends it");
  add_json(mend, a.json);
  mend->callback([&] { action = [&a] { return doctor(a.json); }; });
}

// Takes the program of `kevre run` and its arguments off the command line, with or without "--": its options are not
// ours. Returns how many words stay.
int take_program(int argc, char** argv, std::vector<std::string>& command) {
  const std::set<std::string> with_value{"--cluster", "--on", "-n"};
  bool in_run = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (with_value.contains(word)) {
      ++i;
    } else if (!in_run && word == "run") {
      in_run = true;
    } else if (!in_run && word[0] != '-') {
      return argc;  // another command
    } else if (in_run && (word == "--" || word[0] != '-')) {
      command.assign(argv + i + (word == "--" ? 1 : 0), argv + argc);
      return i;
    }
  }
  return argc;
}

// CLI11 calls a mistyped command a missing one.
std::string unknown_command(const CLI::App& app, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--cluster") {
      ++i;
    } else if (word[0] != '-') {
      const auto named = app.get_subcommands([&](const CLI::App* sub) { return sub->get_name() == word; });
      return named.empty() ? word : "";
    }
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  kevre::log_start("kevre");
  Arguments a;
  argc = take_program(argc, argv, a.run.command);
  std::function<int()> action;
  CLI::App app{"kevre: programs on many machines share memory and System V IPC", "kevre"};
  app.add_option("--cluster", a.target.cluster, "name of the local cluster (default: $KEVRE_CLUSTER or \"local\")");
  app.set_version_flag("--version", "kevre " KEVRE_VERSION);
  app.require_subcommand(1);
  add_cluster(app, a, action);
  add_nodes(app, a, action);
  add_run(app, a, action);
  add_rest(app, a, action);
  try {
    app.parse(argc, argv);
    if (!kevre::cluster::good_name(a.target.cluster)) {  // also one from the environment
      throw CLI::ValidationError(
          "--cluster", "'" + a.target.cluster + "' is no name for a cluster; use letters, digits, '-', '_' and '.', at most 63");
    }
  } catch (const CLI::RequiredError& error) {
    if (const std::string word = unknown_command(app, argc, argv); !word.empty()) {
      std::fprintf(stderr, "kevre: unknown command '%s'; kevre --help lists the commands\n", word.c_str());
      return 2;
    }
    return app.exit(error), 2;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return action();
}
