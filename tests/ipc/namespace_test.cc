// What each call of System V IPC does, event by event, as Linux does it.
#include "ipc/namespace.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "tests/ipc/namespace_fixture.h"

namespace kevre::ipc::testing {
namespace {
constexpr int32_t kCreate = 01000, kExclusive = 02000, kNoWait = 04000;
constexpr int32_t kRemove = 0, kStat = 2, kInfo = 3;
constexpr int32_t kGetPid = 11, kGetValue = 12, kGetNegative = 14, kGetZero = 15, kSetValue = 16;
constexpr int16_t kUndo = 0x1000, kNow = 04000;

class NamespaceTest : public ::testing::Test {
 protected:
  Cluster c;
  const Cluster::Program root{NodeId(1), 1, 100, {0, 0, {}}};
  const Cluster::Program ann{NodeId(1), 2, 101, {1000, 1000, {50}}};
  const Cluster::Program bob{NodeId(2), 1, 2100, {1001, 1001, {50}}};
  const Cluster::Program eve{NodeId(3), 1, 4100, {1002, 1002, {}}};

  int64_t sem(uint64_t count = 3, int32_t mode = 0600) {
    return c.get(ann, Op::kSemGet, 0, count, kCreate | mode).value;
  }
  int64_t queue(int32_t mode = 0600) { return c.get(ann, Op::kMsgGet, 0, 0, kCreate | mode).value; }
  int64_t value(int64_t id, int32_t number) { return c.ctl(root, Op::kSemCtl, id, kGetValue, number).value; }
};

TEST_F(NamespaceTest, AKeyFoundOnOneNodeIsTheSameObjectOnAnother) {
  const int64_t id = c.get(ann, Op::kShmGet, 42, 5000, kCreate | 0666).value;
  EXPECT_EQ(c.get(bob, Op::kShmGet, 42, 0, 0).value, id);
  EXPECT_EQ(c.get(bob, Op::kShmGet, 42, 5001, 0).error, EINVAL);
  EXPECT_EQ(c.get(bob, Op::kShmGet, 42, 0, kCreate | kExclusive).error, EEXIST);
  EXPECT_EQ(c.get(bob, Op::kShmGet, 43, 10, 0).error, ENOENT);
}

TEST_F(NamespaceTest, PrivateKeysAlwaysMakeANewObject) {
  EXPECT_NE(c.get(ann, Op::kMsgGet, 0, 0, 0600).value, c.get(ann, Op::kMsgGet, 0, 0, 0600).value);
}

TEST_F(NamespaceTest, IdsGoRoundAndAStaleOneSaysWhy) {
  const int64_t first = sem();
  EXPECT_EQ(first, 0);
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, first, kRemove).error, 0);
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, first, kStat).error, EINVAL);
  for (int i = 1; i < 64; ++i) {
    EXPECT_EQ(sem(), i);
    c.ctl(ann, Op::kSemCtl, i, kRemove);
  }
  EXPECT_EQ(sem(), 32768);
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, first, kStat).error, EIDRM);
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, -1, kStat).error, EINVAL);
}

TEST_F(NamespaceTest, ASeatThatBeganLaterKnowsEarlierIdsAsRemoved) {
  Cluster later(7);
  EXPECT_EQ(later.ctl(ann, Op::kSemCtl, 0, kStat).error, EIDRM);
  const int64_t id = later.get(ann, Op::kSemGet, 0, 1, 0600).value;
  EXPECT_GE(id, 32768);
  EXPECT_EQ(later.ctl(ann, Op::kSemCtl, id, kStat).error, 0);
}

TEST_F(NamespaceTest, LimitsAreThoseOfLinux) {
  struct Case {
    Op op;
    uint64_t size;
    int error;
  };
  for (const Case& limit : {Case{Op::kShmGet, 0, EINVAL}, Case{Op::kShmGet, ~uint64_t{0}, EINVAL},
                            Case{Op::kShmGet, uint64_t{1} << 50, ENOMEM}, Case{Op::kSemGet, 0, EINVAL},
                            Case{Op::kSemGet, 32001, EINVAL}, Case{Op::kSemGet, 32000, 0}}) {
    EXPECT_EQ(c.get(ann, limit.op, 0, limit.size, kCreate | 0600).error, limit.error) << limit.size;
  }
  for (int i = 0; i < 4096; ++i) {
    ASSERT_EQ(c.get(ann, Op::kShmGet, 0, 1, 0600).error, 0) << i;
  }
  EXPECT_EQ(c.get(ann, Op::kShmGet, 0, 1, 0600).error, ENOSPC);
}

TEST_F(NamespaceTest, PermissionBitsOfOwnerGroupAndOthers) {
  const int64_t id = c.get(ann, Op::kSemGet, 7, 1, kCreate | 0640).value;
  SetArguments arguments{1000, 50, 0640, 0, 0};
  ASSERT_EQ(c.set(ann, Op::kSemCtl, id, arguments).error, 0);
  EXPECT_EQ(c.ctl(bob, Op::kSemCtl, id, kGetValue).error, 0);  // group 50 reads
  EXPECT_EQ(c.ctl(bob, Op::kSemCtl, id, kSetValue, 0, 1).error, EACCES);
  EXPECT_EQ(c.semop(bob, id, {{0, 0, 0}}).error, 0);
  EXPECT_EQ(c.semop(bob, id, {{0, 1, 0}}).error, EACCES);
  EXPECT_EQ(c.ctl(eve, Op::kSemCtl, id, kGetValue).error, EACCES);
  EXPECT_EQ(c.ctl(eve, Op::kSemCtl, id, 20).error, 0);  // SEM_STAT_ANY asks for nothing
  EXPECT_EQ(c.ctl(eve, Op::kSemCtl, id, kRemove).error, EPERM);
  EXPECT_EQ(c.get(eve, Op::kSemGet, 7, 1, 0).error, 0);
  EXPECT_EQ(c.get(eve, Op::kSemGet, 7, 1, 0400).error, EACCES);
  EXPECT_EQ(c.semop(root, id, {{0, 1, 0}}).error, 0);
}

TEST_F(NamespaceTest, SetRefusesStrangersAndKeepsTheHighBits) {
  const int64_t id = c.get(ann, Op::kShmGet, 0, 1, 0600).value;
  EXPECT_EQ(c.set(bob, Op::kShmCtl, id, {1001, 1001, 0666, 0, 0}).error, EPERM);
  EXPECT_EQ(c.set(ann, Op::kShmCtl, id, {kRemove - 1u, 1, 0666, 0, 0}).error, EINVAL);
  EXPECT_EQ(c.ctl(ann, Op::kShmCtl, id, 11).error, 0);  // SHM_LOCK
  EXPECT_EQ(c.set(ann, Op::kShmCtl, id, {1001, 1001, 07644, 0, 0}).error, 0);
  const Stat stat = Cluster::stat(c.ctl(root, Op::kShmCtl, id, kStat));
  EXPECT_EQ(stat.mode, 02644u);
  EXPECT_EQ(stat.uid, 1001u);
  EXPECT_EQ(stat.cuid, 1000u);
}

TEST_F(NamespaceTest, ASegmentRemovedWhileAttachedLivesUntilTheLastDetach) {
  const int64_t id = c.get(ann, Op::kShmGet, 9, 100, kCreate | 0666).value;
  const Done at = c.ctl(ann, Op::kShmAt, id, 0);
  ASSERT_EQ(at.error, 0);
  EXPECT_EQ(at.answer.size, 100u);
  c.ctl(bob, Op::kShmAt, id, 0);
  EXPECT_EQ(c.ctl(ann, Op::kShmCtl, id, kRemove).error, 0);
  EXPECT_EQ(Cluster::stat(c.ctl(ann, Op::kShmCtl, id, kStat)).mode, 01666u);
  EXPECT_EQ(Cluster::stat(c.ctl(ann, Op::kShmCtl, id, kStat)).count, 2u);
  EXPECT_EQ(c.ctl(eve, Op::kShmAt, id, 0).error, 0);  // still by id
  EXPECT_NE(c.get(ann, Op::kShmGet, 9, 100, kCreate | 0666).value, id);
  Call detach;
  detach.op = Op::kShmDetach;
  detach.value = static_cast<int64_t>(at.answer.segment);
  detach.size = 1;
  c.start(ann, detach);
  c.lost(bob.node);
  EXPECT_TRUE(c.destroyed.empty());
  c.lost(eve.node);
  ASSERT_EQ(c.destroyed.size(), 1u);
  EXPECT_EQ(c.destroyed[0], SegmentId(at.answer.segment));
  EXPECT_EQ(c.ctl(ann, Op::kShmAt, id, 0).error, EINVAL);
}

TEST_F(NamespaceTest, ForkDoublesAttachmentsAndReadOnlyAttachNeedsOnlyR) {
  const int64_t id = c.get(ann, Op::kShmGet, 0, 100, 0644).value;
  EXPECT_EQ(c.ctl(bob, Op::kShmAt, id, 0).error, EACCES);
  Call attach;
  attach.op = Op::kShmAt;
  attach.id = static_cast<int32_t>(id);
  attach.flags = 010000;
  const Done at = c.run(bob, attach);
  EXPECT_EQ(at.error, 0);
  attach.flags = 0110000;
  EXPECT_EQ(c.run(bob, attach).error, EACCES);
  Call fork;
  fork.op = Op::kShmFork;
  fork.value = static_cast<int64_t>(at.answer.segment);
  fork.size = 1;
  fork.index = 2100;
  c.start(bob, fork);
  EXPECT_EQ(Cluster::stat(c.ctl(ann, Op::kShmCtl, id, kStat)).count, 2u);
}

TEST_F(NamespaceTest, SegmentsAreNeverNumberedTwice) {
  const auto attach = [&](Cluster& cluster) {
    const int64_t id = cluster.get(ann, Op::kShmGet, 0, 1, 0600).value;
    const uint64_t segment = cluster.ctl(ann, Op::kShmAt, id, 0).answer.segment;
    cluster.ctl(ann, Op::kShmCtl, id, kRemove);
    return segment;
  };
  Cluster later(2);
  const uint64_t first = attach(c);
  EXPECT_NE(first, attach(c));
  EXPECT_NE(first, attach(later));
}

TEST_F(NamespaceTest, SemopChecksInLinuxOrder) {
  const int64_t id = sem(1, 0600);
  Call none = Cluster::semop_call(id, {});
  EXPECT_EQ(c.run(ann, none).error, EINVAL);
  Call many = Cluster::semop_call(99, {});
  many.size = 501;
  EXPECT_EQ(c.run(ann, many).error, E2BIG);  // before the id is looked at
  EXPECT_EQ(c.semop(ann, 99, {{0, 1, 0}}).error, EINVAL);
  EXPECT_EQ(c.semop(eve, id, {{1, 1, 0}}).error, EFBIG);  // before permissions
  EXPECT_EQ(c.semop(ann, id, {{0, 32767, 0}, {0, 1, 0}}).error, ERANGE);
  EXPECT_EQ(value(id, 0), 0);
}

TEST_F(NamespaceTest, ABlockedArrayChangesNothing) {
  const int64_t id = sem();
  const uint64_t waiting = c.start_semop(ann, id, {{0, 1, 0}, {1, -1, 0}});
  EXPECT_TRUE(c.waits(waiting));
  EXPECT_EQ(value(id, 0), 0);
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, id, kGetNegative, 0).value, 0);
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, id, kGetNegative, 1).value, 1);
  EXPECT_EQ(c.semop(bob, id, {{1, 1, 0}}).error, EACCES);
  EXPECT_EQ(c.semop(root, id, {{1, 1, 0}}).error, 0);
  EXPECT_EQ(c.done[waiting].error, 0);
  EXPECT_EQ(value(id, 0), 1);
  EXPECT_EQ(value(id, 1), 0);
}

TEST_F(NamespaceTest, AnArrayMayUseASemaphoreTwice) {
  const int64_t id = sem();
  EXPECT_EQ(c.semop(ann, id, {{0, 2, 0}, {0, -2, 0}, {0, 0, 0}, {0, 1, 0}}).error, 0);
  EXPECT_EQ(value(id, 0), 1);
  EXPECT_EQ(c.semop(ann, id, {{0, -2, kNow}, {0, 2, 0}}).error, EAGAIN);
}

TEST_F(NamespaceTest, WaitersAreServedInOrderAndTheFirstThatFits) {
  const int64_t id = sem();
  const uint64_t two = c.start_semop(ann, id, {{0, -2, 0}});
  const uint64_t one = c.start_semop(ann, id, {{0, -1, 0}});
  const uint64_t last = c.start_semop(ann, id, {{0, -1, 0}});
  c.semop(ann, id, {{0, 1, 0}});
  EXPECT_TRUE(c.waits(two));
  EXPECT_FALSE(c.waits(one));
  EXPECT_TRUE(c.waits(last));
  c.semop(ann, id, {{0, 3, 0}});
  EXPECT_FALSE(c.waits(two));
  EXPECT_FALSE(c.waits(last));
  EXPECT_EQ(value(id, 0), 0);
}

TEST_F(NamespaceTest, ThePosterCannotTakeBackWhatItHandedOver) {
  const int64_t id = sem();
  const uint64_t waiter = c.start_semop(ann, id, {{0, -1, 0}});
  c.semop(root, id, {{0, 1, 0}});
  EXPECT_FALSE(c.waits(waiter));
  EXPECT_EQ(c.semop(root, id, {{0, -1, kNow}}).error, EAGAIN);
}

TEST_F(NamespaceTest, WaitersForZeroWakeWhenTheValueComesDown) {
  const int64_t id = sem();
  c.ctl(ann, Op::kSemCtl, id, kSetValue, 0, 2);
  const uint64_t zero = c.start_semop(ann, id, {{0, 0, 0}});
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, id, kGetZero, 0).value, 1);
  c.semop(root, id, {{0, -1, 0}});
  EXPECT_TRUE(c.waits(zero));
  c.semop(root, id, {{0, -1, 0}});
  EXPECT_EQ(c.done[zero].error, 0);
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, id, kGetPid, 0).value, ann.pid);
}

TEST_F(NamespaceTest, SetvalWakesWaitersAndClearsUndo) {
  const int64_t id = sem();
  c.semop(ann, id, {{0, 1, kUndo}});
  const uint64_t waiter = c.start_semop(root, id, {{0, -3, 0}});
  c.ctl(ann, Op::kSemCtl, id, kSetValue, 0, 3);
  EXPECT_FALSE(c.waits(waiter));
  c.ctl(ann, Op::kSemCtl, id, kSetValue, 0, 3);
  c.gone(ann);
  EXPECT_EQ(value(id, 0), 3);
  EXPECT_EQ(c.ctl(root, Op::kSemCtl, id, kSetValue, 0, 32768).error, ERANGE);
}

TEST_F(NamespaceTest, UndoIsAppliedWhenAProcessDiesAndWakesWhoWaits) {
  const int64_t id = sem();
  c.ctl(ann, Op::kSemCtl, id, kSetValue, 0, 1);
  c.semop(ann, id, {{0, -1, kUndo}});
  const uint64_t waiter = c.start_semop(root, id, {{0, -1, 0}});
  c.gone(ann);
  EXPECT_EQ(c.done[waiter].error, 0);
  c.gone(ann);  // once
  EXPECT_EQ(value(id, 0), 0);
}

TEST_F(NamespaceTest, UndoIsClampedAndItsAdjustmentHasARange) {
  const int64_t id = sem();
  c.semop(ann, id, {{0, 5, kUndo}});
  c.semop(root, id, {{0, -3, 0}});
  c.gone(ann);
  EXPECT_EQ(value(id, 0), 0);
  c.semop(ann, id, {{1, 32767, kUndo}});
  c.semop(root, id, {{1, -32767, 0}});
  EXPECT_EQ(c.semop(ann, id, {{1, 2, kUndo}}).error, ERANGE);
  EXPECT_EQ(c.semop(ann, id, {{1, 1, kUndo}}).error, 0);
}

TEST_F(NamespaceTest, ALostNodeIsTheDeathOfAllItsProcesses) {
  const int64_t id = sem(1, 0666);
  c.ctl(ann, Op::kSemCtl, id, kSetValue, 0, 1);
  c.semop(bob, id, {{0, -1, kUndo}});
  const uint64_t dead = c.start_semop(bob, id, {{0, -1, 0}});
  const uint64_t alive = c.start_semop(ann, id, {{0, -1, 0}});
  c.lost(bob.node);
  EXPECT_EQ(c.done[alive].error, 0);
  EXPECT_TRUE(c.waits(dead));
  EXPECT_EQ(c.names.waiting(), 0u);
}

TEST_F(NamespaceTest, ACancelEndsACallOnceAndNeverAfterItsGrant) {
  const int64_t id = sem();
  const uint64_t call = c.start_semop(ann, id, {{0, -1, 0}});
  c.cancel(ann.node, call, EINTR);
  EXPECT_EQ(c.done[call].error, EINTR);
  c.semop(root, id, {{0, 1, 0}});
  EXPECT_EQ(value(id, 0), 1);
  const uint64_t granted = c.start_semop(ann, id, {{0, -1, 0}});
  c.cancel(ann.node, granted, EAGAIN);
  EXPECT_EQ(c.done[granted].error, 0);
  EXPECT_EQ(c.answers[granted], 1);
}

TEST_F(NamespaceTest, RemovingWakesSleepersWithEidrm) {
  const int64_t id = sem();
  const int64_t q = queue();
  const uint64_t semop = c.start_semop(ann, id, {{0, -1, 0}});
  const uint64_t receive = c.start_receive(ann, q, 10, 0);
  c.ctl(ann, Op::kSemCtl, id, kRemove);
  c.ctl(ann, Op::kMsgCtl, q, kRemove);
  EXPECT_EQ(c.done[semop].error, EIDRM);
  EXPECT_EQ(c.done[receive].error, EIDRM);
  EXPECT_EQ(c.names.waiting(), 0u);
}

TEST_F(NamespaceTest, MessagesComeByType) {
  const int64_t q = queue();
  for (const auto& [type, text] :
       {std::pair<int, const char*>{3, "a"}, {1, "b"}, {2, "c"}, {3, "d"}, {1, "e"}}) {
    ASSERT_EQ(c.send(ann, q, type, text).error, 0);
  }
  EXPECT_EQ(Cluster::text(c.receive(ann, q, 10, 3)), "a");
  EXPECT_EQ(Cluster::text(c.receive(ann, q, 10, -2)), "b");
  EXPECT_EQ(Cluster::text(c.receive(ann, q, 10, 1, 020000)), "c");
  EXPECT_EQ(Cluster::text(c.receive(ann, q, 10, 1, 040000 | kNoWait)), "e");  // MSG_COPY: by position
  EXPECT_EQ(c.receive(ann, q, 10, 2, 040000 | kNoWait).error, ENOMSG);
  EXPECT_EQ(c.receive(ann, q, 10, 0, 040000).error, EINVAL);
  EXPECT_EQ(Cluster::text(c.receive(ann, q, 10, 0)), "d");
  EXPECT_EQ(Cluster::text(c.receive(ann, q, 10, std::numeric_limits<int64_t>::min())), "e");
  EXPECT_EQ(c.receive(ann, q, 10, 0, kNoWait).error, ENOMSG);
}

TEST_F(NamespaceTest, MsgsndChecksItsArguments) {
  const int64_t q = queue();
  EXPECT_EQ(c.send(ann, q, 0, "x").error, EINVAL);
  EXPECT_EQ(c.send(ann, q, 1, std::string(8193, 'x')).error, EINVAL);
  EXPECT_EQ(c.send(ann, q, 1, std::string(8192, 'x')).error, 0);
  EXPECT_EQ(c.send(ann, q, 1, "").error, 0);
  EXPECT_EQ(c.send(eve, q, 1, "x").error, EACCES);
  EXPECT_EQ(c.send(ann, 77, 1, "x").error, EINVAL);
}

TEST_F(NamespaceTest, AFullQueueBlocksAndASmallMessageMayPass) {
  const int64_t q = queue();
  c.send(ann, q, 1, std::string(8192, 'x'));
  c.send(ann, q, 1, std::string(8000, 'y'));
  EXPECT_EQ(c.send(ann, q, 1, std::string(200, 'z'), kNoWait).error, EAGAIN);
  const uint64_t large = c.start_send(ann, q, 2, std::string(8192, 'l'));
  const uint64_t small = c.start_send(ann, q, 2, std::string(1000, 's'));
  EXPECT_TRUE(c.waits(small));
  c.receive(ann, q, 9000, 1);
  EXPECT_FALSE(c.waits(large));
  EXPECT_TRUE(c.waits(small));
  c.receive(ann, q, 9000, 1);
  EXPECT_EQ(c.done[small].error, 0);
}

TEST_F(NamespaceTest, AReceiverWithTooSmallABufferIsWokenAndTheNextGetsTheMessage) {
  const int64_t q = queue();
  const uint64_t small = c.start_receive(ann, q, 2, 0);
  const uint64_t other = c.start_receive(ann, q, 100, 9);
  const uint64_t fits = c.start_receive(ann, q, 3, 0);
  EXPECT_EQ(c.send(root, q, 5, "hello").error, 0);
  EXPECT_EQ(c.done[small].error, E2BIG);
  EXPECT_EQ(c.done[fits].error, E2BIG);
  EXPECT_TRUE(c.waits(other));
  EXPECT_EQ(c.receive(ann, q, 2, 0).error, E2BIG);  // and stays
  const Done cut = c.receive(ann, q, 2, 0, 010000);
  EXPECT_EQ(cut.value, 2);
  EXPECT_EQ(Cluster::text(cut), "he");
}

TEST_F(NamespaceTest, AMessageGoesToTheReceiverThatWaitedLongest) {
  const int64_t q = queue();
  const uint64_t first = c.start_receive(ann, q, 10, 0);
  const uint64_t second = c.start_receive(bob, q, 10, 0);
  EXPECT_EQ(c.done[second].error, EACCES);
  c.send(root, q, 1, "one");
  EXPECT_EQ(Cluster::text(c.done[first]), "one");
  const Stat stat = Cluster::stat(c.ctl(ann, Op::kMsgCtl, q, kStat));
  EXPECT_EQ(stat.count, 0u);
  EXPECT_EQ(stat.first_pid, root.pid);
  EXPECT_EQ(stat.second_pid, ann.pid);
}

TEST_F(NamespaceTest, QueueBytesAboveTheLimitNeedRootAndMakeRoom) {
  const int64_t q = queue();
  c.send(ann, q, 1, std::string(8192, 'x'));
  c.send(ann, q, 1, std::string(8192, 'x'));
  const uint64_t waiting = c.start_send(ann, q, 1, "more");
  EXPECT_EQ(c.set(ann, Op::kMsgCtl, q, {1000, 1000, 0600, 0, 16385}).error, EPERM);
  EXPECT_EQ(c.set(root, Op::kMsgCtl, q, {1000, 1000, 0600, 0, 20000}).error, 0);
  EXPECT_EQ(c.done[waiting].error, 0);
}

TEST_F(NamespaceTest, StricterPermissionsExpelReceivers) {
  const int64_t q = queue(0666);
  const uint64_t waiting = c.start_receive(eve, q, 10, 0);
  c.set(ann, Op::kMsgCtl, q, {1000, 1000, 0600, 0, 16384});
  EXPECT_EQ(c.done[waiting].error, EACCES);
}

TEST_F(NamespaceTest, InfoCountsWhatIsInUse) {
  sem(4);
  sem(5);
  const Done info = c.ctl(ann, Op::kSemCtl, 0, kInfo);
  Usage usage;
  ASSERT_EQ(info.data.size(), sizeof usage);
  std::memcpy(&usage, info.data.data(), sizeof usage);
  EXPECT_EQ(usage.objects, 2u);
  EXPECT_EQ(usage.amount, 9u);
  EXPECT_EQ(info.value, 1);
}

TEST_F(NamespaceTest, ProcTextHasTheKernelsColumns) {
  c.get(ann, Op::kShmGet, 0x1234, 5000, kCreate | 0640);
  EXPECT_EQ(c.names.proc_text(ObjectKind::kShm),
            "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid    "
            "  atime"
            "      dtime      ctime                   rss                  swap\n"
            "      4660          0   640                  5000   101     0      0  1000  1000  1000  1000    "
            "      0"
            "          0       1000                     0                     0\n");
  EXPECT_EQ(c.names.proc_text(ObjectKind::kSem),
            "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n");
}

TEST_F(NamespaceTest, UnknownCommandsAreInvalid) {
  const int64_t id = sem();
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, id, 999).error, EINVAL);
  EXPECT_EQ(c.ctl(ann, Op::kSemCtl, id, kGetValue, 3).error, EINVAL);
  EXPECT_EQ(c.ctl(ann, Op::kShmCtl, -1, kStat).error, EINVAL);
}

}  // namespace
}  // namespace kevre::ipc::testing
