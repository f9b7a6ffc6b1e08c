// NodeSet: a set of nodes. The first 64 ids are one word; others cost a vector that grows to the largest id.
// Values; no thread rules. Tested in tests/dsm/node_set_test.cc.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace kevre::dsm {

class NodeSet {
 public:
  bool has(NodeId node) const {
    return ((node.value < 64 ? low_ : high_word(node)) >> (node.value % 64) & 1) != 0;
  }
  void add(NodeId node) {
    if (node.value < 64) {
      low_ |= uint64_t{1} << node.value;
      return;
    }
    const size_t word = node.value / 64u - 1;
    if (word >= high_.size()) {
      high_.resize(word + 1);
    }
    high_[word] |= uint64_t{1} << (node.value % 64);
  }
  void remove(NodeId node) {
    if (node.value < 64) {
      low_ &= ~(uint64_t{1} << node.value);
    } else if (const size_t word = node.value / 64u - 1; word < high_.size()) {
      high_[word] &= ~(uint64_t{1} << (node.value % 64));
    }
  }
  void clear() {
    low_ = 0;
    high_.clear();
  }
  bool empty() const { return first() == kNoNode; }
  // The smallest id; kNoNode when empty (node 0 is no node).
  NodeId first() const {
    if (low_ != 0) {
      return NodeId(static_cast<uint16_t>(std::countr_zero(low_)));
    }
    for (size_t i = 0; i < high_.size(); ++i) {
      if (high_[i] != 0) {
        return NodeId(static_cast<uint16_t>((i + 1) * 64 + static_cast<size_t>(std::countr_zero(high_[i]))));
      }
    }
    return kNoNode;
  }
  template <class Call>
  void for_each(Call call) const {
    for (size_t i = 0; i < words(); ++i) {
      for (uint64_t bits = word(i); bits != 0; bits &= bits - 1) {
        call(NodeId(static_cast<uint16_t>(i * 64 + static_cast<size_t>(std::countr_zero(bits)))));
      }
    }
  }
  // As words of 64 ids each, for the wire.
  size_t words() const { return high_.size() + 1; }
  uint64_t word(size_t i) const { return i == 0 ? low_ : i <= high_.size() ? high_[i - 1] : 0; }
  void add_word(size_t i, uint64_t bits) {
    if (i == 0) {
      low_ |= bits & ~uint64_t{1};
      return;
    }
    if (i > high_.size()) {
      high_.resize(i);
    }
    high_[i - 1] |= bits;
  }

 private:
  uint64_t high_word(NodeId node) const {
    const size_t word = node.value / 64u - 1;
    return word < high_.size() ? high_[word] : 0;
  }
  uint64_t low_ = 0;
  std::vector<uint64_t> high_;
};

}  // namespace kevre::dsm
