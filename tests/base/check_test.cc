#include "base/check.h"

#include <gtest/gtest.h>

TEST(Check, PassesSilentlyWhenTheConditionHolds) { KEVRE_CHECK(1 + 1 == 2, "never formatted {}", 0); }

TEST(CheckDeathTest, StopsWithPlaceConditionAndState) {
  EXPECT_DEATH(KEVRE_CHECK(1 > 2, "page {} owner {}", 7, 3), "check_test.cc:.*1 > 2 page 7 owner 3");
}
