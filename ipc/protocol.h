// What a program and its daemon, and a daemon and the seat, say to each other about System V IPC: fixed
// layouts, plain data, no library needed (the preload library includes this file). wire.h has the decoders.
//
// Program <-> daemon: one SOCK_SEQPACKET connection per thread; a record is a Call (or an Answer) and its
// payload.
//   A program has at most one call open per connection, and may send kCancel for it; every other call is
//   answered once.
// Attach:   kShmAt -> answer with the memfd, and (value 1) /dev/userfaultfd the first time of an address
// space; the program maps,
//           then kAttached (with its userfaultfd the first time) -> answer; or kAttachFailed -> answer.
// Detach:   kDetachStart (exact address) -> answer with the size; the program unmaps; kDetachDone -> answer.
// Threads: none (values). Tested in tests/ipc/wire_test.cc.
#pragma once

#include <cstdint>

namespace kevre::ipc {

inline constexpr uint32_t kCallMagic = 0x6b76696bu;
inline constexpr uint8_t kCallVersion = 1;
inline constexpr uint32_t kPayloadBytesLimit = 32000u * 2;  // SETALL of the largest set is the longest

// The longest message that a record carries: how far msgmax can be raised.
inline constexpr uint32_t kMsgBytesMost = kPayloadBytesLimit - 8;
inline constexpr uint32_t kSettingBytesMax = 256;

// Linux's limits, as long as nobody sets others.
inline constexpr uint32_t kShmMni = 4096;
inline constexpr uint64_t kShmMax = ~uint64_t{0} - (uint64_t{1} << 24);
inline constexpr uint64_t kShmAll = kShmMax;
inline constexpr uint32_t kSemMsl = 32000;
inline constexpr uint32_t kSemMns = 1024000000;
inline constexpr uint32_t kSemOpm = 500;
inline constexpr uint32_t kSemMni = 32000;
inline constexpr int32_t kSemVmx = 32767;
inline constexpr uint32_t kMsgMax = 8192;
inline constexpr uint32_t kMsgMnb = 16384;
inline constexpr uint32_t kMsgMni = 32000;

enum class Op : uint16_t {
  kHello = 1,   // id: thread; index: pid of the parent when this process was forked while connected, else 0
  kCancel = 2,  // number: the call; cmd: EINTR or EAGAIN. The seat decides; the call itself is answered, this
                // is not

  kShmGet = 10,    // key, size, flags
  kShmAt,          // id, flags
  kShmCtl,         // id, cmd; IPC_SET: payload SetArguments
  kSemGet = 20,    // key, size: number of semaphores, flags
  kSemOp,          // id, size: number of operations; payload SemOperation[size]
  kSemCtl,         // id, index, cmd; SETVAL: value; SETALL: payload uint16_t[]; IPC_SET: payload SetArguments
  kSemCount,       // id: how many semaphores the set has (how long GETALL's and SETALL's arrays are)
  kMsgGet = 30,    // key, flags
  kMsgSend,        // id, flags; payload: int64_t type, then the text
  kMsgReceive,     // id, size, value: type, flags; answer payload: int64_t type, then the text
  kMsgCtl,         // id, cmd; IPC_SET: payload SetArguments
  kProcText = 40,  // index: 0 shm, 1 sem, 2 msg; to the program: a memfd
  kSettingText,    // index: Setting; to the program: a memfd
  kSettingSet,     // index: Setting; payload: the text that was written to it
  kSettingWriter,  // index: Setting; a stream socket: what comes out of it is set

  kAttached = 50,  // value: address
  kAttachFailed,   // (no arguments: a connection has at most one attach open)
  kDetachStart,    // value: address
  kDetachDone,     // value: address

  kShmDetach =
      60,    // a daemon to the seat only. value: segment; size: how many attachments ended; index: their pid
  kShmFork,  // value: segment; size: how many attachments a fork copied; index: the parent's pid
};

struct Call {
  uint32_t magic = kCallMagic;
  Op op = Op::kHello;
  uint8_t version = kCallVersion;
  uint8_t reserved = 0;
  uint64_t number = 0;  // chosen by the caller; the answer repeats it
  int32_t key = 0;
  int32_t id = 0;
  int32_t cmd = 0;
  int32_t flags = 0;
  int32_t index = 0;
  uint32_t uid = 0;  // effective, as the caller says; the daemon verifies when they differ from what it knows
  uint32_t gid = 0;
  uint32_t payload_bytes = 0;
  uint64_t size = 0;
  int64_t value = 0;
};
static_assert(sizeof(Call) == 64);

struct Answer {
  uint32_t magic = kCallMagic;
  int32_t error = 0;  // errno, 0 = done
  uint64_t number = 0;
  int64_t value = 0;
  uint64_t size = 0;     // kShmAt, kDetachStart: bytes of the segment
  uint64_t segment = 0;  // kShmAt
  uint32_t payload_bytes = 0;
  uint32_t reserved = 0;
};
static_assert(sizeof(Answer) == 48);

struct SemOperation {  // as struct sembuf
  uint16_t number = 0;
  int16_t value = 0;
  int16_t flags = 0;
};
static_assert(sizeof(SemOperation) == 6);

struct SetArguments {
  uint32_t uid = 0, gid = 0, mode = 0, reserved = 0;
  uint64_t queue_bytes = 0;
};
static_assert(sizeof(SetArguments) == 24);

// *_STAT. Which of the fields mean something depends on the kind of the object.
struct Stat {
  int32_t key = 0, id = 0;
  uint32_t uid = 0, gid = 0, cuid = 0, cgid = 0, mode = 0, sequence = 0;
  uint64_t size = 0;        // shm: bytes; sem: semaphores; msg: bytes allowed in the queue
  uint64_t count = 0;       // shm: attachments; msg: messages
  uint64_t bytes = 0;       // msg: bytes in the queue
  int64_t first_time = 0;   // shm: attach; sem: operation; msg: send
  int64_t second_time = 0;  // shm: detach; msg: receive
  int64_t change_time = 0;
  uint32_t first_pid = 0;   // shm: creator; msg: last sender
  uint32_t second_pid = 0;  // shm: last attach or detach; msg: last receiver
};
static_assert(sizeof(Stat) == 88);

// The files of /proc/sys/kernel, in the order of kSettingNames.
enum class Setting : int32_t {
  kShmmax = 0,
  kShmall,
  kShmmni,
  kShmRmidForced,
  kShmNextId,
  kSem,
  kSemNextId,
  kMsgmax,
  kMsgmnb,
  kMsgmni,
  kMsgNextId,
};
inline constexpr int32_t kSettings = 11;
inline constexpr const char* kSettingNames[kSettings] = {
    "shmmax",      "shmall", "shmmni", "shm_rmid_forced", "shm_next_id", "sem",
    "sem_next_id", "msgmax", "msgmnb", "msgmni",          "msg_next_id"};

struct Limits {
  uint64_t shm_max = kShmMax, shm_all = kShmAll;
  uint32_t shm_mni = kShmMni, shm_rmid_forced = 0;
  uint32_t sem_msl = kSemMsl, sem_mns = kSemMns, sem_opm = kSemOpm, sem_mni = kSemMni;
  uint32_t msg_max = kMsgMax, msg_mnb = kMsgMnb, msg_mni = kMsgMni;
  int32_t shm_next_id = -1, sem_next_id = -1, msg_next_id = -1;  // of the next object; -1: any
};
static_assert(sizeof(Limits) == 64);

// IPC_INFO and *_INFO: the limits, and what is in use.
struct Usage {
  Limits limits;
  uint64_t objects = 0;
  uint64_t amount = 0;  // shm: pages; sem: semaphores; msg: messages
  uint64_t bytes = 0;   // msg
};

// Header of the transport's messages of Service::kIpc, with a Call or an Answer in it.
struct SeatMessage {
  enum class Kind : uint8_t {
    kCall = 1,  // node -> seat: call, process, pid; payload: uint32_t groups[groups], then the call's payload
    kAnswer,    // seat -> node
    kCancel,    // node -> seat: call.number, call.cmd
    kProcessGone,  // node -> seat: process, pid
    kDestroy,      // seat -> all: answer.segment
  };
  uint32_t magic = kCallMagic;
  Kind kind = Kind::kCall;
  uint8_t version = kCallVersion;
  uint16_t groups = 0;
  uint32_t view = 0;
  uint32_t pid = 0;
  uint64_t process = 0;
  Call call;
  Answer answer;
};
static_assert(sizeof(SeatMessage) == 136);

}  // namespace kevre::ipc
