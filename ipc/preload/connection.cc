#include "ipc/preload/connection.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

namespace kevre::ipc::preload {
namespace {

struct State {
  Descriptor socket;
  uint64_t number = 0;
  bool busy = false;
  const volatile uint64_t* mark = nullptr;  // on the stack of the call that is busy; holds mark_value
  uint64_t mark_value = 0;
  bool listed = false;
  State* next = nullptr;
  State* previous = nullptr;
};

thread_local State t_state;
// All threads' states, so that a forked child can close what it inherited. Held with all signals blocked.
State* g_states = nullptr;
pthread_mutex_t g_mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_key_t g_key;
pthread_once_t g_once = PTHREAD_ONCE_INIT;
pid_t g_pid = 0;
int g_complained = 0;
thread_local uint64_t t_marks = 0;
// Taken before main() runs: programs clear their environment, and leave their root directory.
char g_path[sizeof(sockaddr_un::sun_path)];
Descriptor g_folder;  // of the socket; only of a program that calls chroot()

__attribute__((constructor)) void remember_path() {
  const char* path = ::getenv("KEVRE_SOCKET");
  if (path != nullptr && ::strlen(path) < sizeof g_path) {
    ::strcpy(g_path, path);
  }
}

void drop(State& state) {
  state.socket.close();
}

void thread_ends(void* pointer) {
  auto* state = static_cast<State*>(pointer);
  ::pthread_mutex_lock(&g_mutex);
  drop(*state);
  (state->previous != nullptr ? state->previous->next : g_states) = state->next;
  if (state->next != nullptr) {
    state->next->previous = state->previous;
  }
  state->listed = false;
  state->next = state->previous = nullptr;
  state->busy = false;
  ::pthread_mutex_unlock(&g_mutex);
}

void first_use() {
  ::pthread_key_create(&g_key, thread_ends);
  watch_forks();
}

void list(State& state) {
  if (state.listed) {
    return;
  }
  ::pthread_mutex_lock(&g_mutex);
  state.previous = nullptr;
  state.next = g_states;
  if (g_states != nullptr) {
    g_states->previous = &state;
  }
  g_states = &state;
  state.listed = true;
  ::pthread_mutex_unlock(&g_mutex);
  ::pthread_setspecific(g_key, &state);
}

// 0 or an errno.
int connect_to(int fd, const char* path) {
  sockaddr_un address;
  memset(&address, 0, sizeof address);
  address.sun_family = AF_UNIX;
  ::strcpy(address.sun_path, path);
  return ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
}

// Below another root directory the path says nothing, but the folder can still be entered: by a thread with a
// working directory of its own, so that the program's stays.
struct FromFolder {
  int fd;
  int error;
};
void* connect_from_folder(void* pointer) {
  auto* what = static_cast<FromFolder*>(pointer);
  const char* slash = ::strrchr(g_path, '/');
  if (::unshare(CLONE_FS) != 0 || ::fchdir(g_folder.fd()) != 0) {
    what->error = errno;
  } else {
    what->error = connect_to(what->fd, slash == nullptr ? g_path : slash + 1);
  }
  return nullptr;
}

// 0 or an errno.
int connect_anyhow(int fd) {
  const int error = connect_to(fd, g_path);
  if (error == 0 || !g_folder.ours()) {
    return error;
  }
  FromFolder what = {fd, error};
  pthread_t thread;
  if (::pthread_create(&thread, nullptr, connect_from_folder, &what) == 0) {
    ::pthread_join(thread, nullptr);
  }
  return what.error;
}

int new_socket() {
  int fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0 && errno == EMFILE) {
    const MoreDescriptors more;
    fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  }
  return fd < 0 ? fd : high_descriptor(fd);
}

// A connected socket, or a negative errno.
int connect_daemon() {
  if (g_path[0] == 0) {
    remember_path();  // called by another library's constructor, which ran before ours
  }
  if (g_path[0] == 0) {
    complain("KEVRE_SOCKET does not name the node's socket; start the program with 'kevre run'", 0);
    return -ENOSYS;
  }
  const int fd = new_socket();
  const int error = fd < 0 ? errno : connect_anyhow(fd);
  if (error != 0) {
    complain("cannot reach the node's daemon at KEVRE_SOCKET; is the node up ('kevre nodes')?", error);
    if (fd >= 0) {
      ::close(fd);
    }
    return -ENOSYS;
  }
  return fd;
}

void stamp(Call& call) {
  call.uid = static_cast<uint32_t>(::geteuid());
  call.gid = static_cast<uint32_t>(::getegid());
}

// 0 or an errno; EPIPE: the connection is gone.
int send_call(int fd, Exchange& what) {
  iovec parts[2] = {{&what.call, sizeof what.call}, {const_cast<void*>(what.payload), what.payload_bytes}};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message;
  memset(&message, 0, sizeof message);
  message.msg_iov = parts;
  message.msg_iovlen = what.payload_bytes > 0 ? 2 : 1;
  if (what.send_fd >= 0) {
    memset(control, 0, sizeof control);
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &what.send_fd, sizeof(int));
  }
  for (;;) {
    if (::sendmsg(fd, &message, MSG_NOSIGNAL) >= 0) {
      return 0;
    }
    if (errno == EINTR) {
      continue;
    }
    if (errno == EFAULT || errno == ENOMEM || errno == ENOBUFS) {
      return errno == EFAULT ? EFAULT : ENOMEM;
    }
    return EPIPE;
  }
}

void take_fds(msghdr& message, Exchange& what) {
  int taken = 0;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      if (taken < 2) {
        what.fds[taken++] = fd;
      } else {
        ::close(fd);
      }
    }
  }
}

int receive_answer(int fd, Exchange& what) {
  for (;;) {
    iovec parts[2] = {{&what.answer, sizeof what.answer}, {what.out, what.out_bytes}};
    alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))];
    msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = parts;
    message.msg_iovlen = what.out_bytes > 0 ? 2 : 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0 && errno == EFAULT) {
      return EFAULT;
    }
    if (got < static_cast<ssize_t>(sizeof what.answer) || what.answer.magic != kCallMagic) {
      return EPIPE;
    }
    take_fds(message, what);
    if (what.answer.number == what.call.number) {
      return what.answer.error;
    }
  }
}

void send_cancel(int fd, uint64_t number, int error) {
  Exchange cancel;
  cancel.call.op = Op::kCancel;
  cancel.call.number = number;
  cancel.call.cmd = error;
  stamp(cancel.call);
  send_call(fd, cancel);
}

// A thread that is cancelled while it waits runs its clean-up with the program's signal mask.
void restore_mask(void* mask) {
  ::pthread_sigmask(SIG_SETMASK, static_cast<const sigset_t*>(mask), nullptr);
}

// Waits until there is an answer; a signal handler or the timeout asks for the end, which the seat decides.
void wait_for_answer(int fd, const Exchange& what, const sigset_t& program_mask) {
  pollfd poll = {fd, POLLIN, 0};
  int ready = 0;
  if (what.cancellable) {
    int state = 0;
    pthread_cleanup_push(restore_mask, const_cast<sigset_t*>(&program_mask));
    ::pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
    ready = ::ppoll(&poll, 1, what.timeout, &program_mask);
    const int error = errno;
    ::pthread_setcancelstate(state, nullptr);
    errno = error;
    pthread_cleanup_pop(0);
  } else {
    ready = ::ppoll(&poll, 1, what.timeout, &program_mask);
  }
  if (ready == 0) {
    send_cancel(fd, what.call.number, EAGAIN);
  } else if (ready < 0) {
    send_cancel(fd, what.call.number, EINTR);
  }
}

int say_hello(int fd, pid_t parent, int* uffd) {
  Exchange hello;
  hello.call.op = Op::kHello;
  hello.call.number = 1;
  hello.call.id = static_cast<int32_t>(::syscall(SYS_gettid));
  hello.call.index = parent;
  stamp(hello.call);
  int error = send_call(fd, hello);
  error = error == 0 ? receive_answer(fd, hello) : error;
  if (uffd != nullptr) {
    *uffd = hello.fds[0];
  }
  return error;
}

// 0 or an errno.
int open_connection(State& state) {
  const int fd = connect_daemon();
  if (fd < 0) {
    return -fd;
  }
  if (say_hello(fd, 0, nullptr) != 0) {
    ::close(fd);
    complain("the node's daemon closed the connection", 0);
    return ENOSYS;
  }
  state.socket = Descriptor(fd);
  state.number = 1;
  return 0;
}

int converse(State& state, Exchange& what, const sigset_t& program_mask) {
  for (int attempt = 0;; ++attempt) {
    if (!state.socket.ours()) {  // none yet, or closed by the program (closefrom)
      if (const int error = open_connection(state); error != 0) {
        return error;
      }
    }
    what.call.number = ++state.number;
    what.call.payload_bytes = static_cast<uint32_t>(what.payload_bytes);
    stamp(what.call);
    const int error = send_call(state.socket.fd(), what);
    if (error == 0) {
      break;
    }
    if (error != EPIPE) {
      return error;
    }
    drop(state);  // closed by a daemon that started anew
    if (attempt > 0) {
      complain("the node's daemon closed the connection", 0);
      return ENOSYS;
    }
  }
  if (what.may_block) {
    wait_for_answer(state.socket.fd(), what, program_mask);
  }
  const int error = receive_answer(state.socket.fd(), what);
  if (error == EPIPE) {
    drop(state);
    complain("the node's daemon went away during a call", 0);
    return EIDRM;
  }
  return error;
}

// A call that is still waiting has its frame above a whole signal frame; one that was left by siglongjmp has
// not, or its frame was overwritten since.
constexpr uintptr_t kSignalFrameMin = 1024;
bool abandoned(const State& state, const volatile uint64_t* here) {
  stack_t stack;
  if (::sigaltstack(nullptr, &stack) == 0 && (stack.ss_flags & SS_ONSTACK) != 0) {
    return false;
  }
  return reinterpret_cast<uintptr_t>(here) + kSignalFrameMin > reinterpret_cast<uintptr_t>(state.mark) ||
         *state.mark != state.mark_value;
}
}  // namespace

int exchange(Exchange& what) {
  const int saved_errno = errno;
  sigset_t all, program_mask;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &program_mask);
  int cancel_state = 0;
  ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
  ::pthread_once(&g_once, first_use);
  const pid_t pid = ::getpid();
  if (g_pid != pid) {
    if (g_pid != 0) {
      connections_after_fork();  // forked without our handler being asked
    }
    g_pid = pid;
  }
  State& state = t_state;
  volatile uint64_t mark = 0;
  if (state.busy && abandoned(state, &mark)) {
    drop(state);  // the daemon sees it and ends the call
    state.busy = false;
  }
  int error = 0;
  if (state.busy) {
    State own;
    error = converse(own, what, program_mask);
    drop(own);
  } else {
    list(state);
    state.busy = true;
    state.mark = &mark;
    state.mark_value = 0x6b65767265ull ^ (++t_marks << 40) ^ reinterpret_cast<uintptr_t>(&mark);
    mark = state.mark_value;
    error = converse(state, what, program_mask);
    state.busy = false;
    mark = 0;
  }
  ::pthread_setcancelstate(cancel_state, nullptr);
  ::pthread_sigmask(SIG_SETMASK, &program_mask, nullptr);
  errno = saved_errno;
  return error;
}

int copy_in(void* to, const void* from_program, size_t bytes) {
  const iovec local = {to, bytes};
  const iovec remote = {const_cast<void*>(from_program), bytes};
  const ssize_t done = ::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0);
  if (done < 0 && (errno == EPERM || errno == ENOSYS)) {
    memcpy(to, from_program, bytes);
    return 0;
  }
  return done == static_cast<ssize_t>(bytes) ? 0 : EFAULT;
}

int copy_out(void* to_program, const void* from, size_t bytes) {
  const iovec local = {const_cast<void*>(from), bytes};
  const iovec remote = {to_program, bytes};
  const ssize_t done = ::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0);
  if (done < 0 && (errno == EPERM || errno == ENOSYS)) {
    memcpy(to_program, from, bytes);
    return 0;
  }
  return done == static_cast<ssize_t>(bytes) ? 0 : EFAULT;
}

void complain(const char* cause, int error) {
  if (__atomic_exchange_n(&g_complained, 1, __ATOMIC_RELAXED) != 0) {
    return;
  }
  char line[512];
  const int length = error == 0
                         ? ::snprintf(line, sizeof line, "kevre: System V IPC is not available: %s\n", cause)
                         : ::snprintf(line, sizeof line, "kevre: System V IPC is not available: %s (%s)\n",
                                      cause, ::strerrordesc_np(error));
  if (length > 0) {
    const ssize_t written = ::write(STDERR_FILENO, line, static_cast<size_t>(length));
    static_cast<void>(written);
  }
}

int high_descriptor(int fd) {
  rlimit limit;
  const rlim_t most = ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 1024;
  const int base = most / 2 < 960 ? static_cast<int>(most / 2) : 960;
  const int high = ::fcntl(fd, F_DUPFD_CLOEXEC, base);
  if (high < 0) {
    return fd;
  }
  ::close(fd);
  return high;
}

MoreDescriptors::MoreDescriptors() {
  if (::getrlimit(RLIMIT_NOFILE, &before_) == 0 && before_.rlim_cur < before_.rlim_max) {
    const rlimit most = {before_.rlim_max, before_.rlim_max};
    raised_ = ::setrlimit(RLIMIT_NOFILE, &most) == 0;
  }
}
MoreDescriptors::~MoreDescriptors() {
  if (raised_) {
    const int saved_errno = errno;
    ::setrlimit(RLIMIT_NOFILE, &before_);
    errno = saved_errno;
  }
}

Descriptor::Descriptor(int fd) {
  struct stat file;
  if (fd >= 0 && ::fstat(fd, &file) == 0) {
    fd_ = fd;
    device_ = file.st_dev;
    inode_ = file.st_ino;
  }
}
bool Descriptor::ours() {
  struct stat file;
  const bool same = fd_ >= 0 && ::fstat(fd_, &file) == 0 && file.st_dev == device_ && file.st_ino == inode_;
  if (!same) {
    fd_ = -1;
  }
  return same;
}
void Descriptor::close() {
  if (ours()) {
    ::close(fd_);
    fd_ = -1;
  }
}

void keep_folder() {
  if (g_folder.ours() || g_path[0] != '/') {
    return;
  }
  char folder[sizeof g_path];
  ::strcpy(folder, g_path);
  char* slash = ::strrchr(folder, '/');
  slash[slash == folder ? 1 : 0] = 0;
  const int fd = ::open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
  g_folder = Descriptor(fd < 0 ? fd : high_descriptor(fd));
}

pid_t known_pid() {
  return g_pid;
}

void lock_connections() {
  ::pthread_mutex_lock(&g_mutex);
}
void unlock_connections() {
  ::pthread_mutex_unlock(&g_mutex);
}

void connections_after_fork() {
  for (State* state = g_states; state != nullptr; state = state->next) {
    drop(*state);
    state->busy = false;
  }
  // The states of the other threads lie in memory that new threads will use.
  State& own = t_state;
  g_states = own.listed ? &own : nullptr;
  own.next = own.previous = nullptr;
  g_pid = ::getpid();
}

int hello_after_fork(pid_t parent, int* uffd) {
  State& own = t_state;
  const int fd = connect_daemon();
  if (fd < 0) {
    return -fd;
  }
  const int error = say_hello(fd, parent, uffd);
  if (error != 0) {
    ::close(fd);
    return error;
  }
  list(own);
  own.socket = Descriptor(fd);
  own.number = 1;
  return 0;
}

}  // namespace kevre::ipc::preload
