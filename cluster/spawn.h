// spawn(): starts one program with the identity, folder, environment and descriptors of a request, in the way
// of vfork: no copy of the daemon's memory, and the caller waits only until the program is loaded (about a
// millisecond). Owns: nothing. Threads: any; signals of the calling thread are blocked meanwhile. Tested in
// tests/cluster/launcher_test.cc.
#pragma once

#include <sys/types.h>

#include "base/fd.h"
#include "cluster/launch_wire.h"

namespace kevre::cluster {

struct Spawned {
  pid_t pid = 0;  // leader of a new session
  UniqueFd pidfd;
};

// stdin, stdout, stderr of the program; -1 takes /dev/null (stdin) or the request's output file. With
// `terminal` the three are a terminal's slave, which becomes the controlling one.
struct Descriptors {
  int input = -1, output = -1, error = -1;
  bool terminal = false;
};

// A failure to start is a status of kind kFailed in `failed` (code and one line as a shell gives them).
struct SpawnResult {
  bool started = false;
  Spawned program;
  ExitStatus failed;
};
SpawnResult spawn(const LaunchRequest& request, const Descriptors& descriptors);

}  // namespace kevre::cluster
