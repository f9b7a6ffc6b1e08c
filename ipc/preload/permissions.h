// What the three kinds of objects have in common in the kernel's structures. Threads: any (values).
// Tested in tests/ipc/programs_test.cc.
#pragma once

#include <sys/ipc.h>

#include "ipc/protocol.h"

namespace kevre::ipc::preload {

inline void fill_permissions(ipc_perm& perm, const Stat& stat) {
  perm.__key = stat.key;
  perm.uid = stat.uid;
  perm.gid = stat.gid;
  perm.cuid = stat.cuid;
  perm.cgid = stat.cgid;
  perm.mode = static_cast<decltype(perm.mode)>(stat.mode);
  perm.__seq = static_cast<decltype(perm.__seq)>(stat.sequence);
}

}  // namespace kevre::ipc::preload
