// Shm: the shared memory segments of the namespace. Owns their ids, permissions and attachment counts, not
// their pages. Pure, one owner; see namespace.h. Tested in tests/ipc/namespace_test.cc.
#pragma once

#include <map>
#include <string>

#include "ipc/table.h"

namespace kevre::ipc {

class Shm {
 public:
  Shm(uint32_t generation, Limits& limits);
  void get(const Event& event);
  void attach(const Event& event);
  void control(const Event& event);
  void detached(NodeId node, const Call& call, int64_t now, std::vector<Effect>& effects);
  void forked(NodeId node, const Call& call, int64_t now);
  void on_node_lost(NodeId node, int64_t now, std::vector<Effect>& effects);
  void on_view(uint32_t view) { view_ = view; }
  void on_memory(uint64_t bytes) { memory_bytes_ = bytes; }
  std::string proc_text();

 private:
  struct Object {
    Permissions permissions;
    SegmentId segment;
    uint64_t bytes = 0;
    std::map<NodeId, uint64_t> attached;
    uint32_t creator_pid = 0, last_pid = 0;
    int64_t attach_time = 0, detach_time = 0, change_time = 0;
    uint64_t attachments() const;
  };
  int32_t create(const Event& event);
  void change(const Event& event);
  void stat(const Event& event);
  void destroy_if_unused(int32_t id, std::vector<Effect>& effects);
  Object* by_segment(SegmentId segment, int32_t* id);

  Limits& limits_;
  Table<Object> table_;
  std::map<SegmentId, int32_t> of_segment_;
  uint32_t view_;  // in which segments are born now: the upper half of their numbers (dsm/segment.h)
  uint32_t next_segment_ = 1;  // the lower half
  uint64_t pages_ = 0;
  uint64_t memory_bytes_ = 0;  // 0: not known
};

}  // namespace kevre::ipc
