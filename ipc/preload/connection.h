// The program's side of the conversation with its daemon: one connection per thread, made at the first call.
//
// Rules of this folder: only libc; no malloc on the way of a call; errno changes only when a call fails. A
// call blocks all signals from the moment it is sent until its answer is there, and takes them only inside
// ppoll(), so that no handler can come between sending and waiting: a call that may block ends with EINTR
// whenever a handler ran in it. A handler that calls IPC itself while its thread waits gets a connection of
// its own for that call. A handler that leaves by siglongjmp abandons its call: the next call notices by its
// stack, and ends it. Threads: any; each has its own state. fork: fork.cc. Tested in
// tests/ipc/programs_test.cc.
#pragma once

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#include "ipc/protocol.h"

#define KEVRE_EXPORT extern "C" __attribute__((visibility("default")))

namespace kevre::ipc::preload {

struct Exchange {
  Call call;
  const void* payload = nullptr;  // of the program: a bad address gives EFAULT
  size_t payload_bytes = 0;
  int send_fd = -1;

  bool may_block = false;
  bool cancellable = false;  // by pthread_cancel, while it waits
  const timespec* timeout = nullptr;

  Answer answer;
  void* out = nullptr;  // of the program: a bad address gives EFAULT
  size_t out_bytes = 0;
  int fds[2] = {-1, -1};  // received
};

// Sends the call and waits for its answer. 0: done, see answer; else an errno. errno itself stays.
int exchange(Exchange& what);

// A descriptor of ours among those of a program that may close what it did not open, and get the same number
// again for something of its own. Copies are the same descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd);
  int fd() const { return fd_; }
  bool ours();   // still what it was; else forgets it
  void close();  // if it is ours

 private:
  int fd_ = -1;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// As long as it lives the process may have as many descriptors as its hard limit allows.
class MoreDescriptors {
 public:
  MoreDescriptors();
  ~MoreDescriptors();
  MoreDescriptors(const MoreDescriptors&) = delete;
  MoreDescriptors& operator=(const MoreDescriptors&) = delete;

 private:
  rlimit before_;
  bool raised_ = false;
};

// 0 or EFAULT: what the kernel would do with a pointer of the program.
int copy_in(void* to, const void* from_program, size_t bytes);
int copy_out(void* to_program, const void* from, size_t bytes);

// One line on stderr, once in a process.
void complain(const char* cause, int error);

// As system calls return: -1 and errno, or the value.
inline int64_t finish(int error, int64_t value) {
  if (error != 0) {
    errno = error;
    return -1;
  }
  return value;
}

// For fork.cc.
void lock_connections();
void unlock_connections();
void connections_after_fork();  // in the child: drops what it inherited
int hello_after_fork(pid_t parent, int* uffd);

// Shared memory's part (shm.cc).
void lock_attach();
void unlock_attach();
bool has_uffd();
void keep_uffd(int uffd);     // instead of the one kept so far; -1: none
int high_descriptor(int fd);  // moves it out of the way of programs that count on low numbers; closes `fd`

void keep_folder();  // of the socket: before chroot()

pid_t known_pid();
void watch_forks();

// What the entry points and syscall() call.
int64_t do_shmget(int key, size_t bytes, int flags);
int64_t do_shmat(int id, const void* address, int flags);
int64_t do_shmdt(const void* address);
int64_t do_shmctl(int id, int cmd, void* buffer);
int64_t do_semget(int key, int count, int flags);
int64_t do_semtimedop(int id, void* operations, size_t count, const timespec* timeout);
int64_t do_semctl(int id, int number, int cmd, unsigned long argument);
int64_t do_msgget(int key, int flags);
int64_t do_msgsnd(int id, const void* message, size_t bytes, int flags);
int64_t do_msgrcv(int id, void* message, size_t bytes, long type, int flags);
int64_t do_msgctl(int id, int cmd, void* buffer);

}  // namespace kevre::ipc::preload
