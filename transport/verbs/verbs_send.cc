// Sending: from the line of a link into its send queue, and what comes back from there.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "transport/verbs/verbs_transport.h"

namespace kevre::transport::verbs {
namespace {
constexpr uint32_t kUnsignalledMax = 16;
constexpr size_t kInlineMax = 256;

bool is_one_sided(Work::Kind kind) {
  return kind != Work::Kind::kMessage && kind != Work::Kind::kMarker;
}
}  // namespace

Result<void> VerbsTransport::send(NodeId to, Service service, std::span<const std::byte> header,
                                  std::span<const std::byte> payload) {
  KEVRE_ASSIGN(LinkState * state, rules_.admit(to, header, payload.size()));
  Link* link = static_cast<Link*>(state);
  if (send_inline(link, service, header, payload)) {
    return {};
  }
  Buffer copy = messages_->take(payload.size());
  if (!payload.empty()) {
    std::memcpy(copy.bytes().data(), payload.data(), payload.size());
  }
  return enqueue_message(link, service, header, std::move(copy));
}

Result<void> VerbsTransport::send(NodeId to, Service service, std::span<const std::byte> header,
                                  Buffer payload) {
  if (!payload || payload.pool() != messages_.get()) {  // no headroom, not registered
    return send(to, service, header, std::span<const std::byte>(payload.bytes()));
  }
  KEVRE_ASSIGN(LinkState * state, rules_.admit(to, header, payload.size()));
  return enqueue_message(static_cast<Link*>(state), service, header, std::move(payload));
}

// A small message to a peer that has nothing waiting: from the stack into the send queue.
bool VerbsTransport::send_inline(Link* link, Service service, std::span<const std::byte> header,
                                 std::span<const std::byte> payload) {
  const size_t bytes = kWireHeaderBytes + header.size() + payload.size();
  if (bytes > link->inline_bytes || link->state != Link::State::kUp || !link->line.empty() ||
      !link->window.may_send() || link->posted.size() >= link->send_queue) {
    return false;
  }
  std::array<std::byte, kInlineMax> message;
  encode_wire_header(rules_.next_header(*link, service, header.size(), payload.size()), message.data());
  std::copy(header.begin(), header.end(), message.begin() + kWireHeaderBytes);
  std::copy(payload.begin(), payload.end(),
            message.begin() + static_cast<std::ptrdiff_t>(kWireHeaderBytes + header.size()));
  ibv_sge piece{};
  piece.addr = reinterpret_cast<uintptr_t>(message.data());
  piece.length = static_cast<uint32_t>(bytes);
  ibv_send_wr request{};
  request.opcode = IBV_WR_SEND;
  request.sg_list = &piece;
  request.num_sge = 1;
  request.send_flags = IBV_SEND_INLINE;
  if (post(link, &request, Posted{}, false)) {
    link->window.count_sent();
  }
  rules_.count_sent(link, header.size() + payload.size());
  return true;
}

Result<void> VerbsTransport::enqueue_message(Link* link, Service service, std::span<const std::byte> header,
                                             Buffer payload) {
  const size_t head_bytes = kWireHeaderBytes + header.size();
  Work work;
  work.local = payload.bytes().data() - head_bytes;
  work.bytes = head_bytes + payload.size();
  work.queued_bytes = header.size() + payload.size();
  encode_wire_header(rules_.next_header(*link, service, header.size(), payload.size()), work.local);
  std::copy(header.begin(), header.end(), work.local + kWireHeaderBytes);
  work.buffer = std::move(payload);
  link->queued_bytes += work.queued_bytes;
  rules_.count_sent(link, work.queued_bytes);
  link->line.push_back(std::move(work));
  pump(link);
  return {};
}

void VerbsTransport::pump(Link* link) {
  while (!link->line.empty() && (link->state == Link::State::kUp || link->state == Link::State::kEnding) &&
         link->posted.size() < link->send_queue) {
    Work& work = link->line.front();
    if (!post_next(link, &work)) {
      return;
    }
    if (work.posted == work.bytes) {
      link->line.pop_front();
    }
  }
}

// One work request of `work`; false: it has to wait, or the link is lost.
bool VerbsTransport::post_next(Link* link, Work* work) {
  ibv_sge piece{};
  ibv_send_wr request{};
  request.sg_list = &piece;
  request.num_sge = 1;
  Posted posted;
  if (is_one_sided(work->kind)) {
    if (!fill_one_sided(work, &request, &piece, &posted)) {
      return false;
    }
  } else if (work->kind == Work::Kind::kMarker) {
    request.opcode = IBV_WR_RDMA_WRITE;  // of nothing: its completion says that all before it is done
    request.num_sge = 0;
  } else {
    if (!link->window.may_send()) {
      return false;
    }
    piece.length = static_cast<uint32_t>(std::min(work->bytes - work->posted, kChunkBytes));
    std::byte* chunk = work->local + work->posted;
    request.opcode = IBV_WR_SEND;
    const auto key = device_->key_of(chunk, piece.length);
    if (work->bytes <= link->inline_bytes) {
      request.send_flags = IBV_SEND_INLINE;
    } else if (key) {
      piece.lkey = *key;
    } else {
      posted.bounce = messages_->take_bounce();
      if (posted.bounce == nullptr) {
        return false;
      }
      std::memcpy(posted.bounce, chunk, piece.length);
      piece.lkey = messages_->bounce_key();
      chunk = posted.bounce;
    }
    piece.addr = reinterpret_cast<uintptr_t>(chunk);
    link->window.count_sent();
  }
  const size_t advance = request.num_sge == 0 ? 0 : piece.length;
  const bool last = work->posted + advance == work->bytes;
  const bool at_once = last && (request.send_flags & IBV_SEND_INLINE) != 0;
  posted.last = last;
  if (last && !at_once) {
    posted.buffer = std::move(work->buffer);
    posted.queued_bytes = work->queued_bytes;
    posted.done = std::move(work->done);
  } else if (at_once) {
    link->queued_bytes -= work->queued_bytes;  // the device has its copy
    rules_.note_room(link);
  }
  work->posted += advance;
  return post(link, &request, std::move(posted), last && !at_once);
}

bool VerbsTransport::post(Link* link, ibv_send_wr* request, Posted posted, bool want_signal) {
  // The rest of the queue stays reserved for a signal, or nothing would ever say that there is room again.
  posted.signalled = want_signal || posted.bounce != nullptr || link->unsignalled + 1 >= kUnsignalledMax ||
                     link->posted.size() + 1 >= link->send_queue;
  link->unsignalled = posted.signalled ? 0 : link->unsignalled + 1;
  request->send_flags |= posted.signalled ? static_cast<unsigned>(IBV_SEND_SIGNALED) : 0U;
  request->wr_id = wr_id(Tag::kSend, link->number, link->posted_first + link->posted.size());
  link->posted.push_back(std::move(posted));
  ibv_send_wr* bad = nullptr;
  if (const int failed = ibv_post_send(link->id->qp, request, &bad); failed != 0) {
    lose(link, fmt::format("the device takes no more: {}", std::strerror(failed)));
    return false;
  }
  return true;
}

void VerbsTransport::on_sent(const ibv_wc& completion) {
  const auto found = outgoing_.find(number_in(completion.wr_id));
  if (found == outgoing_.end()) {
    return;  // of a link that was closed
  }
  Link* link = found->second;
  if (completion.status != IBV_WC_SUCCESS) {
    on_failed(link, completion);
    return;
  }
  const uint64_t ahead = (completion.wr_id - link->posted_first) & kPositionMask;
  KEVRE_CHECK(ahead < link->posted.size(), "a completion of nothing");
  for (uint64_t i = 0; i <= ahead; ++i) {
    Posted done = std::move(link->posted.front());
    link->posted.pop_front();
    ++link->posted_first;
    finish(link, &done, true);
  }
  rules_.note_room(link);
  pump(link);
}

// The first failure breaks the queue pair; what follows is flushed. Only the first says what was wrong.
void VerbsTransport::on_failed(Link* link, const ibv_wc& completion) {
  if (completion.status == IBV_WC_WR_FLUSH_ERR) {
    lose(link, "the connection broke");
    return;
  }
  const bool bad_access = completion.status == IBV_WC_REM_ACCESS_ERR ||
                          completion.status == IBV_WC_REM_INV_REQ_ERR ||
                          completion.status == IBV_WC_REM_OP_ERR || completion.status == IBV_WC_LOC_PROT_ERR;
  const uint64_t ahead = (completion.wr_id - link->posted_first) & kPositionMask;
  lose(link, fmt::format("the connection broke: {}", ibv_wc_status_str(completion.status)));
  if (!bad_access || ahead >= link->posted.size() || silent_) {
    return;
  }
  // The operation that it belongs to is told so; its completion waits with the last of its pieces.
  Completion done;
  for (size_t i = ahead; i < link->posted.size() && !done; ++i) {
    done = std::exchange(link->posted[i].done, nullptr);
    if (link->posted[i].last) {
      break;
    }
  }
  if (!done && !link->line.empty() && link->line.front().posted > 0) {
    done = std::exchange(link->line.front().done, nullptr);
  }
  if (done) {
    done(fail(Errc::kInvalid, "node {} has no such memory, or no more: {}", link->peer,
              ibv_wc_status_str(completion.status)));
  }
}

void VerbsTransport::finish(Link* link, Posted* posted, bool good) {
  if (good && posted->copy_to != nullptr) {
    std::memcpy(posted->copy_to, posted->bounce, posted->copy_bytes);
  }
  const uint64_t value = posted->answer == nullptr ? 0 : *posted->answer;
  release(posted);
  link->queued_bytes -= posted->queued_bytes;
  if (!posted->done) {
    return;
  }
  --link->operations;
  if (silent_) {
    return;
  }
  if (good) {
    posted->done(value);
  } else {
    posted->done(fail(Errc::kPeerLost, "node {} was lost before the operation was done", link->peer));
  }
}

void VerbsTransport::release(Posted* posted) {
  posted->buffer = Buffer();
  if (posted->bounce != nullptr) {
    messages_->give_bounce_back(posted->bounce);
    room_for_starved_ = true;
  }
  if (posted->answer != nullptr) {
    messages_->give_answer_back(posted->answer);
    room_for_starved_ = true;
  }
}

}  // namespace kevre::transport::verbs
