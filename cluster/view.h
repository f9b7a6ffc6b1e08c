// View: the numbered list of live nodes. Every node sees the same views in the same order (one that joins
// sees them from its own on). A value; no thread rules. Tested in tests/cluster/membership_test.cc.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"

namespace kevre::cluster {

struct Member {
  NodeId id;
  std::string name;     // "n1"; unique in the view
  std::string address;  // "10.77.0.1:7711": the daemon's port, for joins and for people
  std::vector<std::byte> transport_address;
  uint32_t pid_first = 0, pid_last = 0;  // the node's pid range, inclusive; 0,0: none
};

struct View {
  ViewId id;
  NodeId newest;                // the highest id ever given: ids are not reused after their node is gone
  std::vector<Member> members;  // by NodeId, which is the order of joining; members[0] coordinates
  std::vector<NodeId> lost;     // in the view before and gone without notice
  std::vector<NodeId>
      left;  // in the view before and gone on purpose: they take part in the hand-over to this view

  const Member* find(NodeId node) const {
    const auto i =
        std::find_if(members.begin(), members.end(), [&](const Member& m) { return m.id == node; });
    return i == members.end() ? nullptr : &*i;
  }
  const Member* find(const std::string& name) const {
    const auto i =
        std::find_if(members.begin(), members.end(), [&](const Member& m) { return m.name == name; });
    return i == members.end() ? nullptr : &*i;
  }
  bool has(NodeId node) const { return find(node) != nullptr; }
  NodeId coordinator() const { return members.empty() ? kNoNode : members.front().id; }
};

}  // namespace kevre::cluster
