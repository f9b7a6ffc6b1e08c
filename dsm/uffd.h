// Thin wrappers of the userfaultfd calls, and the definitions that are newer than Debian 12's headers
// (Linux 6.1). Each call returns 0 or the errno value (positive), because the pager decides by it. Owns
// nothing. Threads: any. Tested through tests/dsm/pager_test.cc.
#pragma once

#include <linux/userfaultfd.h>

#include <cstdint>

namespace kevre::dsm::uffd {

inline constexpr uint64_t kFeaturePoison = uint64_t{1} << 14;  // 6.6
inline constexpr uint64_t kContinueModeWp = uint64_t{1} << 1;  // 6.4; there is no feature bit: try it
inline constexpr uint64_t kFeaturesNeeded = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
                                            UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                            UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EVENT_REMAP |
                                            UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

// A new userfaultfd of the calling process: from /dev/userfaultfd when `device` is open, else by the system
// call. -1 with errno on failure.
int create(int device);
// `got` (optional) receives all features of this kernel.
int api(int fd, uint64_t features, uint64_t* got);
int register_range(int fd, uint64_t address, uint64_t bytes, uint64_t modes);
int unregister(int fd, uint64_t address, uint64_t bytes);
// `done`: bytes copied, also when an error is returned.
int copy(int fd, uint64_t to, const void* from, uint64_t bytes, uint64_t mode, uint64_t* done);
int continue_range(int fd, uint64_t address, uint64_t bytes, uint64_t mode, uint64_t* done);
int write_protect(int fd, uint64_t address, uint64_t bytes, bool on);
int wake(int fd, uint64_t address, uint64_t bytes);
int poison(int fd, uint64_t address, uint64_t bytes);

}  // namespace kevre::dsm::uffd
