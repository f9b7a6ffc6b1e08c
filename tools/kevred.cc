// kevred: the daemon of one node. Also the first process of a local cluster's node (--init) and the holder of its bridge
// (--hold), so that a cluster needs one binary. Exit: 0 left in good order, 1 failed (one line on stderr), 2 usage.
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <utility>

#include "base/log.h"
#include "cluster/local.h"
#include "tools/daemon.h"

namespace {

struct Arguments {
  kevre::tools::Daemon::Options daemon;
  kevre::cluster::local::InitOptions init;
  std::string key_file;
  std::string cluster_directory;
  int64_t spin_us = 20;
  bool is_init = false;
  bool is_holder = false;
};

void declare(CLI::App& app, Arguments& a) {
  auto& agent = a.daemon.agent;
  app.add_option("--name", agent.name, "this node's name, unique in the cluster");
  app.add_option("--listen", agent.listen, "ADDRESS:PORT of the daemon's port; port 0: any")->capture_default_str();
  app.add_option("--join", agent.join, "ADDRESS:PORT of any node of the cluster; without it a new cluster begins");
  app.add_option("--key-file", a.key_file, "the cluster key (64 hex digits, mode 0600)")->required();
  app.add_option("--control-socket", a.daemon.control_socket, "for the command line")->capture_default_str();
  app.add_option("--node-socket", a.daemon.node_socket, "for programs")->capture_default_str();
  app.add_option("--transport", agent.transport_kind, "auto, ucx or verbs")->capture_default_str();
  app.add_option("--ucx-tls", agent.ucx_tls, "what UCX may use, as UCX_TLS");
  app.add_option("--spin-us", a.spin_us, "spin so long after traffic before sleeping")->capture_default_str();
  app.add_option("--note", a.daemon.note, "what this node does without, for kevre info")->group("");
  app.add_option("--pid-first", agent.pid_first, "the node's pid range");
  app.add_option("--pid-last", agent.pid_last);
  app.add_option("--ready-fd", a.init.ready_fd, "a descriptor that is told when the daemon is ready")->group("");
  app.add_option("--cluster-directory", a.cluster_directory)->group("");
  app.add_flag("--init", a.is_init)->group("");
  app.add_flag("--hold", a.is_holder)->group("");
  app.add_flag("--init-plain", a.init.plain)->group("");
  app.add_option("--init-soft-roce", a.init.soft_roce)->group("");
  app.add_option("--init-index", a.init.index)->group("");
  app.add_option("--init-nodes", a.init.nodes)->group("");
  app.add_option("--go-fd", a.init.go_fd)->group("");
  app.add_option("--log", a.init.log)->group("");
}

// The daemon's command line is the init's own without what is the init's alone.
int be_init(Arguments& a, int argc, char** argv) {
  a.init.node = a.daemon.agent.name;
  const std::set<std::string> flags{"--init", "--init-plain"};
  const std::set<std::string> options{"--init-index", "--init-nodes", "--init-soft-roce", "--go-fd", "--log"};
  a.init.daemon.push_back(std::filesystem::read_symlink("/proc/self/exe"));
  for (int i = 1; i < argc; ++i) {
    if (options.contains(argv[i])) {
      ++i;
    } else if (!flags.contains(argv[i])) {
      a.init.daemon.push_back(argv[i]);
    }
  }
  return kevre::cluster::local::node_init_main(a.init);
}

int complain(const kevre::Error& error) {
  std::fprintf(stderr, "kevred: %s\n", error.text.c_str());
  return 1;
}

// Every program costs descriptors here. Programs get the limit of before: some of them use select().
uint64_t raise_open_files() {
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0) {
    return 0;
  }
  const rlim_t before = std::exchange(files.rlim_cur, files.rlim_max);
  return ::setrlimit(RLIMIT_NOFILE, &files) == 0 ? before : 0;
}

int be_daemon(Arguments& a) {
  a.daemon.open_files = raise_open_files();
  const auto key = kevre::cluster::read_key_file(a.key_file);
  if (!key) {
    return complain(key.error());
  }
  a.daemon.agent.key = *key;
  a.daemon.spin_ns = a.spin_us * 1000;
  const std::filesystem::path binary = std::filesystem::read_symlink("/proc/self/exe");
  a.daemon.preload = binary.parent_path().parent_path() / "lib" / "libkevre-preload.so";
  auto daemon = kevre::tools::Daemon::create(a.daemon);
  if (!daemon) {
    return complain(daemon.error());
  }
  if (a.init.ready_fd >= 0) {
    ::dprintf(a.init.ready_fd, "ready %s\n", (*daemon)->address().c_str());
    ::close(a.init.ready_fd);
  }
  (*daemon)->run();
  return (*daemon)->exit_code();
}

}  // namespace

int main(int argc, char** argv) {
  Arguments a;
  a.daemon.agent.listen = "0.0.0.0:7711";
  a.daemon.control_socket = "/run/kevre/control.sock";
  a.daemon.node_socket = "/run/kevre/node.sock";
  CLI::App app{"kevred: the daemon of one kevre node", "kevred"};
  declare(app, a);
  // The holder only keeps its network namespace alive until it is killed.
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--hold") {
      for (;;) {
        ::pause();
      }
    }
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  kevre::log_start("kevred " + a.daemon.agent.name);
  return a.is_init ? be_init(a, argc, argv) : be_daemon(a);
}
