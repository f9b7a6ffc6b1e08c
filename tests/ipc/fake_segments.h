// Memory of one node without a DSM: a memfd per segment, and userfaultfds that are kept and never used to fault.
// It does not see forks and unmappings: tests of those take the real dsm::Node.
#pragma once

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <map>

#include "ipc/segments.h"

namespace kevre::ipc::testing {

class FakeSegments final : public Segments {
 public:
  FakeSegments() : device_(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)) {}
  int userfaultfd_device() const override { return device_.get(); }
  Result<int> segment_fd(SegmentId segment, uint64_t bytes) override {
    UniqueFd& fd = memory_[segment];
    if (!fd) {
      fd.reset(::memfd_create("segment", MFD_CLOEXEC));
      if (!fd || ::ftruncate(fd.get(), static_cast<off_t>((bytes + 4095) / 4096 * 4096)) != 0) {
        return fail_errno("memfd_create or ftruncate");
      }
    }
    return fd.get();
  }
  Result<MmId> adopt(UniqueFd uffd) override {
    uffdio_api api{};
    api.api = UFFD_API;
    if (::ioctl(uffd.get(), UFFDIO_API, &api) != 0) {
      return fail_errno("UFFDIO_API");
    }
    const MmId mm(++last_);
    uffds_[mm] = std::move(uffd);
    return mm;
  }
  Result<void> attach(MmId mm, SegmentId, uint64_t address, uint64_t bytes) override {
    attached[{mm, address}] = bytes;
    return {};
  }
  void detach(MmId mm, uint64_t address) override { attached.erase({mm, address}); }
  void drop(MmId mm) override { uffds_.erase(mm); }
  bool alive(MmId mm) override {
    const auto found = uffds_.find(mm);
    if (found == uffds_.end()) {
      return false;
    }
    uffdio_writeprotect nothing{};
    nothing.range = {4096, 4096};
    return ::ioctl(found->second.get(), UFFDIO_WRITEPROTECT, &nothing) == 0 || errno != ESRCH;
  }
  void destroy(SegmentId segment) override {
    memory_.erase(segment);
    ++destroyed;
  }
  void set_on_fork(OnFork) override {}
  void set_on_unmapped(OnUnmapped) override {}

  std::map<std::pair<MmId, uint64_t>, uint64_t> attached;
  std::atomic<int> destroyed = 0;

 private:
  UniqueFd device_;
  std::map<SegmentId, UniqueFd> memory_;
  std::map<MmId, UniqueFd> uffds_;
  uint32_t last_ = 0;
};

}  // namespace kevre::ipc::testing
