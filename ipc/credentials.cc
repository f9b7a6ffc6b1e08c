#include "ipc/credentials.h"

#include <sys/socket.h>

#include <fstream>
#include <sstream>
#include <string>

namespace kevre::ipc {

Result<Peer> peer_of(int socket) {
  ucred who{};
  socklen_t size = sizeof who;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) {
    return fail_errno("SO_PEERCRED");
  }
  if (who.pid == 0) {
    return fail(Errc::kDenied, "a process of another pid namespace (run it inside the node)");
  }
  Peer peer{who.pid, {who.uid, who.gid, {}}};
  socklen_t bytes = 0;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, nullptr, &bytes) != 0 && errno != ERANGE) {
    return fail_errno("SO_PEERGROUPS");
  }
  peer.credentials.groups.resize(bytes / sizeof(uint32_t));
  if (bytes > 0 &&
      ::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, peer.credentials.groups.data(), &bytes) != 0) {
    return fail_errno("SO_PEERGROUPS");
  }
  return peer;
}

Result<Credentials> credentials_of(pid_t pid, pid_t thread) {
  std::ifstream status(fmt::format("/proc/{}/task/{}/status", pid, thread));
  if (!status) {
    status.clear();
    status.open(fmt::format("/proc/{}/status", pid));
  }
  Credentials who;
  bool uids = false, gids = false;
  for (std::string line; std::getline(status, line);) {
    std::istringstream words(line);
    std::string name;
    uint32_t real = 0;
    words >> name;
    if (name == "Uid:") {
      uids = static_cast<bool>(words >> real >> who.uid);
    } else if (name == "Gid:") {
      gids = static_cast<bool>(words >> real >> who.gid);
    } else if (name == "Groups:") {
      for (uint32_t group = 0; words >> group;) {
        who.groups.push_back(group);
      }
      break;
    }
  }
  if (!uids || !gids) {
    return fail(Errc::kNotFound, "no ids of process {} in /proc", pid);
  }
  return who;
}

}  // namespace kevre::ipc
