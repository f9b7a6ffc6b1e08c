#include "dsm/fetcher.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/log.h"

namespace kevre::dsm {
namespace {
constexpr size_t kReadsMax = 128;  // fetches under way; what goes beyond is asked for by message
constexpr int kGap = 2;            // pages that nobody wants are read along when they are no more than these
}  // namespace

Result<ShelfMessage> decode_shelf(std::span<const std::byte> header, size_t payload_bytes) {
  if (header.size() != sizeof(ShelfMessage) || payload_bytes != 0) {
    return fail(Errc::kCorrupt, "shelf message: header of {} bytes and {} bytes behind it", header.size(),
                payload_bytes);
  }
  ShelfMessage m;
  std::memcpy(&m, header.data(), sizeof m);
  const bool right = m.magic == ShelfMessage::kMagic && m.version == 1 && m.reserved == 0 && m.key_bytes > 0 &&
                     m.key_bytes <= m.key.size() && m.groups > 0 && m.groups <= Shelf::kGroupsMax;
  const auto spare = std::span(m.key).subspan(std::min<size_t>(m.key_bytes, m.key.size()));
  if (!right || std::any_of(spare.begin(), spare.end(), [](std::byte byte) { return byte != std::byte{0}; })) {
    return fail(Errc::kCorrupt, "shelf message: magic {:x} version {} key of {} bytes, {} groups", m.magic,
                m.version, m.key_bytes, m.groups);
  }
  return m;
}

// One fetch: one or a few reads into one buffer, which has room for a slot for each page from the first to the last.
struct Fetcher::Read {
  Shared* shared = nullptr;
  PageMessage asked;
  transport::Buffer buffer;
  uint32_t pending = 0;
  bool used = false;
  bool failed = false;
};

// What the transport's completions refer to. The transport may complete a read when the Fetcher is gone.
struct Fetcher::Shared {
  Fetcher* owner = nullptr;
  uint32_t under_way = 0;  // completions to come, of reads and drains
  std::array<Read, kReadsMax> reads;

  void completed() {
    if (--under_way == 0 && owner == nullptr) {
      delete this;
    }
  }
  static void read_done(Read* read, bool failed) {
    Shared* const shared = read->shared;
    read->failed = read->failed || failed;
    if (--read->pending == 0) {
      if (shared->owner != nullptr) {
        shared->owner->end({read->asked, read, false});
      } else {
        read->buffer = {};
      }
    }
    shared->completed();
  }
  static void drained(Shared* shared) {
    if (Fetcher* const fetcher = shared->owner; fetcher != nullptr) {
      fetcher->draining_ = false;
      fetcher->drain();
    }
    shared->completed();
  }
};

std::unique_ptr<Fetcher> Fetcher::create(transport::Transport* transport, size_t shelf_bytes,
                                         std::function<void()> ended) {
  if (shelf_bytes == 0) {
    return nullptr;
  }
  Result<std::unique_ptr<Shelf>> shelf = Shelf::create(shelf_bytes);
  if (!shelf) {
    KEVRE_LOG_WARN("pages are not read one-sided: {}", shelf.error().text);
    return nullptr;
  }
  const Result<transport::RegionKey> key = transport->register_region((*shelf)->memory());
  if (!key) {
    if (key.error().code != Errc::kUnsupported) {
      KEVRE_LOG_WARN("pages are not read one-sided: {}", key.error().text);
    }
    return nullptr;
  }
  return std::unique_ptr<Fetcher>(new Fetcher(transport, std::move(*shelf), *key, std::move(ended)));
}

Fetcher::Fetcher(transport::Transport* transport, std::unique_ptr<Shelf> shelf, const transport::RegionKey& key,
                 std::function<void()> ended)
    : transport_(transport),
      shelf_(std::move(shelf)),
      key_(key),
      ended_call_(std::move(ended)),
      shared_(new Shared) {
  shared_->owner = this;
  for (Read& read : shared_->reads) {
    read.shared = shared_;
  }
  ended_.reserve(2 * kReadsMax);
  closing_.reserve(kReadsMax);
  closing_next_.reserve(kReadsMax);
}

Fetcher::~Fetcher() {
  transport_->deregister_region(key_);
  shared_->owner = nullptr;
  for (Read& read : shared_->reads) {
    if (read.pending == 0) {
      read.buffer = {};
    }
  }
  if (shared_->under_way == 0) {
    delete shared_;
  }
}

// ---- peers

void Fetcher::introduce(NodeId peer) {
  Peer& known = peers_[peer];
  if (known.told || !transport_->capabilities(peer).read) {
    return;
  }
  ShelfMessage m;
  m.groups = shelf_->groups();
  m.key_bytes = key_.size;
  std::copy_n(key_.bytes.begin(), key_.size, m.key.begin());
  if (transport_->send(peer, transport::Service::kDsm, std::as_bytes(std::span(&m, 1)),
                       std::span<const std::byte>{})) {
    known.told = true;
    ++told_;
  }
}

void Fetcher::on_message(NodeId from, const ShelfMessage& message) {
  Peer& peer = peers_[from];
  peer.has_key = true;
  peer.groups = message.groups;
  peer.key.size = message.key_bytes;
  std::copy(message.key.begin(), message.key.end(), peer.key.bytes.begin());
  introduce(from);
}

void Fetcher::forget(NodeId peer) {
  const auto found = peers_.find(peer);
  if (found != peers_.end()) {
    told_ -= found->second.told ? 1 : 0;
    peers_.erase(found);
  }
}

// ---- fetches

void Fetcher::fetch(NodeId at, const PageMessage& asked, bool note, bool line_free) {
  const auto peer = peers_.find(at);
  const auto read = std::find_if(shared_->reads.begin(), shared_->reads.end(),
                                 [](const Read& one) { return !one.used; });
  const bool can = line_free && peer != peers_.end() && peer->second.has_key &&
                   read != shared_->reads.end() && transport_->capabilities(at).read;
  const auto header = std::as_bytes(std::span(&asked, 1));
  if (!can || (note && !transport_->send(at, transport::Service::kDsm, header, std::span<const std::byte>{}))) {
    return end({asked, nullptr, false});
  }
  read->used = true;
  read->failed = false;
  read->asked = asked;
  start_reads(peer->second, at, *read);
}

void Fetcher::start_reads(const Peer& peer, NodeId at, Read& read) {
  const PageMessage& asked = read.asked;
  const int first = std::countr_zero(asked.mask), last = 63 - std::countl_zero(asked.mask);
  const auto slots = static_cast<size_t>(last - first + 1);
  read.buffer = transport_->buffer(slots * Shelf::kSlotBytes);
  const std::span<std::byte> bytes = read.buffer.bytes();
  // The buffer may hold slots of an older fetch, which would pass for ones that were read now.
  for (size_t i = 0; i < slots; ++i) {
    std::memset(bytes.data() + i * Shelf::kSlotBytes, 0, Shelf::kHeaderBytes);
  }
  read.pending = 1;  // so that it does not end while reads are still to be posted
  ++shared_->under_way;
  Read* const done = &read;
  for (int from = first; from <= last;) {
    int to = from;
    for (int i = from; i <= last && i <= to + 1 + kGap; ++i) {
      to = (asked.mask >> i & 1) != 0 ? i : to;
    }
    const uint64_t page = asked.page + static_cast<uint64_t>(from);
    const transport::RemoteAddress remote{&peer.key, Shelf::offset_of(asked.segment, page, peer.groups)};
    const std::span<std::byte> part = bytes.subspan(static_cast<size_t>(from - first) * Shelf::kSlotBytes,
                                                    static_cast<size_t>(to - from + 1) * Shelf::kSlotBytes);
    ++read.pending;
    ++shared_->under_way;
    const auto posted = transport_->read(
        at, remote, part, [done](const Result<uint64_t>& value) { Shared::read_done(done, !value); });
    if (!posted) {
      Shared::read_done(done, true);
    }
    from = to + 1;
    while (from <= last && (asked.mask >> from & 1) == 0) {
      ++from;
    }
  }
  Shared::read_done(done, false);
}

void Fetcher::end(const Item& item) {
  ended_.push_back(item);
  ended_call_();
}

bool Fetcher::take(Ended* ended) {
  if (current_ != nullptr) {
    current_->buffer = {};
    current_->used = false;
    current_ = nullptr;
  }
  if (taken_ == ended_.size()) {
    ended_.clear();
    taken_ = 0;
    return false;
  }
  const Item item = ended_[taken_++];
  *ended = Ended{item.closed, item.asked, 0, {}};
  if (item.read != nullptr) {
    current_ = item.read;
    unpack(*item.read, ended);
  }
  return true;
}

// The pages move to the front of the buffer, packed.
void Fetcher::unpack(Read& read, Ended* ended) {
  const std::span<std::byte> bytes = read.buffer.bytes();
  const int first = std::countr_zero(read.asked.mask);
  const auto pages = static_cast<size_t>(std::popcount(read.asked.mask));
  KEVRE_CHECK(pages * kPageBytes <= bytes.size(), "{} pages in {} bytes", pages, bytes.size());
  ended->bytes = bytes.first(pages * kPageBytes);
  size_t rank = 0;
  for (uint64_t rest = read.failed ? 0 : read.asked.mask; rest != 0; rest &= rest - 1, ++rank) {
    const int i = std::countr_zero(rest);
    const std::span<const std::byte> slot =
        bytes.subspan(static_cast<size_t>(i - first) * Shelf::kSlotBytes, Shelf::kSlotBytes);
    const auto page = Shelf::decode(read.asked.segment, read.asked.page + static_cast<uint64_t>(i), slot);
    if (!page.empty()) {
      std::memmove(bytes.data() + rank * kPageBytes, page.data(), kPageBytes);
      ended->arrived |= uint64_t{1} << i;
    }
  }
}

// ---- closing

void Fetcher::close(const PageMessage& page) {
  shelf_->close(page.segment, page.page);
  closing_next_.push_back(page);
  if (!draining_) {
    drain();
  }
}

// One drain at a time, for all pages that were closed before it began.
void Fetcher::drain() {
  for (const PageMessage& page : closing_) {
    ended_.push_back({page, nullptr, true});
  }
  const bool any = !closing_.empty();
  closing_.clear();
  closing_.swap(closing_next_);
  if (!closing_.empty()) {
    Shared* const shared = shared_;
    ++shared->under_way;
    draining_ = true;
    if (!transport_->drain_arrivals([shared] { Shared::drained(shared); })) {
      // Nobody can read here: there is nothing to wait for.
      --shared->under_way;
      draining_ = false;
      return drain();
    }
  }
  if (any) {
    ended_call_();
  }
}

}  // namespace kevre::dsm
