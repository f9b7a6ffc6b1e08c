// Fetcher: one-sided reads of other nodes' shelves, and what their reads of this node's shelf need: the shelf's memory is
// registered, and each peer that can read one-sided is told where it is (ShelfMessage, on Service::kDsm beside the page
// messages, which have another length).
//
// What ends is queued and taken by the owner between two events (take()): a fetch may fail at once, and a
// completion may come after anything. A transport that cannot read, a line that is not free, a peer that has not told of its
// shelf: then the fetch fails and the page is asked for by message. Nothing here says whether bytes are current; that is
// dsm/protocol.h.
//
// Owns: the shelf, its registration, the buffers of reads under way (until the transport is done with them, also when the
// Fetcher is gone). Threads: the transport's. Allocates nothing after warm-up. Tested in tests/dsm/node_test.cc; the
// decoder in tests/dsm/shelf_test.cc and tests/fuzz/shelf_fuzz.cc.
#pragma once

#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "dsm/protocol.h"
#include "dsm/shelf.h"
#include "transport/transport.h"

namespace kevre::dsm {

struct ShelfMessage {
  static constexpr uint32_t kMagic = 0x666c6873;
  uint32_t magic = kMagic;
  uint16_t version = 1;
  uint16_t key_bytes = 0;
  uint32_t groups = 0;
  uint32_t reserved = 0;
  std::array<std::byte, 64> key{};
};
static_assert(sizeof(ShelfMessage) == 80 && sizeof(ShelfMessage) != sizeof(PageMessage));
Result<ShelfMessage> decode_shelf(std::span<const std::byte> header, size_t payload_bytes);

class Fetcher {
 public:
  // Null when the transport has no one-sided operations or not the memory for the shelf. `ended`: something can be taken;
  // called in the transport's progress(), and in fetch() and close().
  static std::unique_ptr<Fetcher> create(transport::Transport* transport, size_t shelf_bytes,
                                         std::function<void()> ended);
  ~Fetcher();

  Shelf& shelf() { return *shelf_; }
  bool anyone_reads() const { return told_ != 0; }  // nobody can read what it was not told of

  // Tells the peer of the shelf, once, if it can read it. To be repeated: a peer may become able.
  void introduce(NodeId peer);
  void on_message(NodeId from, const ShelfMessage& message);
  void forget(NodeId peer);

  // `note`: asked is sent in front of the read. `line_free`: nothing waits to be sent to that node.
  void fetch(NodeId at, const PageMessage& asked, bool note, bool line_free);
  // Closes the page and waits for what has arrived.
  void close(const PageMessage& page);

  struct Ended {
    bool closed = false;  // what close() was given; else a fetch:
    PageMessage asked;
    uint64_t arrived = 0;              // of asked.mask
    std::span<const std::byte> bytes;  // 4096 for each page of asked.mask, also those that did not arrive; until the
                                       // next take()
  };
  bool take(Ended* ended);

 private:
  struct Shared;
  struct Read;
  struct Peer {
    bool told = false;
    bool has_key = false;
    uint32_t groups = 0;
    transport::RegionKey key;
  };
  struct Item {
    PageMessage asked;
    Read* read = nullptr;
    bool closed = false;
  };
  Fetcher(transport::Transport* transport, std::unique_ptr<Shelf> shelf, const transport::RegionKey& key,
          std::function<void()> ended);
  void start_reads(const Peer& peer, NodeId at, Read& read);
  void end(const Item& item);
  void drain();
  void unpack(Read& read, Ended* ended);

  transport::Transport* transport_;
  std::unique_ptr<Shelf> shelf_;
  transport::RegionKey key_;
  std::function<void()> ended_call_;
  std::unordered_map<NodeId, Peer> peers_;
  size_t told_ = 0;
  Shared* shared_;  // outlives this while reads are under way
  std::vector<Item> ended_;
  size_t taken_ = 0;
  Read* current_ = nullptr;  // its bytes are in use by the owner
  std::vector<PageMessage> closing_, closing_next_;
  bool draining_ = false;
};

}  // namespace kevre::dsm
