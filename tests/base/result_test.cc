#include "base/result.h"

#include <gtest/gtest.h>

using kevre::Errc;
using kevre::Result;

namespace {
Result<int> half(int x) {
  if (x % 2 != 0) {
    return kevre::fail(Errc::kInvalid, "{} is odd", x);
  }
  return x / 2;
}
Result<int> quarter(int x) {
  KEVRE_ASSIGN(const int h, half(x));
  KEVRE_TRY(half(h));
  return half(h);
}
}  // namespace

TEST(ResultOf, ValuesPassAndErrorsLeaveTheFunction) {
  EXPECT_EQ(*quarter(8), 2);
  const auto failed = quarter(6);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, Errc::kInvalid);
  EXPECT_EQ(failed.error().text, "3 is odd");
}

TEST(ResultOf, FailErrnoNamesTheCauseAndItsGroup) {
  errno = EACCES;
  const Result<int> r = kevre::fail_errno("open {}", "/x");
  EXPECT_EQ(r.error().sys_errno, EACCES);
  EXPECT_EQ(r.error().code, Errc::kDenied);
  EXPECT_EQ(r.error().text, "open /x: Permission denied");
}
