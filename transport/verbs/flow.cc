#include "transport/verbs/flow.h"

#include <algorithm>
#include <cstring>

namespace kevre::transport::verbs {

Assembly::Step Assembly::add(std::span<const std::byte> chunk) {
  if (present_ == message_.size()) {
    message_ = Buffer();
    present_ = 0;
    return begin(chunk);
  }
  const size_t missing = message_.size() - present_;
  if (chunk.size() != std::min(missing, kChunkBytes)) {
    return Step::kBad;
  }
  std::memcpy(message_.bytes().data() + present_, chunk.data(), chunk.size());
  present_ += chunk.size();
  if (present_ < message_.size()) {
    return Step::kMore;
  }
  const std::span<const std::byte> all = message_.bytes();
  service_header_ = all.first(header_.header_bytes);
  payload_ = all.subspan(header_.header_bytes);
  return Step::kMessage;
}

Assembly::Step Assembly::begin(std::span<const std::byte> chunk) {
  const auto lengths = wire_lengths(chunk);
  if (!lengths) {
    return Step::kBad;
  }
  const size_t head_bytes = kWireHeaderBytes + lengths->header_bytes;
  const size_t total = head_bytes + lengths->payload_bytes;
  if (chunk.size() != std::min(total, kChunkBytes)) {
    return Step::kBad;
  }
  const WireDecoded decoded =
      decode_wire_header(chunk.first(head_bytes), lengths->payload_bytes, tag_, self_);
  if (decoded.verdict != WireVerdict::kGood) {
    return Step::kBad;
  }
  header_ = decoded.header;
  if (total <= kChunkBytes) {
    service_header_ = decoded.service_header;
    payload_ = chunk.subspan(head_bytes);
    return Step::kMessage;
  }
  message_ = pool_->take(total - kWireHeaderBytes);
  const auto rest = chunk.subspan(kWireHeaderBytes);
  std::memcpy(message_.bytes().data(), rest.data(), rest.size());
  present_ = rest.size();
  return Step::kMore;
}

}  // namespace kevre::transport::verbs
