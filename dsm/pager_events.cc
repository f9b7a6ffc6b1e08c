// What userfaultfds say. drain() applies changes of structure (fork, remap, unmap) at once, because the frame
// call that met EAGAIN goes on right after it and must see the child's PTEs; everything for the owner is
// queued and reported later.
#include <fcntl.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"
#include "base/log.h"
#include "dsm/pager_parts.h"

namespace kevre::dsm {
namespace {
constexpr int kUnknownTimesMax = 16;
constexpr uint64_t kPageMask = ~(kPageBytes - 1);
}  // namespace

// The program's thread that made the change must run before the kernel lets go: it is runnable, so this ends.
void Pager::Parts::pause_for(int tries) {
  if (tries < 32) {
    ::sched_yield();
    return;
  }
  const timespec nap{0, tries < 200 ? 20'000 : 500'000};
  ::nanosleep(&nap, nullptr);
}

int Pager::Parts::drain(Mm& mm) {
  uffd_msg messages[16];
  int events = 0;
  for (;;) {
    const ssize_t got = ::read(mm.uffd.get(), messages, sizeof messages);
    if (got <= 0) {
      if (got < 0 && errno == EINTR) {
        continue;
      }
      break;  // EAGAIN: nothing left. EMFILE on a fork: the event stays, the parent waits until there is room
    }
    const size_t count = static_cast<size_t>(got) / sizeof messages[0];
    for (size_t i = 0; i < count; ++i) {
      const uffd_msg& message = messages[i];
      ++events;
      switch (message.event) {
        case UFFD_EVENT_PAGEFAULT: {
          const auto& fault = message.arg.pagefault;
          const bool writes = (fault.flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP)) != 0;
          Report report;
          report.missing = (fault.flags & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_MINOR)) == 0;
          report.want = writes ? Access::kWrite : Access::kRead;
          report.thread = fault.feat.ptid;
          report.mm = mm.id;
          report.address = fault.address & kPageMask;
          reports.push_back(report);
          break;
        }
        case UFFD_EVENT_FORK:
          on_fork_event(mm, static_cast<int>(message.arg.fork.ufd));
          break;
        case UFFD_EVENT_REMAP:
          on_remap_event(mm, message.arg.remap.from, message.arg.remap.to, message.arg.remap.len);
          break;
        case UFFD_EVENT_REMOVE:  // PTEs go away: a later fault finds the frame, or a hole that is filled with
                                 // zeroes
          break;
        case UFFD_EVENT_UNMAP:
          unmap(mm, message.arg.remove.start, message.arg.remove.end);
          break;
        default:
          break;
      }
    }
    if (count < std::size(messages)) {
      break;
    }
  }
  counters.events += static_cast<uint64_t>(events);
  return events;
}

void Pager::Parts::on_fork_event(Mm& parent, int child_uffd) {
  UniqueFd fd(child_uffd);
  ::fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
  const Result<MmId> id = add_mm(std::move(fd));
  if (!id) {
    KEVRE_LOG_ERROR("the child of a program cannot be served: {}", id.error().text);
    return;
  }
  Mm& child = *mm(*id);
  const size_t count = parent.attachments.size();
  for (size_t i = 0; i < count; ++i) {
    const Attachment& from = *parent.attachments[i];
    if (!from.gone) {
      Attachment* const to = add_attachment(child, *from.segment, from.address, from.first, from.pages);
      copy_writers(*from.segment, from, *to);
    }
  }
  Report report;
  report.kind = Report::Kind::kFork;
  report.mm = parent.id;
  report.child = child.id;
  reports.push_back(report);
}

// The part of each attachment in [start, end) ends; what is left on either side goes on as it was.
void Pager::Parts::unmap(Mm& mm, uint64_t start, uint64_t end) {
  bool any = false;
  const size_t count = mm.attachments.size();
  for (size_t i = 0; i < count; ++i) {
    Attachment& old = *mm.attachments[i];
    const uint64_t old_end = old.address + old.pages * kPageBytes;
    if (old.gone || end <= old.address || start >= old_end) {
      continue;
    }
    any = true;
    if (start > old.address) {
      Attachment* const left =
          add_attachment(mm, *old.segment, old.address, old.first, (start - old.address) / kPageBytes);
      copy_writers(*old.segment, old, *left);
    }
    if (end < old_end) {
      Attachment* const right = add_attachment(
          mm, *old.segment, end, old.first + (end - old.address) / kPageBytes, (old_end - end) / kPageBytes);
      copy_writers(*old.segment, old, *right);
    }
    end_attachment(old);
  }
  if (any) {
    uffd::wake(mm.uffd.get(), start, end - start);  // threads that wait there look again
    Report report;
    report.kind = Report::Kind::kUnmapped;
    report.mm = mm.id;
    report.address = start;
    report.bytes = end - start;
    reports.push_back(report);
  }
}

void Pager::Parts::on_remap_event(Mm& mm, uint64_t from, uint64_t to, uint64_t bytes) {
  const size_t count = mm.attachments.size();
  for (size_t i = 0; i < count; ++i) {
    const Attachment& old = *mm.attachments[i];
    const uint64_t old_end = old.address + old.pages * kPageBytes;
    if (old.gone || from + bytes <= old.address || from >= old_end) {
      continue;
    }
    const uint64_t start = std::max(from, old.address);
    const uint64_t end = std::min(from + bytes, old_end);
    Attachment* const moved =
        add_attachment(mm, *old.segment, to + (start - from), old.first + (start - old.address) / kPageBytes,
                       (end - start) / kPageBytes);
    copy_writers(*old.segment, old, *moved);
  }
  unmap(mm, from, from + bytes);
}

void Pager::Parts::report_fault(const Report& report) {
  Mm* const who = mm(report.mm);
  if (who == nullptr || who->dead) {
    return;
  }
  for (Attachment* const attachment : who->attachments) {
    const uint64_t offset = (report.address - attachment->address) / kPageBytes;
    if (attachment->gone || report.address < attachment->address || offset >= attachment->pages) {
      continue;
    }
    who->unknown_times = 0;
    Segment& segment = *attachment->segment;
    segment.recent = attachment;
    Fault fault;
    fault.mm = who->id;
    fault.segment = segment.id;
    fault.page = attachment->first + offset;
    fault.want = report.want;
    fault.thread = report.thread;
    wait(*attachment, fault.page, fault.want, fault.thread, report.missing);
    sink->on_fault(fault);
    return;
  }
  // Moved or unmapped since: the thread looks again. One that comes back and back touches memory whose
  // segment is gone.
  who->unknown_times = who->unknown_address == report.address ? who->unknown_times + 1 : 1;
  who->unknown_address = report.address;
  if (who->unknown_times >= kUnknownTimesMax) {
    who->unknown_times = 0;
    if (features.poison &&
        on_mm(*who, [&](int fd) { return uffd::poison(fd, report.address, kPageBytes); }) == 0) {
      return;
    }
    if (!features.poison) {
      return;  // left asleep (it can be killed): there is no call that gives it SIGBUS
    }
  }
  on_mm(*who, [&](int fd) { return uffd::wake(fd, report.address, kPageBytes); });
}

int Pager::read_events(MmId id) {
  Parts& parts = *parts_;
  if (!parts.reporting) {
    parts.sweep();
  }
  if (Mm* const mm = parts.mm(id); mm != nullptr && !mm->dead) {
    parts.drain(*mm);
  }
  return report_queued();
}

int Pager::report_queued() {
  Parts& parts = *parts_;
  if (parts.reporting) {
    return 0;  // called from a sink: the outer loop goes on with what is queued
  }
  parts.reporting = true;
  int count = 0;
  while (parts.next_report < parts.reports.size()) {
    const Report report = parts.reports[parts.next_report++];
    ++count;
    switch (report.kind) {
      case Report::Kind::kFault:
        parts.report_fault(report);
        break;
      case Report::Kind::kFork:
        if (parts.mm(report.child) != nullptr) {
          parts.sink->on_fork(report.mm, report.child, parts.mm(report.child)->uffd.get());
        }
        break;
      case Report::Kind::kUnmapped:
        parts.sink->on_unmapped(report.mm, report.address, report.bytes);
        break;
    }
  }
  parts.reports.clear();
  parts.next_report = 0;
  parts.reporting = false;
  return count;
}

}  // namespace kevre::dsm
