#include "cluster/join.h"

#include <time.h>

#include <algorithm>

#include "base/clock.h"
#include "cluster/caller.h"

namespace kevre::cluster {

namespace {

constexpr int kRedirectsMax = 8;
constexpr Nanos kRetryNs = 100 * kMillisecond;

Result<Joined> come_in(Call& call, const JoinRequest& request, const Frame& frame, const MakeTransport& make,
                       Nanos deadline) {
  KEVRE_ASSIGN(Welcome welcome, decode_welcome(frame.body));
  Joined joined;
  joined.id = welcome.id;
  joined.name = welcome.name;
  KEVRE_ASSIGN(joined.address, parse_endpoint(request.hello.address));
  if (request.listens_on_all) {
    KEVRE_ASSIGN(const Endpoint local, call.local());
    joined.address.ip = local.ip;
  }
  KEVRE_ASSIGN(joined.transport, make(welcome.id, joined.address));
  Writer ready;
  ready.bytes(joined.transport->local_address()).text(to_text(joined.address));
  KEVRE_ASSIGN(const Frame admitted, call.ask(FrameType::kReady, ready.view(), deadline));
  if (admitted.type != FrameType::kAdmitted) {
    return fail(Errc::kCorrupt, "{} answered out of turn", request.to);
  }
  KEVRE_ASSIGN(joined.view, decode_view(admitted.body));
  if (!joined.view.has(joined.id)) {
    return fail(Errc::kCorrupt, "{} sent a view without this node", request.to);
  }
  return joined;
}

// One attempt: to the coordinator by way of redirects, then in.
Result<Joined> attempt(const JoinRequest& request, const MakeTransport& make, Nanos deadline) {
  std::string address = request.to;
  for (int i = 0; i < kRedirectsMax; ++i) {
    KEVRE_ASSIGN(Call call, Call::open(address, request.key, deadline));
    KEVRE_ASSIGN(const Frame frame, call.ask(FrameType::kHello, encode(request.hello), deadline));
    if (frame.type == FrameType::kWelcome) {
      return come_in(call, request, frame, make, deadline);
    }
    if (frame.type != FrameType::kRedirect || frame.body.size() > 64) {
      return fail(Errc::kCorrupt, "{} answered out of turn", address);
    }
    address.assign(reinterpret_cast<const char*>(frame.body.data()), frame.body.size());
  }
  return fail(Errc::kViewChanged, "{} knows no coordinator at the moment; try again", request.to);
}

}  // namespace

Result<Joined> join(const JoinRequest& request, const MakeTransport& make) {
  const Nanos deadline = now_ns() + request.timeout_ns;
  for (;;) {
    Result<Joined> result = attempt(request, make, deadline);
    // Only a change of coordinator under way is worth another try; everything else a person must mend.
    if (result || result.error().code != Errc::kViewChanged || now_ns() + kRetryNs > deadline) {
      return result;
    }
    const timespec pause{0, kRetryNs};
    ::nanosleep(&pause, nullptr);
  }
}

}  // namespace kevre::cluster
