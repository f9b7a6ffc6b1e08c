// The page protocol: what nodes say to each other about pages, and the one decoder of it.
//
// PageMessage is the fixed-layout header of every message of Service::kDsm; page bytes follow as payload, 4096 for each
// page of `mask` in ascending order, where the kind says "with bytes". x86-64 and aarch64 are little-endian; nothing
// else is supported (checked below).
//
// A page's home serialises: it works on one request of a page at a time and queues the others (at most one per node).
//
//   kReadRequest   requester -> home   mask bit 0: the page that is waited for; other bits: welcome too
//   kWriteRequest  requester -> home   one page; kHasCopy when the requester holds a read copy (a hint: the home
//                                      believes its own list of sharers)
//   kGrant         home or owner -> requester   pages with `access`: with bytes, or kZero (never written), or kNoBytes
//                                      (the requester's copy becomes writable). kFromOwner: answer kDone to the home
//   kRevoke        home -> sharer      give up the read copy; answered by kRevoked when no program can read it any more
//   kRevoked       sharer -> home
//   kForward       home -> owner or sharer   send your pages to `requester`: kRead: keep a read copy; kWrite: give them up
//   kDone          requester -> home   pages that came from an owner have arrived: the home goes on with the pages
//   kLost          home -> requester   the only valid copy went with its node
// Change of view (a node joins, leaves or is lost), the same way for all three:
//   kFlush         all -> all          I have seen this view; nothing of an older view follows from me
//   kReport        holder -> new home  mask: I may write these; mask2: I hold read copies of these
//   kKnown         old home -> new home  mask: pages that were ever granted for writing; mask2: pages that are lost
//   kHole          all -> all          what nobody knows any more, see below
//   kHandOver      leaving holder -> new home   with bytes: pages that nobody else may have
//   kReportEnd     all -> all          everything that I hold and know has been said; kComplete: I was in the view before
//   kReady         member -> leaving   I rule my pages in this view and have all that you handed over: you may go
//
// Sources: the states follow the invalidation protocols of Li and Hudak (1989) and the blocking directory of Sorin, Hill
// and Wood, "A Primer on Memory Consistency and Cache Coherence"; the view change is a flush as in virtual synchrony.
// Tested in tests/dsm/protocol_test.cc; the decoder is fuzzed by tests/fuzz/page_message_fuzz.cc.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/ids.h"
#include "base/result.h"
#include "dsm/segment.h"

namespace kevre::dsm {

struct PageMessage {
  enum class Kind : uint8_t {
    kReadRequest = 1, kWriteRequest, kGrant, kRevoke, kRevoked, kForward, kDone, kLost,
    kFlush, kReport, kKnown, kHandOver, kReportEnd, kHole, kReady,
  };
  enum Flag : uint8_t { kHasCopy = 1, kZero = 2, kNoBytes = 4, kFromOwner = 8, kComplete = 16 };

  Kind kind = Kind::kFlush;
  Access access = Access::kNone;
  uint8_t flags = 0;
  uint8_t version = 1;
  ViewId view;
  SegmentId segment;
  uint64_t page = 0;
  uint64_t mask = 0;
  uint64_t mask2 = 0;
  NodeId requester;
  uint16_t reserved = 0;
  uint32_t transaction = 0;  // counts the home's work on the page; answers repeat it

  bool has(Flag flag) const { return (flags & flag) != 0; }
};
static_assert(sizeof(PageMessage) == 48);
static_assert(std::endian::native == std::endian::little);

// Pages whose bytes follow as payload: 0 for kinds without.
int payload_pages(const PageMessage& message);

// Checks everything that can be checked without state: length, kind, access, flags, masks, page range, and that
// `payload_bytes` is what the message announces. kCorrupt with the reason otherwise.
Result<PageMessage> decode(std::span<const std::byte> header, size_t payload_bytes);

}  // namespace kevre::dsm
