// Node: the DSM of one node. Composes Directory (decides), Pager (frames and programs) and Transport (bytes):
// turns userfaultfd events and messages into directory events, and executes the effects, each event
// completely before the next. Sequential readers get windows of pages, the next one asked for when the reader
// arrives at the one before (read_ahead.h). A peer that takes nothing for long fills its outbox; past
// kOutboxMax messages it is disconnected, which the cluster layer sees as a loss. Messages of peers that a
// view named lost are dropped. Where the transport can, pages are fetched with one-sided reads (fetcher.h).
// Owns: the directory, the pager and the fetcher. Threads: the engine thread (the loop's).
// Tested in tests/dsm/node_test.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/event_loop.h"
#include "base/histogram.h"
#include "cluster/view.h"
#include "dsm/directory.h"
#include "dsm/pager.h"
#include "transport/transport.h"

namespace kevre::dsm {

struct NodeStats {
  uint64_t faults = 0;        // faults that needed another node or the home
  uint64_t local_faults = 0;  // resolved from this node's frames
  Histogram fault_ns;         // event read to page installed, for `faults`
  uint64_t pages_in = 0, pages_out = 0;
  uint64_t rejected = 0;             // messages that the decoder refused
  uint64_t forks = 0, programs = 0;  // programs: address spaces served now
  Nanos hold_ns = 0;                 // the present holding time of a write grant
  Pager::Counters pager;
  Directory::Counters directory;
};

class Node {
 public:
  struct Options {
    NodeId self;
    Nanos hold_min_ns = 50'000;     // a write grant is kept at least so long before it is given away,
    Nanos hold_max_ns = 1'000'000;  // and at most so long; between them adaptive (about one transfer time)
    uint32_t ahead_max = 63;        // pages fetched ahead of a sequential reader
    Nanos spin_ns = 20'000;         // given to the loop: it spins so long after work, then sleeps
    size_t shelf_bytes = size_t{64} << 20;  // registered memory where peers read pages one-sided; 0: none
    Pager::Options pager;
  };
  static Result<std::unique_ptr<Node>> create(const Options& options, EventLoop* loop,
                                              transport::Transport* transport);
  ~Node();

  void on_view(const cluster::View& view);
  // The view up to which the hand-over is complete here.
  ViewId stable_view() const;
  bool quiescent() const;  // nothing asked for, nothing held, nothing to send: for tests
  void set_on_stable(std::function<void(ViewId)> call);

  // For programs of this node (called by ipc/service). Descriptors returned stay owned here.
  int userfaultfd_device() const;
  Result<int> segment_fd(SegmentId segment, uint64_t bytes);
  Result<MmId> adopt(UniqueFd uffd);  // from now on the loop serves it
  Result<void> attach(MmId mm, SegmentId segment, uint64_t address, uint64_t bytes);
  void detach(MmId mm, uint64_t address);
  void drop(MmId mm);
  bool alive(MmId mm);
  // A program forked: `child` is served already. `uffd` may be handed to the child process, which must keep
  // it open.
  void set_on_fork(std::function<void(MmId parent, MmId child, int uffd)> call);
  // Everything that a program had mapped in [address, address + bytes) is gone.
  void set_on_unmapped(std::function<void(MmId mm, uint64_t address, uint64_t bytes)> call);
  // The segment is destroyed in the whole cluster (each node is told by the ipc layer).
  void destroy(SegmentId segment);

  NodeStats stats() const;
  std::string describe_features() const;  // for `kevre info`

 private:
  struct Parts;
  explicit Node(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace kevre::dsm
