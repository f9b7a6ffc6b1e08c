#include "bench/pair.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"

namespace kevre::bench {
namespace {

Result<void> read_all(int socket, void* to, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t got = ::recv(socket, static_cast<char*>(to) + done, bytes - done, 0);
    if (got <= 0) {
      return got == 0 ? fail(Errc::kPeerLost, "bench: the other side went away")
                      : fail_errno("bench: recv");
    }
    done += static_cast<size_t>(got);
  }
  return {};
}

Result<sockaddr_un> socket_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(Errc::kInvalid, "bench: the socket path '{}' is empty or too long", path);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

// Waits until `done()`; kTimedOut after `patience` without it.
template <class Done>
Result<void> until(Side& side, bool sleeping, Nanos patience, const Done& done) {
  const Nanos deadline = now_ns() + patience;
  for (uint64_t turns = 1; !done(); ++turns) {
    const Result<void> turned = side.wait(sleeping);
    if (!turned && !done()) {  // the last answer and the end of the connection may come at once
      return turned;
    }
    if ((sleeping || (turns & 0xffff) == 0) && now_ns() > deadline) {
      return fail(Errc::kTimedOut, "bench: no answer from the other side ({})", side.about());
    }
  }
  return {};
}

Result<void> one(Side& side, const Work& work, const Head& head, Nanos patience) {
  if (work.verb == Verb::kMessage) {
    const uint64_t before = side.replies;
    KEVRE_TRY(side.request(head, 0));
    return until(side, !work.spinning, patience, [&] { return side.replies != before; });
  }
  const uint64_t before = side.finished;
  KEVRE_TRY(side.start(work.verb, work.bytes, 0));
  return until(side, !work.spinning, patience, [&] { return side.finished != before; });
}

Head head_of(const Work& work) {
  Head head;
  head.sleep = work.spinning ? 0 : 1;
  head.reply_bytes = work.verb == Verb::kMessage && work.window == 0 ? work.bytes : 0;
  return head;
}

// A reply of no bytes to every quarter of the window keeps the client from running ahead.
Result<void> stream_messages(Side& side, const Work& work, uint32_t messages, Nanos patience) {
  const uint32_t step = std::max<uint32_t>(work.window / 4, 1);
  const uint64_t first = side.replies;
  uint64_t expected = 0;
  Head head = head_of(work);
  for (uint32_t i = 0; i < messages; ++i) {
    head.want_reply = (i + 1) % step == 0 || i + 1 == messages ? 1 : 0;
    KEVRE_TRY(side.request(head, work.bytes));
    expected += head.want_reply;
    KEVRE_TRY(until(side, !work.spinning, patience, [&] {
      const uint64_t got = side.replies - first;
      return i + 1 - got * step < work.window || got == expected;
    }));
  }
  return until(side, !work.spinning, patience, [&] { return side.replies - first == expected; });
}

Result<void> stream_one_sided(Side& side, const Work& work, uint32_t count, Nanos patience) {
  const uint64_t first = side.finished;
  for (uint32_t i = 0; i < count; ++i) {
    KEVRE_TRY(until(side, !work.spinning, patience, [&] { return i - (side.finished - first) < work.window; }));
    KEVRE_TRY(side.start(work.verb, work.bytes, i % work.window));
  }
  return until(side, !work.spinning, patience, [&] { return side.finished - first == count; });
}

Result<Measured> measure(Side& side, const Work& work, Nanos patience) {
  Measured result{work, {}, 0};
  // The server waits as the work says from here on, also where it is not asked.
  Work tell = work;
  tell.verb = Verb::kMessage;
  KEVRE_TRY(one(side, tell, head_of(work), patience));
  if (work.window == 0) {
    const Head head = head_of(work);
    for (uint32_t i = 0; i < work.warm_up + work.rounds; ++i) {
      const Nanos start = now_ns();
      KEVRE_TRY(one(side, work, head, patience));
      if (i >= work.warm_up) {
        result.round_trip.record(now_ns() - start);
      }
    }
    return result;
  }
  const auto stream = work.verb == Verb::kMessage ? &stream_messages : &stream_one_sided;
  KEVRE_TRY(stream(side, work, std::max<uint32_t>(work.warm_up, 1), patience));
  const Nanos start = now_ns();
  KEVRE_TRY(stream(side, work, work.rounds, patience));
  result.bytes_per_second = static_cast<double>(work.bytes) * work.rounds * 1e9 /
                            static_cast<double>(std::max<Nanos>(now_ns() - start, 1));
  return result;
}

}  // namespace

OnCpu::OnCpu(int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE || ::sched_getaffinity(0, sizeof before_, &before_) != 0) {
    return;
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(cpu), &one);
  bound_ = ::sched_setaffinity(0, sizeof one, &one) == 0;
}

OnCpu::~OnCpu() {
  if (bound_) {
    ::sched_setaffinity(0, sizeof before_, &before_);
  }
}

Result<UniqueFd> accept_client(const Options& options) {
  KEVRE_ASSIGN(const sockaddr_un address, socket_address(options.socket_path));
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ::unlink(options.socket_path.c_str());
  if (!listener || ::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener.get(), 1) != 0) {
    return fail_errno("bench: listening at {}", options.socket_path);
  }
  pollfd waiting{listener.get(), POLLIN, 0};
  const int ready = ::poll(&waiting, 1, static_cast<int>(options.patience / kMillisecond));
  UniqueFd client(ready == 1 ? ::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC) : -1);
  ::unlink(options.socket_path.c_str());
  if (!client) {
    return fail(Errc::kTimedOut, "bench: no client came to {}", options.socket_path);
  }
  return client;
}

Result<UniqueFd> reach_server(const Options& options) {
  KEVRE_ASSIGN(const sockaddr_un address, socket_address(options.socket_path));
  const Nanos deadline = now_ns() + options.patience;
  while (true) {
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket) {
      return fail_errno("bench: socket");
    }
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      return socket;
    }
    if (now_ns() > deadline) {
      return fail_errno("bench: no server at {}", options.socket_path);
    }
    ::usleep(2000);  // the server is still starting; the deadline bounds it
  }
}

Result<void> Side::start(Verb, size_t, uint32_t) {
  return fail(Errc::kUnsupported, "bench: {} has no one-sided operations", about());
}

Result<void> serve(Side& side, int socket) {
  Nanos last_look = now_ns();
  uint64_t spins = 0;
  while (side.last_request.stop == 0) {
    const bool sleeping = side.last_request.sleep != 0;
    KEVRE_TRY(side.wait(sleeping));
    // A client that died leaves its UNIX socket closed; look for that now and then.
    if ((sleeping || (++spins & 0xffff) == 0) && now_ns() - last_look > kSecond) {
      last_look = now_ns();
      if (gone(socket)) {
        return fail(Errc::kPeerLost, "bench: the client went away");
      }
    }
  }
  return {};
}

Result<std::vector<Measured>> drive(Side& side, const std::vector<Work>& works, Nanos patience) {
  std::vector<Measured> results;
  // Once there and back first: a connection may be made by the first message, and only then it is known what it can do.
  KEVRE_TRY(one(side, {}, {}, patience));
  for (const Work& work : works) {
    if (side.can(work.verb)) {
      KEVRE_ASSIGN(Measured result, measure(side, work, patience));
      results.push_back(std::move(result));
    }
  }
  Head stop;
  stop.stop = 1;
  KEVRE_TRY(one(side, {}, stop, patience));
  return results;
}

bool gone(int socket) {
  char byte = 0;
  return ::recv(socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

Result<void> give(int socket, const void* data, size_t bytes) {
  const uint64_t length = bytes;
  if (::send(socket, &length, sizeof length, MSG_NOSIGNAL) != ssize_t{sizeof length} ||
      ::send(socket, data, bytes, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes)) {
    return fail_errno("bench: telling the other side");
  }
  return {};
}

Result<std::vector<std::byte>> take(int socket, size_t bytes_max) {
  uint64_t length = 0;
  KEVRE_TRY(read_all(socket, &length, sizeof length));
  if (length > bytes_max) {
    return fail(Errc::kCorrupt, "bench: {} bytes from the other side", length);
  }
  std::vector<std::byte> bytes(length);
  KEVRE_TRY(read_all(socket, bytes.data(), bytes.size()));
  return bytes;
}

}  // namespace kevre::bench
