#include "base/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/random.h"

using kevre::Histogram;

TEST(Histogram, EmptyAnswersZero) {
  const auto h = std::make_unique<Histogram>();
  EXPECT_EQ(h->percentile_ns(0.5), 0u);
  EXPECT_EQ(h->count(), 0u);
}

TEST(Histogram, PercentilesLieWithinFourPercentOfTheSortedValues) {
  const auto h = std::make_unique<Histogram>();
  kevre::Random random(3);
  std::vector<uint64_t> values;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t v = uint64_t{1} << random.below(40);
    values.push_back(v + random.below(v));
    h->record(static_cast<int64_t>(values.back()));
  }
  std::sort(values.begin(), values.end());
  for (const double f : {0.01, 0.5, 0.9, 0.99, 0.999}) {
    const double exact = static_cast<double>(values[static_cast<size_t>(f * static_cast<double>(values.size()))]);
    EXPECT_NEAR(static_cast<double>(h->percentile_ns(f)), exact, exact * 0.04) << f;
  }
  EXPECT_EQ(h->min_ns(), values.front());
  EXPECT_EQ(h->max_ns(), values.back());
}

TEST(Histogram, NegativeCountsAsZeroAndHugeStaysInTheLastBucket) {
  const auto h = std::make_unique<Histogram>();
  h->record(-5);
  h->record(INT64_MAX);
  EXPECT_EQ(h->min_ns(), 0u);
  EXPECT_GT(h->percentile_ns(0.99), uint64_t{1} << 61);
}

TEST(Histogram, MergeCountsBoth) {
  const auto a = std::make_unique<Histogram>(), b = std::make_unique<Histogram>();
  a->record(10);
  b->record(1000);
  b->record(5);
  a->merge(*b);
  EXPECT_EQ(a->count(), 3u);
  EXPECT_EQ(a->min_ns(), 5u);
  EXPECT_EQ(a->max_ns(), 1000u);
}
