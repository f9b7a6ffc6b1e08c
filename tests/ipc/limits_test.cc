#include "ipc/limits.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/ipc/namespace_fixture.h"

namespace kevre::ipc::testing {
namespace {

TEST(Limits, TheTextThatIsShownCanBeWrittenBack) {
  Limits limits;
  for (int32_t i = 0; i < kSettings; ++i) {
    const auto which = static_cast<Setting>(i);
    const std::string before = setting_text(limits, which);
    if (before != "-1\n") {  // "no id is wished" is not written
      EXPECT_EQ(set_setting(limits, which, before), 0) << kSettingNames[i];
    }
    EXPECT_EQ(setting_text(limits, which), before) << kSettingNames[i];
  }
}

TEST(Limits, ATextThatIsNoNumberOrTooLargeChangesNothing) {
  Limits limits;
  for (const char* text : {"", "\n", "x", "-1", "12x", "99999999999999999999999"}) {
    for (int32_t i = 0; i < kSettings; ++i) {
      EXPECT_EQ(set_setting(limits, static_cast<Setting>(i), text), EINVAL)
          << kSettingNames[i] << ": " << text;
    }
  }
  EXPECT_EQ(set_setting(limits, Setting::kShmmni, "32769"), EINVAL);
  EXPECT_EQ(set_setting(limits, Setting::kSem, "32000 1 501 1"), EINVAL);
  EXPECT_EQ(set_setting(limits, Setting::kMsgmax, std::to_string(kMsgBytesMost + 1)), EINVAL);
  EXPECT_EQ(limits.sem_mns, kSemMns);
}

TEST(Limits, FewerNumbersOfSemSetTheFirstOnly) {
  Limits limits;
  EXPECT_EQ(set_setting(limits, Setting::kSem, " 7\t8\n"), 0);
  EXPECT_EQ(setting_text(limits, Setting::kSem), "7\t8\t500\t32000\n");
}

TEST(Limits, OnlyRootSetsThem) {
  Cluster cluster;
  Call call;
  call.op = Op::kSettingSet;
  call.index = static_cast<int32_t>(Setting::kMsgmni);
  const std::string text = "0";
  Cluster::Program nobody;
  nobody.who.uid = 65534;
  EXPECT_EQ(cluster.run(nobody, call, std::as_bytes(std::span(text.data(), text.size()))).error, EACCES);
  EXPECT_EQ(cluster.get({}, Op::kMsgGet, 0, 0, 0600).error, 0);
  EXPECT_EQ(cluster.run({}, call, std::as_bytes(std::span(text.data(), text.size()))).error, 0);
  EXPECT_EQ(cluster.get({}, Op::kMsgGet, 0, 0, 0600).error, ENOSPC);
}

TEST(Limits, ASegmentLargerThanMemoryNeedsNoReserve) {
  Cluster cluster;
  constexpr int32_t kNoReserve = 010000;
  EXPECT_EQ(cluster.get({}, Op::kShmGet, 0, uint64_t{1} << 46, 0600).error, 0) << "memory not known";
  cluster.names.on_memory(uint64_t{1} << 30);
  EXPECT_EQ(cluster.get({}, Op::kShmGet, 0, uint64_t{1} << 30, 0600).error, 0);
  EXPECT_EQ(cluster.get({}, Op::kShmGet, 0, (uint64_t{1} << 30) + 1, 0600).error, ENOMEM);
  EXPECT_EQ(cluster.get({}, Op::kShmGet, 0, uint64_t{1} << 46, 0600 | kNoReserve).error, 0);
  EXPECT_EQ(cluster.get({}, Op::kShmGet, 0, 0, 0600).error, EINVAL);
}

TEST(Limits, AWishedIdIsGivenOnceAndItsNeighbourWhenTaken) {
  Cluster cluster;
  const auto wish = [&](const std::string& id) {
    Call call;
    call.op = Op::kSettingSet;
    call.index = static_cast<int32_t>(Setting::kSemNextId);
    EXPECT_EQ(cluster.run({}, call, std::as_bytes(std::span(id.data(), id.size()))).error, 0);
    return cluster.get({}, Op::kSemGet, 0, 1, 0600).value;
  };
  EXPECT_EQ(wish("98309"), 98309);
  EXPECT_EQ(wish("98309"), 98310);
  EXPECT_LT(cluster.get({}, Op::kSemGet, 0, 1, 0600).value, 98309);
  EXPECT_EQ(wish("98303"), 98303) << "the last index";
  EXPECT_EQ(cluster.ctl({}, Op::kSemCtl, 98309, 0).error, 0);
  EXPECT_EQ(cluster.ctl({}, Op::kSemCtl, 98309, 0).error, EINVAL);
}

}  // namespace
}  // namespace kevre::ipc::testing
