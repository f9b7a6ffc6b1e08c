// The cluster key: 32 random bytes in a file that only its owner may read, as 64 hex digits. Peers prove that
// they have it (HMAC over both sides' challenges) before any other message is read. Threads: any (value).
// Tested in tests/cluster/key_test.cc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/result.h"

namespace kevre::cluster {

struct Key {
  std::array<unsigned char, 32> bytes{};
};

Key generate_key();
Result<void> write_key_file(const std::string& path,
                            const Key& key);  // mode 0600; kExists when the file exists
// kDenied when others may read the file (remedy: chmod 600), kCorrupt when it is not 64 hex digits.
Result<Key> read_key_file(const std::string& path);
// Stamped on every message of the transport, see transport::Options::cluster_tag.
uint64_t cluster_tag(const Key& key);

}  // namespace kevre::cluster
