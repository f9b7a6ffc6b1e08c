// Programs: the processes of this node that speak to the service, their address spaces and what is attached
// where. A process lives from its first connection until its pidfd says that all its threads are gone; exec
// does not end it. An address space (dsm::dsm::MmId) ends on its own: at exec, at exit, at kill -9; then its
// attachments are gone. fork: the kernel tells the DSM before the child runs; the child's address space waits
// here, counted already, until the child says hello, or until it is gone. Owns: the pidfds. Threads: the
// loop's. Tested in tests/ipc/service_test.cc.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <optional>

#include "base/event_loop.h"
#include "dsm/node.h"
#include "ipc/log_limit.h"
#include "ipc/seat_link.h"

namespace kevre::ipc {

class Programs {
 public:
  using OnDied = std::function<void(uint64_t program)>;
  Programs(EventLoop* loop, dsm::Node* node, SeatLink* seat, OnDied on_died);
  ~Programs();

  // The number of the process, which is new when it was not known. kNotFound: it is gone already.
  Result<uint64_t> of_pid(pid_t pid);
  uint32_t pid_of(uint64_t program) const;
  void session_opened(uint64_t program);
  void session_closed(uint64_t program);

  // The child of a fork said hello: it gets the address space that waits for it. Returns its userfaultfd,
  // borrowed.
  std::optional<int> claim_fork(uint64_t program, pid_t parent);
  // Is the userfaultfd of its present address space served already?
  bool has_space(uint64_t program);
  // 0 or an errno. `uffd` is looked at only when the process has no address space here yet.
  int attached(uint64_t program, SegmentId segment, uint64_t address, uint64_t bytes, UniqueFd uffd);
  // 0 and the size, or EINVAL: nothing is attached at exactly `address`.
  int detach_start(uint64_t program, uint64_t address, uint64_t* bytes);
  void detach_done(uint64_t program, uint64_t address);
  void tell_detached(uint32_t pid, SegmentId segment, uint64_t count);
  size_t count() const { return programs_.size(); }
  size_t spaces() const { return spaces_.size(); }

 private:
  struct Attachment {
    SegmentId segment;
    uint64_t bytes = 0;
    bool detaching = false;
  };
  struct Space {
    uint64_t program = 0;                        // 0: a forked child that did not say hello yet
    uint32_t pid = 0;                            // of the process; of its parent while nobody claimed it
    int uffd = -1;                               // while nobody claimed it
    std::map<uint64_t, Attachment> attachments;  // by address
  };
  struct Program {
    pid_t pid = 0;
    UniqueFd pidfd;
    int sessions = 0;
    std::optional<dsm::MmId> space;
  };
  void on_fork(dsm::MmId parent, dsm::MmId child, int uffd);
  void on_unmapped(dsm::MmId mm, uint64_t address, uint64_t bytes);
  void died(uint64_t program);
  void end_space(dsm::MmId mm);
  void sweep();
  void sweep_later();

  EventLoop* loop_;
  dsm::Node* node_;
  SeatLink* seat_;
  OnDied on_died_;
  LogLimit log_limit_;
  uint64_t last_number_ = 0;
  std::map<uint64_t, Program> programs_;
  std::map<pid_t, uint64_t> of_pid_;
  std::map<dsm::MmId, Space> spaces_;
  std::optional<EventLoop::TimerId> sweep_timer_;
};

}  // namespace kevre::ipc
