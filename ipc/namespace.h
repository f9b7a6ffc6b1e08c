// Namespace: the System V objects of the cluster: keys, ids, permissions, limits, semaphores' and queues'
// contents, who waits. A pure state machine: events in, effects out; no clock (time comes with the event), no
// sockets, no threads, no random numbers, and no order that depends on addresses, so that it can be simulated
// and replicated.
//
// One copy in the cluster, at the seat (the view's coordinator). Objects refer to each other nowhere, so that
// each can get a seat of its own.
//   * Waiting calls are queued here in the order of arrival. A call ends exactly once: by an answer, or (its
//   process or
//     node is gone) silently. A cancel for a call that was answered already is ignored: the grant wins.
//   * shm: the pages are the dsm's. The namespace counts attachments per node and says when a segment is to
//   be destroyed.
//   * SEM_UNDO is kept here per process and applied by on_process_gone() and on_node_lost().
// Semantics: Linux's, as far as docs/conformance.md does not say otherwise.
// Threads: one owner. Tested in tests/ipc/namespace_test.cc and namespace_history_test.cc; fuzzed by
// tests/fuzz/ipc_call_fuzz.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "ipc/protocol.h"

namespace kevre::ipc {

struct ProcessId {  // a process during its whole life, also across exec; numbers are the node's and not
                    // reused
  NodeId node;
  uint64_t number = 0;
  friend constexpr auto operator<=>(const ProcessId&, const ProcessId&) = default;
};

struct CallId {
  NodeId node;
  uint64_t number = 0;
  friend constexpr auto operator<=>(const CallId&, const CallId&) = default;
};

struct Credentials {  // effective; uid 0 has every capability
  uint32_t uid = 0;
  uint32_t gid = 0;
  std::vector<uint32_t> groups;
};

struct Caller {
  CallId call;
  ProcessId process;
  uint32_t pid = 0;
  Credentials credentials;
};

struct Effect {
  enum class Kind : uint8_t {
    kAnswer,   // to the call: answer and data
    kDestroy,  // the segment is gone: every node frees its pages
  };
  Kind kind = Kind::kAnswer;
  CallId call;
  Answer answer;
  std::vector<std::byte> data;
  SegmentId segment;
};

enum class ObjectKind : uint8_t { kShm = 0, kSem = 1, kMsg = 2 };

class Namespace {
 public:
  // `generation`: the view in which this seat began; 0 or 1 for the first. Ids and segments of another
  // generation are never given out again.
  explicit Namespace(uint32_t generation);
  ~Namespace();

  // A later view: new segments are numbered as born in it.
  void on_view(uint32_t view);
  // How much memory the cluster has, swap included: a larger segment is refused unless it has SHM_NORESERVE.
  void on_memory(uint64_t bytes);

  // Each appends to `effects`. `now`: seconds since 1970.
  // `call` was decoded by decode_call() and is otherwise untrusted.
  void on_call(const Caller& caller, const Call& call, std::span<const std::byte> payload, int64_t now,
               std::vector<Effect>& effects);
  void on_cancel(CallId call, int error, std::vector<Effect>& effects);
  void on_process_gone(ProcessId process, uint32_t pid, int64_t now, std::vector<Effect>& effects);
  void on_node_lost(NodeId node, int64_t now, std::vector<Effect>& effects);

  std::string proc_text(ObjectKind kind) const;  // as /proc/sysvipc/{shm,sem,msg}
  size_t waiting() const;                        // calls that wait

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace kevre::ipc
