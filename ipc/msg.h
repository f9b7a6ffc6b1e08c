// Msg: the message queues of the namespace: messages, and who waits to send or to receive.
// A message that a waiting receiver wants never enters the queue; one whose buffer is too small ends with
// E2BIG and the next is asked. When room appears, waiting senders are tried in order of arrival, each once; a
// smaller message may pass a larger one. Pure, one owner; see namespace.h. Tested in
// tests/ipc/namespace_test.cc and namespace_history_test.cc.
#pragma once

#include <list>
#include <map>
#include <string>

#include "ipc/table.h"

namespace kevre::ipc {

class Msg {
 public:
  Msg(uint32_t generation, Limits& limits);
  void get(const Event& event);
  void send(const Event& event);
  void receive(const Event& event);
  void control(const Event& event);
  bool cancel(CallId call, int error, std::vector<Effect>& effects);
  void on_process_gone(ProcessId process);
  void on_node_lost(NodeId node);
  std::string proc_text();
  size_t waiting() const { return waits_.size(); }

 private:
  struct Message {
    int64_t type = 0;
    std::vector<std::byte> data;  // with the type in front, as programs get it
    uint64_t bytes() const { return data.size() - sizeof type; }
  };
  enum class Search : uint8_t { kAny, kEqual, kNotEqual, kLowest, kNumber };
  struct Wanted {
    Search search = Search::kAny;
    int64_t type = 0;
    uint64_t bytes_max = 0;
    bool truncate = false;
    bool takes(const Message& message) const;
  };
  struct Receiver {
    Caller caller;
    Wanted wanted;
  };
  struct Sender {
    Caller caller;
    Message message;
  };
  struct Object {
    Permissions permissions;
    std::list<Message> messages;
    std::list<Receiver> receivers;
    std::list<Sender> senders;
    uint64_t bytes = 0, bytes_max = kMsgMnb;
    uint32_t send_pid = 0, receive_pid = 0;
    int64_t send_time = 0, receive_time = 0, change_time = 0;
  };

  static Wanted wanted(const Call& call);
  static bool fits(const Object& queue, const Message& message);
  static std::list<Message>::iterator find(Object& queue, const Wanted& wanted);
  void deliver(Object& queue, const Caller& sender, Message message, int64_t now,
               std::vector<Effect>& effects);
  void wake_senders(Object& queue, int64_t now, std::vector<Effect>& effects);
  void recheck_receivers(Object& queue, std::vector<Effect>& effects);
  void remove(const Event& event);
  void change(const Event& event);
  void stat(const Event& event);
  void drop_waiting(Object& queue, const std::function<bool(const Caller&)>& which);
  static std::vector<std::byte> cut(std::vector<std::byte> data, uint64_t bytes_max);

  Limits& limits_;
  Table<Object> table_;
  std::map<CallId, int32_t> waits_;
  uint64_t messages_ = 0, bytes_ = 0;
};

}  // namespace kevre::ipc
