#include "dsm/node_set.h"

#include <gtest/gtest.h>

#include <set>

#include "base/random.h"

namespace kevre::dsm {
namespace {

TEST(NodeSet, BehavesLikeASetForAllIds) {
  Random random(5);
  NodeSet set;
  std::set<uint16_t> model;
  for (int i = 0; i < 20000; ++i) {
    const uint16_t id = static_cast<uint16_t>(random.between(1, random.one_in(2) ? 65535 : 70));
    if (random.one_in(3)) {
      set.remove(NodeId(id));
      model.erase(id);
    } else {
      set.add(NodeId(id));
      model.insert(id);
    }
    ASSERT_EQ(set.has(NodeId(id)), model.contains(id));
    ASSERT_EQ(set.empty(), model.empty());
    ASSERT_EQ(set.first(), model.empty() ? kNoNode : NodeId(*model.begin()));
  }
  std::set<uint16_t> listed;
  set.for_each([&](NodeId node) { listed.insert(node.value); });
  EXPECT_EQ(listed, model);
}

TEST(NodeSet, TravelsAsWords) {
  NodeSet set, copy;
  for (const uint16_t id : std::initializer_list<uint16_t>{1, 63, 64, 127, 128, 9999}) {
    set.add(NodeId(id));
  }
  for (size_t i = 0; i < set.words(); ++i) {
    copy.add_word(i, set.word(i));
  }
  for (uint16_t id = 1; id < 10100; ++id) {
    ASSERT_EQ(copy.has(NodeId(id)), set.has(NodeId(id))) << id;
  }
}

}  // namespace
}  // namespace kevre::dsm
