// A cluster of services on a thread of the test, and running programs against it with their output caught.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <deque>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/fd.h"
#include "ipc/service.h"

namespace kevre::ipc::testing {

struct Ended {
  int status = -1;  // exit status; 128 + signal
  std::string out, err;
};

inline std::string contents(int fd) {
  std::string text;
  char buffer[4096];
  for (off_t at = 0;;) {
    const ssize_t got = ::pread(fd, buffer, sizeof buffer, at);
    if (got <= 0) {
      return text;
    }
    text.append(buffer, static_cast<size_t>(got));
    at += got;
  }
}

// `settings`: NAME=VALUE. Killed after a minute.
inline Ended run_with(const std::vector<std::string>& words, const std::vector<std::string>& settings,
                      bool own_namespace = false) {
  UniqueFd out(::memfd_create("out", MFD_CLOEXEC)), err(::memfd_create("err", MFD_CLOEXEC));
  std::vector<char*> arguments;
  for (const std::string& word : words) {
    arguments.push_back(const_cast<char*>(word.c_str()));
  }
  arguments.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(out.get(), 1);
    ::dup2(err.get(), 2);
    ::unsetenv("KEVRE_SOCKET");
    for (const std::string& setting : settings) {
      if (!setting.empty()) {
        ::putenv(const_cast<char*>(setting.c_str()));
      }
    }
    if (own_namespace) {
      [[maybe_unused]] const int done = ::unshare(CLONE_NEWIPC);
    }
    ::alarm(60);
    ::execvp(arguments[0], arguments.data());
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), contents(out.get()),
          contents(err.get())};
}

inline Ended run_native(const std::vector<std::string>& words) {
  return run_with(words, {}, true);
}
inline std::string preload_setting() {
  return std::string("LD_PRELOAD=") + KEVRE_PRELOAD;
}

// Nodes with a service each, on one loop on one thread, over a real transport.
class LocalCluster {
 public:
  ~LocalCluster() {
    stop();
    for (Seat& seat : seats_) {
      seat.service.reset();
    }
    for (Seat& seat : seats_) {
      seat.node.reset();
    }
    for (Seat& seat : seats_) {
      if (seat.transport) {
        loop_->remove_poller(seat.transport.get());
      }
    }
    if (!folder_.empty()) {
      std::filesystem::remove_all(folder_);
    }
  }

  // Empty, or why the test must be skipped.
  std::string start(size_t nodes) {
    char name[] = "/tmp/kevre-ipc-test-XXXXXX";
    KEVRE_CHECK(::mkdtemp(name) != nullptr, "mkdtemp errno {}", errno);
    folder_ = name;
    ::chmod(name, 0755);
    loop_ = *EventLoop::create();
    for (size_t i = 0; i < nodes; ++i) {
      Seat& seat = seats_.emplace_back();
      transport::Options options;
      options.self = NodeId(static_cast<uint16_t>(i + 1));
      options.kind = "ucx";
      options.bind_address = "127.0.0.1";
      options.cluster_tag = 99;
      seat.transport = transport::create(options).value();
      KEVRE_CHECK(loop_->add_poller(seat.transport.get()).has_value());
      dsm::Node::Options node_options;
      node_options.self = options.self;
      auto node = dsm::Node::create(node_options, loop_.get(), seat.transport.get());
      if (!node) {
        return node.error().text;
      }
      seat.node = std::move(*node);
      auto service =
          Service::create({options.self, socket(i)}, loop_.get(), seat.transport.get(), seat.node.get());
      KEVRE_CHECK(service.has_value(), "{}", service.error().text);
      seat.service = std::move(*service);
    }
    for (Seat& from : seats_) {
      for (Seat& to : seats_) {
        if (&from != &to) {
          KEVRE_CHECK(
              from.transport->connect(to.transport->self(), to.transport->local_address()).has_value());
        }
      }
    }
    view(1, 0, nodes, {});
    thread_ = std::thread([this] { loop_->run(); });
    return {};
  }

  // The nodes first..last-1 are in the view. Before start() ends, or with the loop stopped.
  void view(uint32_t number, size_t first, size_t last, std::vector<NodeId> lost) {
    cluster::View view;
    view.id = ViewId(number);
    view.lost = std::move(lost);
    for (size_t i = first; i < last; ++i) {
      view.members.push_back({});
      view.members.back().id = NodeId(static_cast<uint16_t>(i + 1));
    }
    for (size_t i = first; i < last; ++i) {
      seats_[i].node->on_view(view);
      seats_[i].service->on_view(view);
    }
  }
  void on_loop(const std::function<void()>& call) {  // and waits for it
    std::promise<void> done;
    loop_->post([&] {
      call();
      done.set_value();
    });
    done.get_future().wait();
  }
  void stop() {
    if (thread_.joinable()) {
      loop_->stop();
      thread_.join();
    }
  }

  EventLoop& loop() { return *loop_; }
  dsm::Node& node(size_t node) { return *seats_[node].node; }
  std::string socket(size_t node) const { return folder_ + "/socket" + std::to_string(node); }
  std::vector<std::string> settings(size_t node) const {
    return {preload_setting(), "KEVRE_SOCKET=" + socket(node)};
  }
  Ended run(const std::vector<std::string>& words, size_t node = 0) const {
    return run_with(words, settings(node));
  }
  ServiceStats stats(size_t node) {
    ServiceStats stats;
    on_loop([&] { stats = seats_[node].service->stats(); });
    return stats;
  }

 private:
  struct Seat {
    std::unique_ptr<transport::Transport> transport;
    std::unique_ptr<dsm::Node> node;
    std::unique_ptr<Service> service;
  };
  std::string folder_;
  std::unique_ptr<EventLoop> loop_;
  std::deque<Seat> seats_;
  std::thread thread_;
};

}  // namespace kevre::ipc::testing
