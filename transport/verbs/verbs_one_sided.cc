// One-sided operations: regions, bounds, and how an operation becomes work requests.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "transport/verbs/verbs_transport.h"

namespace kevre::transport::verbs {
namespace {
constexpr size_t kPieceBytesMax = size_t{1} << 20;
}

Result<RegionKey> VerbsTransport::register_region(std::span<std::byte> memory) {
  if (!broken_.empty()) {
    return fail(Errc::kUnsupported, "{}", broken_);
  }
  KEVRE_ASSIGN(const ibv_mr* mr, device_->register_region(memory));
  return encode_region({reinterpret_cast<uintptr_t>(memory.data()), memory.size(), mr->rkey, options_.self});
}

void VerbsTransport::deregister_region(const RegionKey& key) {
  const auto region = decode_region(key);
  const bool ours =
      region && region->owner == options_.self && device_->deregister_region(region->address, region->rkey);
  KEVRE_CHECK(ours, "a region that is not registered is deregistered");
}

Result<Link*> VerbsTransport::admit_operation(NodeId peer, const RemoteAddress& at, size_t bytes,
                                              Work* work) {
  Link* link = link_of(peer);
  if (link == nullptr || !link->open) {
    return fail(Errc::kPeerLost, "node {} is not connected", peer);
  }
  const auto region = at.key == nullptr ? std::nullopt : decode_region(*at.key);
  const auto remote = region && region->owner == peer ? within(*region, at.offset, bytes) : std::nullopt;
  if (!remote) {
    return fail(Errc::kInvalid, "{} bytes at offset {} lie in no region of node {}", bytes, at.offset, peer);
  }
  if (link->operations >= kOperationsWaitingMax) {
    return fail(Errc::kBusy, "{} operations wait for node {}", link->operations, peer);
  }
  work->bytes = bytes;
  work->remote = *remote;
  work->rkey = region->rkey;
  return link;
}

void VerbsTransport::enqueue(Link* link, Work work) {
  ++link->operations;
  link->queued_bytes += work.queued_bytes;
  link->line.push_back(std::move(work));
  pump(link);
}

Result<void> VerbsTransport::read(NodeId peer, RemoteAddress from, std::span<std::byte> to, Completion done) {
  Work work;
  KEVRE_ASSIGN(Link * link, admit_operation(peer, from, to.size(), &work));
  work.kind = Work::Kind::kRead;
  work.local = to.data();
  work.done = std::move(done);
  ++rules_.counters().one_sided_reads;
  enqueue(link, std::move(work));
  return {};
}

Result<void> VerbsTransport::write(NodeId peer, std::span<const std::byte> from, RemoteAddress to,
                                   Completion done) {
  Work work;
  KEVRE_ASSIGN(Link * link, admit_operation(peer, to, from.size(), &work));
  work.kind = Work::Kind::kWrite;
  work.local = const_cast<std::byte*>(from.data());  // is only read
  if (!from.empty() && !device_->key_of(from.data(), from.size())) {
    KEVRE_TRY(rules_.admit(peer, {}, from.size()));
    work.buffer = messages_->take(from.size());
    work.queued_bytes = from.size();
    work.local = work.buffer.bytes().data();
    std::memcpy(work.local, from.data(), from.size());
  }
  work.done = std::move(done);
  ++rules_.counters().one_sided_writes;
  enqueue(link, std::move(work));
  return {};
}

Result<void> VerbsTransport::fetch_add(NodeId peer, RemoteAddress at, uint64_t addend, Completion done) {
  Work work;
  work.kind = Work::Kind::kFetchAdd;
  work.first = addend;
  work.done = std::move(done);
  return atomic(peer, at, std::move(work));
}

Result<void> VerbsTransport::compare_swap(NodeId peer, RemoteAddress at, uint64_t expected, uint64_t desired,
                                          Completion done) {
  Work work;
  work.kind = Work::Kind::kCompareSwap;
  work.first = expected;
  work.second = desired;
  work.done = std::move(done);
  return atomic(peer, at, std::move(work));
}

Result<void> VerbsTransport::atomic(NodeId peer, RemoteAddress at, Work work) {
  KEVRE_ASSIGN(Link * link, admit_operation(peer, at, sizeof(uint64_t), &work));
  if (!capabilities(peer).atomic) {
    return fail(Errc::kUnsupported, "the RDMA devices between here and node {} have no 64-bit atomics", peer);
  }
  if (work.remote % sizeof(uint64_t) != 0) {
    return fail(Errc::kInvalid, "an atomic operation at an address that is not a multiple of 8");
  }
  ++rules_.counters().one_sided_atomics;
  enqueue(link, std::move(work));
  return {};
}

// The next piece of an operation; false: no bounce or answer is free.
bool VerbsTransport::fill_one_sided(Work* work, ibv_send_wr* request, ibv_sge* piece, Posted* posted) {
  const uint64_t remote = work->remote + work->posted;
  if (work->kind == Work::Kind::kFetchAdd || work->kind == Work::Kind::kCompareSwap) {
    posted->answer = messages_->take_answer();
    if (posted->answer == nullptr) {
      return false;
    }
    piece->addr = reinterpret_cast<uintptr_t>(posted->answer);
    piece->length = sizeof(uint64_t);
    piece->lkey = messages_->answer_key();
    request->opcode =
        work->kind == Work::Kind::kFetchAdd ? IBV_WR_ATOMIC_FETCH_AND_ADD : IBV_WR_ATOMIC_CMP_AND_SWP;
    request->wr.atomic.remote_addr = remote;
    request->wr.atomic.rkey = work->rkey;
    request->wr.atomic.compare_add = work->first;
    request->wr.atomic.swap = work->second;
    return true;
  }
  const bool reads = work->kind == Work::Kind::kRead;
  request->opcode = reads ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE;
  request->wr.rdma.remote_addr = remote;
  request->wr.rdma.rkey = work->rkey;
  if (work->bytes == 0) {
    request->num_sge = 0;
    return true;
  }
  std::byte* local = work->local + work->posted;
  const size_t left = work->bytes - work->posted;
  const auto key = device_->key_of(work->local, work->bytes);
  if (key) {
    piece->addr = reinterpret_cast<uintptr_t>(local);
    piece->length =
        static_cast<uint32_t>(std::min<uint64_t>({left, kPieceBytesMax, device_->limits().message_bytes}));
    piece->lkey = *key;
    return true;
  }
  posted->bounce = messages_->take_bounce();
  if (posted->bounce == nullptr) {
    return false;
  }
  piece->addr = reinterpret_cast<uintptr_t>(posted->bounce);
  piece->length = static_cast<uint32_t>(std::min(left, kChunkBytes));
  piece->lkey = messages_->bounce_key();
  if (reads) {
    posted->copy_to = local;
    posted->copy_bytes = piece->length;
  } else {
    std::memcpy(posted->bounce, local, piece->length);
  }
  return true;
}

}  // namespace kevre::transport::verbs
