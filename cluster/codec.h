// Writer and Reader: bytes of the cluster's messages, little endian, every length checked and bounded. A
// Reader that met a wrong byte stays failed and yields zeros, so that a decoder checks once, at its end, with
// done(). Owns: Writer its bytes; Reader nothing. Threads: one owner. Tested in
// tests/cluster/handshake_test.cc, fuzzed through handshake_fuzz and launch_fuzz.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/check.h"

namespace kevre::cluster {

using Bytes = std::vector<std::byte>;
static_assert(std::endian::native == std::endian::little,
              "the wire format is little endian and copied as it is");

class Writer {
 public:
  template <class T>
  Writer& number(T value) {
    static_assert(std::is_integral_v<T>);
    std::byte raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    out_.insert(out_.end(), raw, raw + sizeof(T));
    return *this;
  }
  Writer& raw(std::span<const std::byte> bytes) {
    out_.insert(out_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  Writer& bytes(std::span<const std::byte> value) {
    number(static_cast<uint32_t>(value.size()));
    return raw(value);
  }
  Writer& text(std::string_view value) { return bytes(std::as_bytes(std::span(value))); }
  Bytes take() { return std::move(out_); }
  const Bytes& view() const { return out_; }

 private:
  Bytes out_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}

  template <class T>
  T number() {
    static_assert(std::is_integral_v<T>);
    T value{};
    const auto raw_bytes = raw(sizeof(T));
    if (ok_) {
      std::memcpy(&value, raw_bytes.data(), sizeof(T));
    }
    return value;
  }
  std::span<const std::byte> raw(size_t size) {
    if (!ok_ || size > in_.size()) {
      ok_ = false;
      return {};
    }
    const auto result = in_.first(size);
    in_ = in_.subspan(size);
    return result;
  }
  // A length and so many bytes; failed when longer than `bytes_max`.
  std::span<const std::byte> bytes(size_t bytes_max) {
    const size_t size = number<uint32_t>();
    if (size > bytes_max) {
      ok_ = false;
    }
    return ok_ ? raw(size) : std::span<const std::byte>{};
  }
  std::string text(size_t bytes_max) {
    const auto value = bytes(bytes_max);
    return {reinterpret_cast<const char*>(value.data()), value.size()};
  }
  // A count of things of which each takes at least `bytes_min`: more than the rest can hold is a failure, so
  // that no decoder reserves memory for what cannot follow.
  size_t count(size_t count_max, size_t bytes_min) {
    const size_t n = number<uint32_t>();
    if (n > count_max || n * bytes_min > in_.size()) {
      ok_ = false;
      return 0;
    }
    return n;
  }
  void require(bool condition) { ok_ = ok_ && condition; }
  size_t left() const { return in_.size(); }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && in_.empty(); }

 private:
  std::span<const std::byte> in_;
  bool ok_ = true;
};

}  // namespace kevre::cluster
