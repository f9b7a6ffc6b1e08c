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
//   kReading       reader -> home      note: a one-sided read of these pages comes behind this message
// Change of view (a node joins, leaves or is lost), the same way for all three:
//   kFlush         all -> all          I have seen this view; nothing of an older view follows from me
//   kReport        holder -> new home  mask: I may write these; mask2: I hold read copies of these
//   kKnown         old home -> new home  mask: pages that were ever granted for writing; mask2: pages that are lost
//   kHole          all -> all          what nobody knows any more, see below
//   kHandOver      leaving holder -> new home   with bytes: pages that nobody else may have
//   kReportEnd     all -> all          everything that I hold and know has been said; kComplete: I was in the view before
//   kReady         member -> leaving   I rule my pages in this view and have all that you handed over: you may go
//
// Pages by one-sided read. A node that sends read copies publishes the bytes (dsm/shelf.h): others may fetch them with a
// one-sided read, with no software running here. What is published is a read copy of its node and the same bytes; whatever
// changes the frame closes it first. A read gets what is published, or nothing; then the page is asked for by message.
// Two kinds of readers fetch, and only within one view and when they are ready in it:
//   * From the page's home. kReading is sent in front of the read, on the same channel. The home remembers the reader as
//     `noted`: perhaps it has a copy. Before a page may change (every way to a write grant goes through serve_write), the
//     home closes what was published of its own copy, waits until everything that had arrived by then has been handed up
//     (kClose, on_closed), and revokes the noted with the sharers.
//       A read that saw the page published began before it was closed. Its note had arrived before the read began, so
//     it was handed up before on_closed, so its reader is noted and gets a kRevoke. That reader either has the copy and
//     drops it, or its read is still under way and is spoiled (what it brings is thrown away). Either way nothing of this
//     read is left when kRevoked is sent.
//       A note that comes after on_closed belongs to a read that sees the page closed, or a later publication, whose
//     end goes the same way: it stays noted. A note is forgotten only when nothing can come any more of the fetches that
//     it and its forerunners announced: the reader was sent kRevoke, kForward for writing or the upgrade (each ends the
//     reader's fetch or takes its copy, and the home waits for that before it grants anything else), or the reader itself
//     asks for the page without having a copy (it asks only when no fetch is under way).
//       A noted node that wants to write is no sharer, and its copy is taken back like the others': whether it still has
//     one, the home cannot know. (kHasCopy does not tell: by another channel the copy may have gone to a writer, and
//     the page from there to a reader, before the request that still speaks of it arrives.)
//   * By the home itself, from a sharer. The page is at work meanwhile as with a kForward, so the sharer can neither lose
//     nor change its copy, and nobody else is granted anything. No note. What fails is asked for with the kForward.
// A change of view: whoever starts the new view throws away what its reads will bring, or has it and reports it; and no
// write is granted before it has reported. The home may be one view ahead of the reader: it ignores the note, and the
// argument is the reader's report. Noted nodes are forgotten with the sharers. Frames that were published
// in an older view are still the copies that their nodes report.
// A grant's mask2 is no more than a hint where to fetch.
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
    kFlush, kReport, kKnown, kHandOver, kReportEnd, kHole, kReady, kReading,
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
  uint64_t mask2 = 0;  // kGrant: bit i: page i of the window of 64 pages that `page` is in can be read one-sided at the sender
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
