#include "base/random.h"

#include <gtest/gtest.h>

using kevre::Random;

TEST(RandomNumbers, TheSameSeedGivesTheSameNumbers) {
  Random a(7), b(7), c(8);
  bool differs = false;
  for (int i = 0; i < 100; ++i) {
    const uint64_t x = a.next();
    EXPECT_EQ(x, b.next());
    differs = differs || x != c.next();
  }
  EXPECT_TRUE(differs);
}

TEST(RandomNumbers, BelowStaysBelowAndReachesEveryValue) {
  Random random(1);
  unsigned seen = 0;
  for (int i = 0; i < 1000; ++i) {
    const uint64_t x = random.below(5);
    ASSERT_LT(x, 5u);
    seen |= 1u << x;
  }
  EXPECT_EQ(seen, 31u);
  EXPECT_EQ(random.below(0), 0u);
  EXPECT_EQ(random.between(9, 9), 9u);
}
