// What a page fault costs without any other node: a thread stores to a page of a memfd that is registered with a
// userfaultfd; another thread reads the event and answers with UFFDIO_COPY of a page that it has. The floor below every
// fault that kevre serves. Both threads run where the caller runs. Threads: any; blocks. Tested by `kevre bench fault`.
#pragma once

#include "base/histogram.h"
#include "base/result.h"

namespace kevre::bench {

// `spinning`: the serving thread reads in a loop instead of sleeping in poll(). kUnsupported without userfaultfd.
Result<Histogram> local_faults(uint32_t faults, bool spinning);

}  // namespace kevre::bench
