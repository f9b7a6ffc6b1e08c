// What every transport must do, over every backend; see transport.h for the contract.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/transport/backends.h"

namespace kevre::transport::testing {
namespace {

constexpr NodeId kOne{1};
constexpr NodeId kTwo{2};

class Conformance : public ::testing::TestWithParam<Backend> {
 protected:
  void start(size_t nodes, bool connect = true, Options options = {}) {
    options.cluster_tag = 0x1234'5678'9abc'def0u;
    cluster_ = GetParam().make(nodes, options);
    recorders_.resize(nodes);
    for (size_t i = 0; i < nodes; ++i) {
      recorders_[i] = std::make_unique<Recorder>();
      cluster_->node(i).set_handler(Service::kTest, recorders_[i].get());
    }
    if (connect) {
      cluster_->connect_all();
    }
  }
  Transport& node(size_t i) { return cluster_->node(i); }
  Recorder& got(size_t i) { return *recorders_[i]; }
  // Sends, making progress while the transport is busy.
  void send(size_t from, NodeId to, std::span<const std::byte> header, std::span<const std::byte> payload) {
    while (true) {
      const auto sent = node(from).send(to, Service::kTest, header, payload);
      if (sent) {
        return;
      }
      ASSERT_EQ(sent.error().code, Errc::kBusy) << sent.error().text;
      cluster_->step();
    }
  }

  std::vector<std::unique_ptr<Recorder>> recorders_;  // outlive the cluster
  std::unique_ptr<Cluster> cluster_;
};

TEST_P(Conformance, AMessageArrivesWithItsHeaderAndPayload) {
  start(2);
  send(0, kTwo, as_bytes("header"), as_bytes("payload"));
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == 1; }));
  const Message& message = got(1).messages[0];
  EXPECT_EQ(message.from, kOne);
  EXPECT_EQ(std::memcmp(message.header.data(), "header", 6), 0);
  EXPECT_EQ(std::memcmp(message.payload.data(), "payload", 7), 0);
  EXPECT_EQ(node(0).capabilities(kTwo).via, GetParam().via);
}

TEST_P(Conformance, EverySizeArrivesUnchangedAndInOrder) {
  start(2);
  std::vector<size_t> sizes = {0,
                               1,
                               2,
                               3,
                               7,
                               8,
                               63,
                               64,
                               65,
                               4095,
                               4096,
                               4097,
                               7999,
                               8192,
                               8256,
                               8257,
                               16383,
                               65535,
                               65536,
                               65537,
                               131071,
                               131072,
                               131073,
                               262143,
                               1048577,
                               8388607,
                               kPayloadBytesMax - 1,
                               kPayloadBytesMax};
  for (size_t i = 0; i < sizes.size(); ++i) {
    send(0, kTwo, pattern(i % 257, i), pattern(sizes[i], i));
  }
  ASSERT_TRUE(cluster_->until([&] { return got(1).messages.size() == sizes.size(); }));
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(got(1).messages[i].header, pattern(i % 257, i)) << i;
    EXPECT_TRUE(got(1).messages[i].payload == pattern(sizes[i], i)) << "size " << sizes[i];
  }
  EXPECT_EQ(node(0).queued_bytes(kTwo), 0u);
}

INSTANTIATE_TEST_SUITE_P(Backends, Conformance, ::testing::ValuesIn(backends()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kevre::transport::testing
