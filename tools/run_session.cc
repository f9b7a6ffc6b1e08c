#include "tools/run_session.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "tools/sockets.h"

namespace kevre::tools {
namespace {

using cluster::LaunchRequest;

Result<std::vector<std::string>> byte_strings(const nlohmann::json& request, const char* name) {
  std::vector<std::string> list;
  const auto found = request.find(name);
  if (found == request.end() || !found->is_array()) {
    return fail(Errc::kCorrupt, "the request has no list '{}'", name);
  }
  for (const auto& item : *found) {
    KEVRE_ASSIGN(std::string text, bytes_from_json(item));
    list.push_back(std::move(text));
  }
  return list;
}

uint32_t number(const nlohmann::json& request, const char* name) {
  const auto found = request.find(name);
  return found != request.end() && found->is_number_unsigned() ? found->get<uint32_t>() : 0;
}

Result<LaunchRequest> parse(const nlohmann::json& request) {
  LaunchRequest launch;
  KEVRE_ASSIGN(launch.argv, byte_strings(request, "argv"));
  KEVRE_ASSIGN(launch.env, byte_strings(request, "environment"));
  KEVRE_ASSIGN(launch.cwd, bytes_from_json(request.value("cwd", nlohmann::json("/"))));
  if (launch.argv.empty()) {
    return fail(Errc::kInvalid, "no program is named");
  }
  launch.uid = number(request, "uid");
  launch.gid = number(request, "gid");
  launch.umask = number(request, "umask");
  if (const auto groups = request.find("groups"); groups != request.end() && groups->is_array()) {
    for (const auto& group : *groups) {
      launch.groups.push_back(group.is_number_unsigned() ? group.get<uint32_t>() : 0);
    }
  }
  launch.pty = request.value("tty", nlohmann::json(false)) == true;
  launch.window.rows = static_cast<uint16_t>(number(request, "rows"));
  launch.window.columns = static_cast<uint16_t>(number(request, "columns"));
  return launch;
}

class RunSession final : public cluster::Session {
 public:
  RunSession(cluster::Launcher& launcher, ControlConnection& connection) : launcher_(launcher), connection_(connection) {}

  Result<void> start(NodeId where, LaunchRequest request) {
    KEVRE_ASSIGN(run_, launcher_.start(where, std::move(request), this));
    running_ = true;
    return {};
  }

  void on_frame(FrameKind kind, std::span<const std::byte> bytes) {
    if (!running_) {
      return;
    }
    switch (kind) {
      case FrameKind::kStdin:
        on_input(bytes);
        break;
      case FrameKind::kSignal:
        if (bytes.size() == 1) {
          launcher_.signal(run_, static_cast<int>(bytes[0]));
        }
        break;
      case FrameKind::kWindow:
        if (uint16_t size[2]; bytes.size() == sizeof size) {
          std::memcpy(size, bytes.data(), sizeof size);
          launcher_.resize(run_, {size[0], size[1]});
        }
        break;
      case FrameKind::kJson:
      case FrameKind::kStdout:
      case FrameKind::kStderr:
      case FrameKind::kExit:
      case FrameKind::kError:
      case FrameKind::kCredit:
        break;  // not the command line's to send
    }
  }

  void on_closed() {
    if (running_) {
      running_ = false;
      launcher_.cancel(run_);
    }
  }

  // What the command line has not read yet counts as not consumed: the program is held up, not this daemon's memory.
  void on_drained() {
    for (const cluster::Stream stream : {cluster::Stream::kOutput, cluster::Stream::kError}) {
      const size_t bytes = std::exchange(unread_[static_cast<size_t>(stream)], 0);
      if (bytes > 0 && running_) {
        launcher_.consumed(run_, stream, bytes);
      }
    }
  }

  void on_output(cluster::Stream stream, std::span<const std::byte> bytes) override {
    unread_[static_cast<size_t>(stream)] += bytes.size();
    connection_.send(stream == cluster::Stream::kError ? FrameKind::kStderr : FrameKind::kStdout, bytes);
    if (connection_.queued_bytes() == 0) {
      on_drained();
    }
  }

  void on_input_consumed(size_t bytes) override {
    input_under_way_ -= std::min(bytes, input_under_way_);
    const uint32_t taken = static_cast<uint32_t>(bytes);
    connection_.send(FrameKind::kCredit, std::as_bytes(std::span(&taken, 1)));
  }

  void on_exit(const cluster::ExitStatus& status) override {
    running_ = false;
    if (!status.text.empty()) {
      connection_.send(FrameKind::kStderr, as_bytes("kevre: " + status.text + "\n"));
    }
    const uint32_t code = static_cast<uint32_t>(status.shell_code());
    connection_.send(FrameKind::kExit, std::as_bytes(std::span(&code, 1)));
    connection_.close();
  }

 private:
  void on_input(std::span<const std::byte> bytes) {
    if (bytes.empty()) {
      launcher_.end_input(run_);
      return;
    }
    input_under_way_ += bytes.size();
    if (input_under_way_ > kInputWindowBytes) {
      connection_.send(FrameKind::kError, as_bytes("more input than the window allows"));
      connection_.close();
      on_closed();
      return;
    }
    launcher_.write_input(run_, bytes);
  }

  cluster::Launcher& launcher_;
  ControlConnection& connection_;
  cluster::Launcher::RunId run_ = 0;
  bool running_ = false;
  size_t unread_[3] = {};
  size_t input_under_way_ = 0;
};

Result<void> start(cluster::Launcher& launcher, const cluster::Agent& agent, ControlConnection& connection,
                   const nlohmann::json& request) {
  const auto name = request.find("node");
  const std::string node = name != request.end() && name->is_string() ? name->get<std::string>() : "";
  const cluster::Member* member = node.empty() ? agent.view().find(agent.self()) : agent.view().find(node);
  if (member == nullptr) {
    std::string known;
    for (const auto& m : agent.view().members) {
      known += (known.empty() ? "" : ", ") + m.name;
    }
    return fail(Errc::kNotFound, "no node '{}' in the view; there are {}", node, known);
  }
  KEVRE_ASSIGN(LaunchRequest launch, parse(request));
  const auto session = std::make_shared<RunSession>(launcher, connection);
  connection.on_frame = [session](FrameKind kind, std::span<const std::byte> bytes) { session->on_frame(kind, bytes); };
  connection.on_closed = [session] { session->on_closed(); };
  connection.on_drained = [session] { session->on_drained(); };
  return session->start(member->id, std::move(launch));
}

}  // namespace

void start_run_session(cluster::Launcher& launcher, const cluster::Agent& agent, ControlConnection& connection,
                       const nlohmann::json& request) {
  if (const Result<void> started = start(launcher, agent, connection, request); !started) {
    connection.send(FrameKind::kError, as_bytes(started.error().text));
    connection.close();
  }
}

}  // namespace kevre::tools
