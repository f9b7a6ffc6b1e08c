// fork(): the child drops the connections that it inherited. When the parent has shared memory attached, the
// child says hello at once, so that its attachments are its own, and takes a descriptor of its own
// userfaultfd, which must stay open as long as it lives: a daemon that dies then leaves its programs waiting,
// not wrong.
#include <pthread.h>
#include <unistd.h>

#include "ipc/preload/connection.h"

namespace kevre::ipc::preload {
namespace {
// Signals stay blocked while the locks are held: a handler in the child may call IPC.
sigset_t g_mask;

void before() {
  sigset_t all, old;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &old);
  lock_attach();
  lock_connections();
  g_mask = old;
}

void in_parent() {
  const sigset_t mask = g_mask;
  unlock_connections();
  unlock_attach();
  ::pthread_sigmask(SIG_SETMASK, &mask, nullptr);
}

void in_child() {
  const int saved_errno = errno;
  const sigset_t mask = g_mask;
  const pid_t parent = known_pid();
  connections_after_fork();
  unlock_connections();
  unlock_attach();
  if (has_uffd()) {
    int uffd = -1;
    keep_uffd(-1);
    if (hello_after_fork(parent, &uffd) == 0 && uffd >= 0) {
      keep_uffd(uffd);
    }
  }
  ::pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  errno = saved_errno;
}
}  // namespace

void watch_forks() {
  ::pthread_atfork(before, in_parent, in_child);
}

}  // namespace kevre::ipc::preload
