// What the probe says about this machine, with a device or without.
#include <gtest/gtest.h>

#include <filesystem>

#include "transport/transport.h"
#include "transport/verbs/probe.h"

namespace kevre::transport::verbs {
namespace {

TEST(VerbsProbe, SaysWhyNotAndTheRemedyOrHasAPortToUse) {
  const Probe found = probe();
  if (found.usable()) {
    const auto choice = choose(found, "");
    ASSERT_TRUE(choice.has_value()) << choice.error().text;
    EXPECT_EQ(choice->device->state, "active");
    EXPECT_NE(choice->port->subnet.address, 0u);
    EXPECT_FALSE(choice->port->interface.empty());
    std::printf("device %s on %s, %s\n", choice->device->name.c_str(), choice->port->interface.c_str(),
                choice->port->subnet.text().c_str());
  } else {
    EXPECT_EQ(choose(found, "").error().code, Errc::kUnsupported);
    EXPECT_NE(found.why_not.find(':'), std::string::npos) << "no remedy in: " << found.why_not;
    std::printf("no verbs here: %s\n", found.why_not.c_str());
  }
}

TEST(VerbsProbe, AMachineWithoutDevicesGetsAnErrorThatNamesTheWayOut) {
  std::error_code ignored;
  if (std::filesystem::exists("/sys/class/infiniband", ignored)) {
    GTEST_SKIP() << "kevre: test skipped: this machine has RDMA devices";
  }
  Options options;
  options.self = NodeId(1);
  options.kind = "verbs";
  const auto made = create(options);
  ASSERT_FALSE(made.has_value());
  EXPECT_EQ(made.error().code, Errc::kUnsupported);
  EXPECT_NE(made.error().text.find("use --transport ucx"), std::string::npos) << made.error().text;
  EXPECT_NE(made.error().text.find("rdma link add"), std::string::npos) << made.error().text;
}

Probe two_devices() {
  Probe found;
  Device down;
  down.name = "first";
  down.why_not = "no port is active: check the cable";
  down.ports = {{{0x0a000001, 24}, "eth0", 1}};
  Device up;
  up.name = "second";
  up.ports = {{{0x0a000101, 24}, "eth1", 1}, {{0x0a000201, 24}, "eth1", 1}};
  found.devices = {down, up};
  return found;
}

TEST(VerbsProbe, TheChoiceTakesTheFirstUsableDeviceOrTheOneWithTheAddress) {
  const Probe found = two_devices();
  EXPECT_EQ(choose(found, "")->port->subnet.text(), "10.0.1.1/24");
  EXPECT_EQ(choose(found, "10.0.2.1")->port, &found.devices[1].ports[1]);
  EXPECT_EQ(choose(found, "10.0.0.1").error().code, Errc::kNotFound) << "its device is not usable";
  EXPECT_EQ(choose(found, "10.9.9.9").error().code, Errc::kNotFound);
  EXPECT_EQ(choose(found, "nonsense").error().code, Errc::kInvalid);
}

TEST(VerbsProbe, ASubnetKnowsItsOwn) {
  const Subnet subnet{0x0a000101, 24};
  EXPECT_TRUE(subnet.contains(0x0a0001fe));
  EXPECT_FALSE(subnet.contains(0x0a0002fe));
  EXPECT_TRUE((Subnet{0x0a000101, 0}).contains(0xffffffff));
  EXPECT_FALSE((Subnet{0x0a000101, 32}).contains(0x0a000102));
}

}  // namespace
}  // namespace kevre::transport::verbs
