#include "bench/local_fault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"

namespace kevre::bench {
namespace {

constexpr size_t kPage = 4096;

struct Mapping {
  std::byte* base = static_cast<std::byte*>(MAP_FAILED);
  size_t bytes = 0;
  ~Mapping() {
    if (base != MAP_FAILED) {
      ::munmap(base, bytes);
    }
  }
};

Result<UniqueFd> open_userfaultfd() {
  UniqueFd faults;
  if (const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)); device) {
    faults.reset(::ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
  } else {
    faults.reset(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  }
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_MISSING_SHMEM;
  if (!faults || ::ioctl(faults.get(), UFFDIO_API, &api) != 0) {
    return fail_errno("local faults: userfaultfd (run as root, or: chmod 666 /dev/userfaultfd)");
  }
  return faults;
}

void serve(int faults, int stop, bool spinning) {
  alignas(kPage) static thread_local std::byte page[kPage];
  std::memset(page, 1, sizeof page);
  pollfd waiting[2] = {{faults, POLLIN, 0}, {stop, POLLIN, 0}};
  while (::poll(waiting, 2, spinning ? 0 : -1) >= 0 && waiting[1].revents == 0) {
    uffd_msg event{};
    if (::read(faults, &event, sizeof event) != sizeof event) {
      if (spinning) {
        ::sched_yield();
      }
      continue;
    }
    uffdio_copy copy{};
    copy.dst = event.arg.pagefault.address & ~(kPage - 1);
    copy.src = reinterpret_cast<uint64_t>(page);
    copy.len = kPage;
    ::ioctl(faults, UFFDIO_COPY, &copy);
  }
}

}  // namespace

Result<Histogram> local_faults(uint32_t faults, bool spinning) {
  KEVRE_ASSIGN(const UniqueFd userfaultfd, open_userfaultfd());
  const UniqueFd file(::memfd_create("kevre-bench", MFD_CLOEXEC));
  Mapping mapping;
  mapping.bytes = size_t{faults} * kPage;
  if (!file || ::ftruncate(file.get(), static_cast<off_t>(mapping.bytes)) != 0) {
    return fail_errno("local faults: memfd");
  }
  mapping.base = static_cast<std::byte*>(
      ::mmap(nullptr, mapping.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0));
  uffdio_register area{};
  area.range = {reinterpret_cast<uint64_t>(mapping.base), mapping.bytes};
  area.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (mapping.base == MAP_FAILED || ::ioctl(userfaultfd.get(), UFFDIO_REGISTER, &area) != 0) {
    return fail_errno("local faults: mapping");
  }
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return fail_errno("local faults: pipe");
  }
  const UniqueFd stop(ends[0]);
  UniqueFd stopper(ends[1]);
  std::jthread server([&] { serve(userfaultfd.get(), stop.get(), spinning); });
  Histogram took;
  for (uint32_t i = 0; i < faults; ++i) {
    auto* word = reinterpret_cast<volatile uint64_t*>(mapping.base + size_t{i} * kPage);
    const Nanos start = now_ns();
    *word = i;
    took.record(now_ns() - start);
  }
  stopper.reset();  // ends the server; `server` joins before what it uses goes
  server.join();
  return took;
}

}  // namespace kevre::bench
