// Receiving: from UCX's callback to the rules of links, past every check that a stranger's message must fail.
#include "transport/ucx/ucx_transport.h"

namespace kevre::transport::ucx {

ucs_status_t UcxTransport::on_arrival(void* transport, const void* head, size_t head_bytes, void* data,
                                      size_t data_bytes, const ucp_am_recv_param_t* param) {
  auto* self = static_cast<UcxTransport*>(transport);
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) {
    ++self->rules_.counters().rejected;  // we never send so
    return UCS_OK;
  }
  const WireDecoded decoded = decode_wire_header({static_cast<const std::byte*>(head), head_bytes},
                                                 data_bytes, self->options_.cluster_tag, self->options_.self);
  if (decoded.verdict != WireVerdict::kGood) {
    ++self->rules_.counters().rejected;
    return UCS_OK;
  }
  self->rules_.arrived(decoded.header, decoded.service_header, {static_cast<const std::byte*>(data), data_bytes});
  return UCS_OK;  // UCX takes its memory back: what is needed longer was copied
}

}  // namespace kevre::transport::ucx
