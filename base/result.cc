#include "base/result.h"

#include <cstring>

namespace kevre {

std::string_view errc_name(Errc code) {
  switch (code) {
    case Errc::kInvalid: return "invalid";
    case Errc::kNotFound: return "not found";
    case Errc::kExists: return "exists";
    case Errc::kDenied: return "denied";
    case Errc::kBusy: return "busy";
    case Errc::kExhausted: return "exhausted";
    case Errc::kUnsupported: return "unsupported";
    case Errc::kTimedOut: return "timed out";
    case Errc::kPeerLost: return "peer lost";
    case Errc::kViewChanged: return "view changed";
    case Errc::kCorrupt: return "corrupt";
    case Errc::kSystem: return "system";
  }
  return "unknown";
}

Errc errc_from_errno(int value) {
  switch (value) {
    case EINVAL: case ENAMETOOLONG: case EFAULT: case E2BIG: return Errc::kInvalid;
    case ENOENT: case ESRCH: case ENODEV: case ENXIO: return Errc::kNotFound;
    case EEXIST: case EADDRINUSE: return Errc::kExists;
    case EACCES: case EPERM: return Errc::kDenied;
    case EAGAIN: case EBUSY: return Errc::kBusy;
    case ENOMEM: case ENOSPC: case EMFILE: case ENFILE: case EDQUOT: case EFBIG: return Errc::kExhausted;
    case ENOSYS: case EOPNOTSUPP: case ENOTTY: return Errc::kUnsupported;
    case ETIMEDOUT: return Errc::kTimedOut;
    case ECONNRESET: case EPIPE: case ECONNREFUSED: case ENOTCONN: case EHOSTUNREACH: return Errc::kPeerLost;
    default: return Errc::kSystem;
  }
}

tl::unexpected<Error> fail_errno_text(int value, std::string what) {
  char text[128];
  what += ": ";
  what += strerror_r(value, text, sizeof text);
  return tl::unexpected<Error>(Error{errc_from_errno(value), value, std::move(what)});
}

}  // namespace kevre
