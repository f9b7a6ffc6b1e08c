#include "base/ids.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <unordered_set>

using kevre::NodeId;
using kevre::SegmentId;

static_assert(!std::is_convertible_v<NodeId, SegmentId>);
static_assert(!std::is_convertible_v<uint16_t, NodeId>);

TEST(Ids, CompareHashAndPrintAsTheirValue) {
  EXPECT_LT(NodeId{1}, NodeId{2});
  EXPECT_EQ(fmt::format("{}", SegmentId{42}), "42");
  const std::unordered_set<NodeId> set{NodeId{1}, NodeId{1}, NodeId{2}};
  EXPECT_EQ(set.size(), 2u);
}
