// The decoder of page messages: everything that can be checked without state is checked here, once.
#include "dsm/protocol.h"

#include <cstring>

namespace kevre::dsm {
namespace {

using Kind = PageMessage::Kind;

constexpr uint8_t kVersion = 1;

// What a kind may carry. A field that a kind does not use must be zero: a sender that sets it means something
// else.
struct Shape {
  uint8_t flags = 0;     // allowed
  bool segment = false;  // names pages: segment, page and at least one bit
  bool mask2 = false;
  bool requester = false;
  bool access = false;  // kRead or kWrite; kNone otherwise
  bool transaction = false;
};

Result<Shape> shape_of(Kind kind) {
  switch (kind) {
    case Kind::kReadRequest:
      return Shape{.segment = true};
    case Kind::kWriteRequest:
      return Shape{.flags = PageMessage::kHasCopy, .segment = true};
    case Kind::kGrant:
      return Shape{.flags = PageMessage::kZero | PageMessage::kNoBytes | PageMessage::kFromOwner,
                   .segment = true,
                   .mask2 = true,
                   .access = true,
                   .transaction = true};
    case Kind::kRevoke:
    case Kind::kRevoked:
    case Kind::kDone:
    case Kind::kLost:
    case Kind::kReading:
      return Shape{.segment = true, .transaction = true};
    case Kind::kForward:
      return Shape{.segment = true, .requester = true, .access = true, .transaction = true};
    case Kind::kReport:
    case Kind::kKnown:
      return Shape{.segment = true, .mask2 = true};
    case Kind::kHandOver:
      return Shape{.segment = true, .access = true};
    case Kind::kFlush:
    case Kind::kReady:
      return Shape{};
    case Kind::kReportEnd:
      return Shape{.flags = PageMessage::kComplete};
    case Kind::kHole:
      return Shape{.mask2 = true, .transaction = true};
  }
  return fail(Errc::kCorrupt, "page message: unknown kind {}", static_cast<int>(kind));
}

Result<void> check_pages(const PageMessage& m, const Shape& shape) {
  if (!shape.segment) {
    // kHole counts nodes where the others count pages: windows of 64 node ids.
    const bool hole = m.kind == Kind::kHole;
    if (m.segment.value != 0 || (!hole && (m.page != 0 || m.mask != 0)) ||
        (hole && (m.page >= 65536 || m.page % 64 != 0 || m.mask == 0 || (m.mask2 & ~m.mask) != 0))) {
      return fail(Errc::kCorrupt, "page message: kind {} with bad fields", static_cast<int>(m.kind));
    }
    return {};
  }
  // The second mask of a grant does not count from `page`.
  const uint64_t pages = m.kind == Kind::kGrant ? m.mask : m.mask | m.mask2;
  if (m.segment.value == 0 || pages == 0) {
    return fail(Errc::kCorrupt, "page message: kind {} names no page", static_cast<int>(m.kind));
  }
  const uint64_t last = static_cast<uint64_t>(63 - std::countl_zero(pages));
  if (m.page >= kPagesMax || m.page + last >= kPagesMax ||
      m.page / kChunkPages != (m.page + last) / kChunkPages) {
    return fail(Errc::kCorrupt, "page message: page {} mask {:x} out of range", m.page, pages);
  }
  if ((m.mask & m.mask2) != 0 && m.kind == Kind::kReport) {
    return fail(Errc::kCorrupt, "page message: page both readable and writable");
  }
  const bool demanding = m.kind == Kind::kReadRequest || m.kind == Kind::kWriteRequest ||
                         m.kind == Kind::kRevoke || m.kind == Kind::kRevoked || m.kind == Kind::kLost;
  if (demanding && (m.mask & 1) == 0) {
    return fail(Errc::kCorrupt, "page message: kind {} without its first page", static_cast<int>(m.kind));
  }
  if (demanding && m.kind != Kind::kReadRequest && m.mask != 1) {
    return fail(Errc::kCorrupt, "page message: kind {} with several pages", static_cast<int>(m.kind));
  }
  return {};
}

}  // namespace

int payload_pages(const PageMessage& message) {
  const bool bytes = (message.kind == Kind::kGrant && !message.has(PageMessage::kZero) &&
                      !message.has(PageMessage::kNoBytes)) ||
                     message.kind == Kind::kHandOver;
  return bytes ? std::popcount(message.mask) : 0;
}

Result<PageMessage> decode(std::span<const std::byte> header, size_t payload_bytes) {
  if (header.size() != sizeof(PageMessage)) {
    return fail(Errc::kCorrupt, "page message: header of {} bytes", header.size());
  }
  // Enumerations may hold any byte after this; nothing switches on them before they are checked.
  PageMessage m;
  std::memcpy(static_cast<void*>(&m), header.data(), sizeof m);
  if (m.version != kVersion) {
    return fail(Errc::kCorrupt, "page message: version {}, expected {}", m.version, kVersion);
  }
  Result<Shape> found = shape_of(m.kind);
  if (!found) {
    return tl::unexpected(std::move(found).error());
  }
  const Shape& shape = *found;
  const bool access_right =
      shape.access ? (m.access == Access::kRead || m.access == Access::kWrite) : m.access == Access::kNone;
  if (!access_right || (m.flags & ~shape.flags) != 0 || m.reserved != 0 || m.view.value == 0 ||
      (!shape.mask2 && m.mask2 != 0) || (!shape.transaction && m.transaction != 0) ||
      shape.requester != (m.requester != kNoNode)) {
    return fail(Errc::kCorrupt, "page message: kind {} with bad fields", static_cast<int>(m.kind));
  }
  if (m.has(PageMessage::kNoBytes) && (m.has(PageMessage::kZero) || m.access != Access::kWrite)) {
    return fail(Errc::kCorrupt, "page message: grant with flags {:x}", m.flags);
  }
  if (m.kind == Kind::kGrant && m.mask2 != 0 && (m.access != Access::kRead || m.has(PageMessage::kZero))) {
    return fail(Errc::kCorrupt, "page message: grant without read copies tells of published pages");
  }
  KEVRE_TRY(check_pages(m, shape));
  if (payload_bytes != static_cast<size_t>(payload_pages(m)) * kPageBytes) {
    return fail(Errc::kCorrupt, "page message: kind {} with {} bytes of pages", static_cast<int>(m.kind),
                payload_bytes);
  }
  return m;
}

}  // namespace kevre::dsm
