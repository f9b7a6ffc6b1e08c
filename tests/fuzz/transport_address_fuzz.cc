// Bytes of another node's transport address: they are refused, or understood completely, so that encoding what was
// understood gives the same bytes again; and both ends choose the same backend.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "transport/choice_address.h"

using namespace kevre::transport;  // NOLINT: one function

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Two addresses in one input: the first byte says where the second begins.
  const size_t middle = size == 0 ? 0 : 1 + data[0] % size;
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto here = decode_address(bytes.subspan(size == 0 ? 0 : 1, middle == 0 ? 0 : middle - 1));
  const auto there = decode_address(bytes.subspan(middle));
  for (const auto& one : {here, there}) {
    if (one) {
      const auto again = decode_address(encode_address(*one));
      if (!again || *again != *one) {
        std::abort();
      }
    }
  }
  if (here && encode_address(*here) != Address(bytes.begin() + 1, bytes.begin() + static_cast<std::ptrdiff_t>(middle))) {
    std::abort();
  }
  if (here && there) {
    const Choice mine = choose(*here, *there), theirs = choose(*there, *here);
    if (mine.kind != theirs.kind || (mine.kind && here->address_of(*mine.kind) == nullptr) ||
        (mine.kind && there->address_of(*mine.kind) == nullptr) || (mine.kind != Kind::kVerbs && mine.why.empty())) {
      std::abort();
    }
  }
  return 0;
}
