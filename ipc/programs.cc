#include "ipc/programs.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

namespace kevre::ipc {
namespace {
constexpr Nanos kSweepNs = 50 * kMillisecond;

bool ended(const UniqueFd& pidfd) {
  pollfd poll{pidfd.get(), POLLIN, 0};
  return ::poll(&poll, 1, 0) > 0;
}
}  // namespace

Programs::Programs(EventLoop* loop, dsm::Node* node, SeatLink* seat, OnDied on_died)
    : loop_(loop), node_(node), seat_(seat), on_died_(std::move(on_died)) {
  node_->set_on_fork([this](dsm::MmId parent, dsm::MmId child, int uffd) { on_fork(parent, child, uffd); });
  node_->set_on_unmapped(
      [this](dsm::MmId mm, uint64_t address, uint64_t bytes) { on_unmapped(mm, address, bytes); });
}

Programs::~Programs() {
  node_->set_on_fork(nullptr);
  node_->set_on_unmapped(nullptr);
  for (auto& [number, program] : programs_) {
    loop_->remove(program.pidfd.get());
  }
  if (sweep_timer_) {
    loop_->cancel(*sweep_timer_);
  }
}

Result<uint64_t> Programs::of_pid(pid_t pid) {
  const auto known = of_pid_.find(pid);
  if (known != of_pid_.end()) {
    if (!ended(programs_.at(known->second).pidfd)) {
      return known->second;
    }
    died(known->second);
  }
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) {
    return fail_errno("pidfd_open {}", pid);
  }
  const uint64_t number = ++last_number_;
  KEVRE_TRY(loop_->add(pidfd.get(), EPOLLIN, [this, number](uint32_t) { died(number); }));
  Program& program = programs_[number];
  program.pid = pid;
  program.pidfd = std::move(pidfd);
  of_pid_[pid] = number;
  return number;
}

uint32_t Programs::pid_of(uint64_t program) const {
  const auto found = programs_.find(program);
  return found == programs_.end() ? 0 : static_cast<uint32_t>(found->second.pid);
}

void Programs::session_opened(uint64_t program) {
  ++programs_.at(program).sessions;
}

// The last connection closed and the process lives: perhaps it called exec, and its address space is gone.
void Programs::session_closed(uint64_t program) {
  const auto found = programs_.find(program);
  if (found != programs_.end() && --found->second.sessions == 0 && found->second.space) {
    sweep();
  }
}

void Programs::died(uint64_t number) {
  auto program = programs_.extract(number);
  if (program.empty()) {
    return;
  }
  const Program& gone = program.mapped();
  loop_->remove(gone.pidfd.get());
  of_pid_.erase(gone.pid);
  on_died_(number);
  if (gone.space) {
    const auto space = spaces_.find(*gone.space);
    if (space != spaces_.end() && !node_->alive(*gone.space)) {
      end_space(*gone.space);
    } else if (space != spaces_.end()) {
      sweep_later();  // somebody else (vfork, CLONE_VM) still lives in it
    }
  }
  seat_->process_gone(number, static_cast<uint32_t>(gone.pid));
}

void Programs::end_space(dsm::MmId mm) {
  auto space = spaces_.extract(mm);
  if (space.empty()) {
    return;
  }
  const auto program = programs_.find(space.mapped().program);
  if (program != programs_.end() && program->second.space == mm) {
    program->second.space.reset();
  }
  node_->drop(mm);
  std::map<SegmentId, uint64_t> counts;
  for (const auto& [address, attachment] : space.mapped().attachments) {
    ++counts[attachment.segment];
  }
  for (const auto& [segment, count] : counts) {
    tell_detached(space.mapped().pid, segment, count);
  }
}

// Address spaces end without a word when nobody of theirs speaks to us: exec, or a child that never said
// hello.
void Programs::sweep() {
  std::vector<dsm::MmId> gone;
  bool again = false;
  for (const auto& [mm, space] : spaces_) {
    const auto program = programs_.find(space.program);
    if (program != programs_.end() && program->second.sessions > 0) {
      continue;
    }
    if (node_->alive(mm)) {
      again = true;
    } else {
      gone.push_back(mm);
    }
  }
  for (const dsm::MmId mm : gone) {
    end_space(mm);
  }
  if (again) {
    sweep_later();
  }
}

void Programs::sweep_later() {
  if (!sweep_timer_) {
    sweep_timer_ = loop_->after(kSweepNs, [this] {
      sweep_timer_.reset();
      sweep();
    });
  }
}

void Programs::on_fork(dsm::MmId parent, dsm::MmId child, int uffd) {
  const auto from = spaces_.find(parent);
  if (from == spaces_.end()) {
    return;
  }
  Space space = from->second;
  space.program = 0;
  space.uffd = uffd;
  std::map<SegmentId, uint64_t> counts;
  for (auto& [address, attachment] : space.attachments) {
    attachment.detaching = false;
    ++counts[attachment.segment];
  }
  spaces_.emplace(child, space);
  for (const auto& [segment, count] : counts) {
    Call call;
    call.op = Op::kShmFork;
    call.value = static_cast<int64_t>(segment.value);
    call.size = count;
    call.index = static_cast<int32_t>(space.pid);
    seat_->tell({0, space.pid, {}}, call);
  }
  sweep_later();
}

std::optional<int> Programs::claim_fork(uint64_t number, pid_t parent) {
  Program& program = programs_.at(number);
  if (program.space) {
    return std::nullopt;
  }
  // dsm::MmIds grow: the oldest child that waits. Two threads that fork at once may swap their children's
  // address spaces; both have the same attachments.
  for (auto& [mm, space] : spaces_) {
    if (space.program == 0 && space.pid == static_cast<uint32_t>(parent) && node_->alive(mm)) {
      space.program = number;
      space.pid = static_cast<uint32_t>(program.pid);
      program.space = mm;
      return std::exchange(space.uffd, -1);
    }
  }
  return std::nullopt;
}

bool Programs::has_space(uint64_t number) {
  const Program& program = programs_.at(number);
  if (program.space && !node_->alive(*program.space)) {
    end_space(*program.space);
  }
  return program.space.has_value();
}

int Programs::attached(uint64_t number, SegmentId segment, uint64_t address, uint64_t bytes, UniqueFd uffd) {
  Program& program = programs_.at(number);
  if (!has_space(number)) {
    if (!uffd) {
      return EINVAL;
    }
    const auto mm = node_->adopt(std::move(uffd));
    if (!mm) {
      if (log_limit_.allow()) {
        KEVRE_LOG_WARN("ipc: userfaultfd of process {} refused: {}", program.pid, mm.error().text);
      }
      return ENOMEM;
    }
    program.space = *mm;
    Space space;
    space.program = number;
    space.pid = static_cast<uint32_t>(program.pid);
    spaces_.emplace(*mm, std::move(space));
  }
  const auto done = node_->attach(*program.space, segment, address, bytes);
  if (!done) {
    if (log_limit_.allow()) {
      KEVRE_LOG_WARN("ipc: attach of process {}: {}", program.pid, done.error().text);
    }
    return ENOMEM;
  }
  spaces_.at(*program.space).attachments[address] = Attachment{segment, bytes, false};
  return 0;
}

int Programs::detach_start(uint64_t number, uint64_t address, uint64_t* bytes) {
  if (!has_space(number)) {
    return EINVAL;
  }
  auto& attachments = spaces_.at(*programs_.at(number).space).attachments;
  const auto found = attachments.find(address);
  if (found == attachments.end() || found->second.detaching) {
    return EINVAL;
  }
  found->second.detaching = true;
  *bytes = found->second.bytes;
  return 0;
}

void Programs::detach_done(uint64_t number, uint64_t address) {
  const Program& program = programs_.at(number);
  if (!program.space) {
    return;
  }
  auto attachment = spaces_.at(*program.space).attachments.extract(address);
  if (!attachment.empty()) {  // else the unmapping was seen already
    node_->detach(*program.space, address);
    tell_detached(static_cast<uint32_t>(program.pid), attachment.mapped().segment, 1);
  }
}

void Programs::on_unmapped(dsm::MmId mm, uint64_t address, uint64_t bytes) {
  const auto space = spaces_.find(mm);
  if (space == spaces_.end()) {
    return;
  }
  auto& attachments = space->second.attachments;
  for (auto i = attachments.lower_bound(address); i != attachments.end() && i->first < address + bytes;) {
    if (i->first + i->second.bytes <= address + bytes) {
      tell_detached(space->second.pid, i->second.segment, 1);
      i = attachments.erase(i);
    } else {
      ++i;
    }
  }
}

void Programs::tell_detached(uint32_t pid, SegmentId segment, uint64_t count) {
  Call call;
  call.op = Op::kShmDetach;
  call.value = static_cast<int64_t>(segment.value);
  call.size = count;
  call.index = static_cast<int32_t>(pid);
  seat_->tell({0, pid, {}}, call);
}

}  // namespace kevre::ipc
