// `kevre info` and `kevre doctor`.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/doctor.h"
#include "tools/sockets.h"
#include "tools/table.h"

namespace kevre::tools {
namespace {

std::string_view state_name(Finding::State state) {
  switch (state) {
    case Finding::State::kGood: return "good";
    case Finding::State::kLimited: return "limited";
    case Finding::State::kMissing: return "missing";
  }
  return "?";
}

}  // namespace

int complain(const Error& error) {
  std::fprintf(stderr, "kevre: %s\n", error.text.c_str());
  return 1;
}

int doctor(bool json) {
  const std::vector<Finding> findings = examine();
  bool missing = false;
  auto list = nlohmann::json::array();
  Table table({"what", "state", "found", "remedy"});
  for (const Finding& f : findings) {
    missing = missing || f.state == Finding::State::kMissing;
    list.push_back({{"what", f.what}, {"state", state_name(f.state)}, {"found", f.detail}, {"remedy", f.remedy}});
    table.add({f.what, std::string(state_name(f.state)), f.detail, f.remedy});
  }
  if (json) {
    std::printf("%s\n", list.dump(2).c_str());
  } else {
    table.print(stdout);
  }
  return missing ? 1 : 0;
}

int info(const Target& target, bool json) {
  const auto path = control_socket_of(target.cluster);
  if (!path) {
    return complain(path.error());
  }
  auto client = ControlClient::connect(*path);
  if (!client) {
    return complain(client.error());
  }
  const auto answer = client->call({{"do", "info"}});
  if (!answer) {
    return complain(answer.error());
  }
  if (json) {
    std::printf("%s\n", answer->dump(2).c_str());
    return 0;
  }
  for (const char* key : {"version", "node", "address", "transport", "pages"}) {
    std::printf("%-17s %s\n", key, (*answer)[key].get<std::string>().c_str());
  }
  if (const std::string note = answer->value("note", ""); !note.empty()) {
    std::printf("%-17s %s\n", "note", note.c_str());
  }
  for (const auto& [name, value] : (*answer)["counters"].items()) {
    std::printf("%-17s %s\n", name.c_str(), value.dump().c_str());
  }
  Table peers({"peer", "transport", "carried by", "why not a better one"});
  for (const auto& peer : (*answer)["peers"]) {
    peers.add({peer["name"], peer["backend"], peer["via"], peer["why"]});
  }
  peers.print(stdout);
  return 0;
}

}  // namespace kevre::tools
