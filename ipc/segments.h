// Segments: what the service needs of the DSM, so that it can be tested without one. NodeSegments (node_segments.cc)
// is the one that the daemon uses. Threads: the loop's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"
#include "dsm/pager.h"

namespace kevre::dsm {
class Node;
}

namespace kevre::ipc {

using dsm::MmId;

class Segments {
 public:
  using OnFork = std::function<void(MmId parent, MmId child, int uffd)>;
  using OnUnmapped = std::function<void(MmId mm, uint64_t address, uint64_t bytes)>;
  virtual ~Segments() = default;
  // As in dsm/node.h.
  virtual int userfaultfd_device() const = 0;
  virtual Result<int> segment_fd(SegmentId segment, uint64_t bytes) = 0;
  virtual Result<MmId> adopt(UniqueFd uffd) = 0;
  virtual Result<void> attach(MmId mm, SegmentId segment, uint64_t address, uint64_t bytes) = 0;
  virtual void detach(MmId mm, uint64_t address) = 0;
  virtual void drop(MmId mm) = 0;
  virtual bool alive(MmId mm) = 0;
  virtual void destroy(SegmentId segment) = 0;
  virtual void set_on_fork(OnFork call) = 0;
  virtual void set_on_unmapped(OnUnmapped call) = 0;
};

std::unique_ptr<Segments> segments_of(dsm::Node* node);

}  // namespace kevre::ipc
