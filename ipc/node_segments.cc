#include "dsm/node.h"
#include "ipc/segments.h"
#include "ipc/service.h"

namespace kevre::ipc {
namespace {

class NodeSegments final : public Segments {
 public:
  explicit NodeSegments(dsm::Node* node) : node_(*node) {}
  ~NodeSegments() override {
    node_.set_on_fork(nullptr);
    node_.set_on_unmapped(nullptr);
  }
  int userfaultfd_device() const override { return node_.userfaultfd_device(); }
  Result<int> segment_fd(SegmentId segment, uint64_t bytes) override { return node_.segment_fd(segment, bytes); }
  Result<MmId> adopt(UniqueFd uffd) override { return node_.adopt(std::move(uffd)); }
  Result<void> attach(MmId mm, SegmentId segment, uint64_t address, uint64_t bytes) override {
    return node_.attach(mm, segment, address, bytes);
  }
  void detach(MmId mm, uint64_t address) override { node_.detach(mm, address); }
  void drop(MmId mm) override { node_.drop(mm); }
  bool alive(MmId mm) override { return node_.alive(mm); }
  void destroy(SegmentId segment) override { node_.destroy(segment); }
  void set_on_fork(OnFork call) override { node_.set_on_fork(std::move(call)); }
  void set_on_unmapped(OnUnmapped call) override { node_.set_on_unmapped(std::move(call)); }

 private:
  dsm::Node& node_;
};

}  // namespace

std::unique_ptr<Segments> segments_of(dsm::Node* node) { return std::make_unique<NodeSegments>(node); }

Result<std::unique_ptr<Service>> Service::create(const Options& options, EventLoop* loop,
                                                 transport::Transport* transport, dsm::Node* node) {
  return create(options, loop, transport, segments_of(node));
}

}  // namespace kevre::ipc
