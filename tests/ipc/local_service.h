// A Service of one node on a thread of the test, and running programs against it with their output caught.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "ipc/service.h"
#include "tests/ipc/fake_segments.h"

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
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), contents(out.get()), contents(err.get())};
}

inline Ended run_native(const std::vector<std::string>& words) { return run_with(words, {}, true); }
inline std::string preload_setting() { return std::string("LD_PRELOAD=") + KEVRE_PRELOAD; }

class LocalService {
 public:
  ~LocalService() {
    if (thread_.joinable()) {
      loop_->stop();
      thread_.join();
    }
    service_.reset();
    std::filesystem::remove_all(folder_);
  }
  void start() {
    char name[] = "/tmp/kevre-ipc-test-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    ::chmod(name, 0755);
    loop_ = *EventLoop::create();
    auto fake = std::make_unique<FakeSegments>();
    segments = fake.get();
    auto service = Service::create({NodeId(1), socket()}, loop_.get(), nullptr, std::move(fake));
    ASSERT_TRUE(service) << service.error().text;
    service_ = std::move(*service);
    cluster::View view;
    view.id = ViewId(1);
    view.members.push_back({});
    view.members.front().id = NodeId(1);
    service_->on_view(view);
    thread_ = std::thread([this] { loop_->run(); });
  }
  std::string socket() const { return folder_ + "/socket"; }
  Ended run(const std::vector<std::string>& words) const {
    return run_with(words, {preload_setting(), "KEVRE_SOCKET=" + socket()});
  }
  FakeSegments* segments = nullptr;

 private:
  std::string folder_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<Service> service_;
  std::thread thread_;
};

}  // namespace kevre::ipc::testing
