#include "transport/buffer_pool.h"

#include <gtest/gtest.h>

namespace kevre::transport {
namespace {

TEST(BufferPool, AReturnedBufferIsUsedAgainWithoutAllocating) {
  BufferPool pool;
  const std::byte* first = nullptr;
  {
    Buffer buffer = pool.take(5000);
    first = buffer.bytes().data();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
  }
  for (int i = 0; i < 100; ++i) {
    Buffer buffer = pool.take(4097 + static_cast<size_t>(i));
    EXPECT_EQ(buffer.bytes().data(), first);
  }
  EXPECT_EQ(pool.allocations(), 1u);
}

TEST(BufferPool, WhatItKeepsIsBounded) {
  BufferPool pool;
  {
    std::vector<Buffer> many;
    for (int i = 0; i < 5; ++i) {
      many.push_back(pool.take(kPayloadBytesMax));
    }
  }
  EXPECT_GT(pool.kept_bytes(), 0u);
  EXPECT_LE(pool.kept_bytes(), BufferPool::kKeptBytesMax);
}

TEST(BufferPool, AMovedBufferGoesBackOnce) {
  BufferPool pool;
  Buffer one = pool.take(1);
  Buffer two = std::move(one);
  EXPECT_FALSE(one);  // NOLINT: what a moved-from buffer is, is promised
  two = Buffer();
  EXPECT_EQ(pool.kept_bytes(), 512u);
}

}  // namespace
}  // namespace kevre::transport
