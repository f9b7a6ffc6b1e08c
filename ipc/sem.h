// Sem: the semaphore sets of the namespace: values, who waits for what, what is undone when a process dies.
// Waiting follows Linux: callers that wait for zero only are looked at first; the others in order of arrival,
// each served as soon as its whole array can be done (a later small one may pass an earlier large one),
// inside the operation that made it possible. Pure, one owner; see namespace.h. Tested in
// tests/ipc/namespace_test.cc and namespace_history_test.cc (random histories against a plain model).
#pragma once

#include <list>
#include <map>
#include <string>

#include "ipc/table.h"

namespace kevre::ipc {

class Sem {
 public:
  Sem(uint32_t generation, Limits& limits);
  void get(const Event& event);
  void operate(const Event& event);
  void control(const Event& event);
  void count(const Event& event);
  bool cancel(CallId call, int error, std::vector<Effect>& effects);  // false: it does not wait here
  void on_process_gone(ProcessId process, uint32_t pid, int64_t now, std::vector<Effect>& effects);
  void on_node_lost(NodeId node, int64_t now, std::vector<Effect>& effects);
  std::string proc_text();
  size_t waiting() const { return waits_.size(); }

 private:
  struct Value {
    int32_t value = 0;
    uint32_t pid = 0;
  };
  struct Waiter {
    Caller caller;
    std::vector<SemOperation> operations;
    bool alters = false;
    size_t blocked_at = 0;  // index in operations
  };
  struct Undo {
    uint32_t pid = 0;
    std::map<uint16_t, int32_t> adjust;
  };
  struct Object {
    Permissions permissions;
    std::vector<Value> values;
    std::list<Waiter> zero_waiters;  // no operation changes a value
    std::list<Waiter> waiters;
    std::map<ProcessId, Undo> undo;
    int64_t operation_time = 0, change_time = 0;
  };
  enum class Outcome : uint8_t { kDone, kBlocked, kRange, kAgain };

  int32_t create(const Event& event);
  static Outcome attempt(Object& set, const Caller& caller, const std::vector<SemOperation>& operations,
                         size_t* blocked_at);
  void settle(Object& set, int64_t now, std::vector<Effect>& effects);
  bool settle_list(Object& set, std::list<Waiter>& list, int64_t now, std::vector<Effect>& effects);
  void remove(const Event& event);
  void change(const Event& event);
  void stat(const Event& event);
  void set_value(const Event& event);
  void set_all(const Event& event, Object& set);
  void values(const Event& event);
  int64_t count_waiting(const Object& set, uint16_t number, bool zero) const;
  void apply_undo(Object& set, const Undo& undo, int64_t now, std::vector<Effect>& effects);
  bool drop_waiters(Object& set, const std::function<bool(const Waiter&)>& which);

  Limits& limits_;
  Table<Object> table_;
  std::map<CallId, int32_t> waits_;                         // the set that a call waits at
  std::map<ProcessId, std::map<int32_t, bool>> undo_sets_;  // sets that have something to undo for a process
  uint64_t semaphores_ = 0;
};

}  // namespace kevre::ipc
