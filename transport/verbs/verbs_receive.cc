// Receiving: chunks out of the shared receive queue to the rules of links, and credits.
#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "transport/verbs/verbs_transport.h"

namespace kevre::transport::verbs {
void VerbsTransport::post_receive(uint32_t buffer) {
  ibv_sge piece{};
  piece.addr = reinterpret_cast<uintptr_t>(receive_buffers_[buffer]);
  piece.length = kChunkBytes;
  piece.lkey = device_->key_of(receive_buffers_[buffer], kChunkBytes).value_or(0);
  ibv_recv_wr request{};
  request.wr_id = wr_id(Tag::kReceive, buffer);
  request.sg_list = &piece;
  request.num_sge = 1;
  ibv_recv_wr* bad = nullptr;
  if (const int failed = ibv_post_srq_recv(device_->srq(), &request, &bad); failed != 0) {
    lose_device(fmt::format("its receive queue takes no buffers: {}", std::strerror(failed)));
  }
}

void VerbsTransport::on_chunk(const ibv_wc& completion) {
  const auto buffer = static_cast<uint32_t>(number_in(completion.wr_id));
  const auto found = by_queue_pair_.find(completion.qp_num);
  Accepted* accepted = found == by_queue_pair_.end() ? nullptr : found->second;
  if (completion.status == IBV_WC_SUCCESS && accepted != nullptr && !accepted->over) {
    // An RDMA WRITE with immediate data takes a buffer too, and has any length: no chunk.
    const size_t bytes = completion.opcode == IBV_WC_RECV ? completion.byte_len : 0;
    take_chunk(accepted, {receive_buffers_[buffer], std::min<size_t>(bytes, kChunkBytes)});
  } else if (completion.status != IBV_WC_SUCCESS && completion.status != IBV_WC_WR_FLUSH_ERR &&
             accepted != nullptr) {
    KEVRE_LOG_DEBUG("verbs: receiving from node {}: {}", accepted->from,
                    ibv_wc_status_str(completion.status));
    accepted->peer_ended = true;  // the queue pair is broken
    look_now_ = true;
  }
  post_receive(buffer);
  if (accepted != nullptr && !accepted->over) {
    accepted->window.count_freed();
    tell_freed(accepted);
  }
}

void VerbsTransport::take_chunk(Accepted* accepted, std::span<const std::byte> chunk) {
  if (!accepted->window.count_arrived()) {
    ++rules_.counters().rejected;
    KEVRE_LOG_WARN("verbs: node {} sends more than it was allowed to: its connection is closed",
                   accepted->from);
    end_accepted(accepted);
    return;
  }
  const Assembly::Step step = accepted->assembly.add(chunk);
  if (step == Assembly::Step::kMore) {
    return;
  }
  const WireHeader& wire = accepted->assembly.header();
  if (step == Assembly::Step::kBad || wire.from != accepted->from || wire.from_link != accepted->from_link) {
    ++rules_.counters().rejected;
    KEVRE_LOG_WARN("verbs: what came from node {} is no message: its connection is closed", accepted->from);
    end_accepted(accepted);
    return;
  }
  rules_.arrived(wire, accepted->assembly.service_header(), accepted->assembly.payload());
}

void VerbsTransport::tell_freed(Accepted* accepted) {
  const auto total = accepted->window.to_tell();
  if (!total) {
    return;
  }
  ibv_send_wr request{};
  request.wr_id = wr_id(Tag::kAnswer, accepted->number);
  request.opcode = IBV_WR_SEND_WITH_IMM;
  request.imm_data = *total;
  request.send_flags = IBV_SEND_SIGNALED;
  ibv_send_wr* bad = nullptr;
  if (ibv_post_send(accepted->id->qp, &request, &bad) != 0) {
    accepted->peer_ended = true;
    look_now_ = true;
  }
}

// ---- credits, at the sender

void VerbsTransport::post_credit_receive(Link* link) {
  ibv_recv_wr request{};
  request.wr_id = wr_id(Tag::kCredit, link->number);
  ibv_recv_wr* bad = nullptr;
  if (const int failed = ibv_post_recv(link->id->qp, &request, &bad); failed != 0) {
    lose(link, fmt::format("receiving its credits: {}", std::strerror(failed)));
  }
}

void VerbsTransport::on_credit(const ibv_wc& completion) {
  const auto found = outgoing_.find(number_in(completion.wr_id));
  if (found == outgoing_.end()) {
    return;
  }
  Link* link = found->second;
  if (completion.status != IBV_WC_SUCCESS) {
    if (completion.status != IBV_WC_WR_FLUSH_ERR) {
      lose(link, fmt::format("receiving its credits: {}", ibv_wc_status_str(completion.status)));
    }
    return;
  }
  if ((completion.wc_flags & IBV_WC_WITH_IMM) == 0 || !link->window.freed(completion.imm_data)) {
    ++rules_.counters().rejected;
    lose(link, "its credits make no sense");
    return;
  }
  post_credit_receive(link);
  pump(link);
}

}  // namespace kevre::transport::verbs
