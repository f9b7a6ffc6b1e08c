// bench_raw_ucx server|client SOCKET TLS spin|sleep: the raw side of `kevre bench fault`, one process on each node. The
// client prints one JSON line: {"round_trip": {"n", "median", "p99"} in ns for 4 KiB, "mb_per_s": streaming 64 KiB}.
#include <fmt/format.h>

#include <cstdio>
#include <string>

#include "bench/raw_ucx.h"

int main(int argc, char** argv) {
  using namespace kevre::bench;
  if (argc != 5) {
    return 2;
  }
  RawOptions options;
  options.socket_path = argv[2];
  options.tls = argv[3];
  const bool spinning = std::string(argv[4]) == "spin";
  if (std::string(argv[1]) == "server") {
    const auto served = raw_server(options);
    if (!served) {
      std::fprintf(stderr, "bench_raw_ucx: %s\n", served.error().text.c_str());
    }
    return served ? 0 : 1;
  }
  RawWork round_trip;
  round_trip.spinning = spinning;
  RawWork stream;
  stream.spinning = spinning;
  stream.bytes = 65536;
  stream.window = 16;
  const auto results = raw_client(options, {round_trip, stream});
  if (!results) {
    std::fprintf(stderr, "bench_raw_ucx: %s\n", results.error().text.c_str());
    return 1;
  }
  const RawResult& trip = (*results)[0];
  fmt::print("{{\"round_trip\": {{\"n\": {}, \"median\": {}, \"p99\": {}}}, \"mb_per_s\": {:.1f}}}\n", trip.round_trip.count(),
             trip.median_ns(), trip.p99_ns(), (*results)[1].bytes_per_second / 1e6);
  return 0;
}
