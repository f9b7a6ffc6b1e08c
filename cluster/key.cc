#include "cluster/key.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "base/check.h"
#include "base/fd.h"

namespace kevre::cluster {

namespace {

constexpr size_t kHexDigits = 64;

// libsodium wants this once before anything else; more calls cost nothing.
void start_sodium() {
  KEVRE_CHECK(sodium_init() >= 0, "libsodium does not start");
}

}  // namespace

Key generate_key() {
  start_sodium();
  Key key;
  randombytes_buf(key.bytes.data(), key.bytes.size());
  return key;
}

Result<void> write_key_file(const std::string& path, const Key& key) {
  UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) {
    return fail_errno("cluster key file {}", path);
  }
  char text[kHexDigits + 1];
  sodium_bin2hex(text, sizeof text, key.bytes.data(), key.bytes.size());
  text[kHexDigits] = '\n';
  const ssize_t written = ::write(file.get(), text, sizeof text);
  const int error = errno;
  sodium_memzero(text, sizeof text);
  if (written != static_cast<ssize_t>(sizeof text)) {
    ::unlink(path.c_str());
    return fail_errno_text(written < 0 ? error : ENOSPC, fmt::format("cluster key file {}", path));
  }
  return {};
}

Result<Key> read_key_file(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) {
    return fail_errno("cluster key file {}", path);
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) {
    return fail_errno("cluster key file {}", path);
  }
  if (!S_ISREG(status.st_mode)) {
    return fail(Errc::kInvalid, "cluster key file {} is not a regular file", path);
  }
  if ((status.st_mode & 077) != 0) {
    return fail(Errc::kDenied, "cluster key file {} may be read by others; run: chmod 600 {}", path, path);
  }
  char text[kHexDigits + 2];  // one more than a good file has
  const ssize_t n = ::read(file.get(), text, sizeof text);
  if (n < 0) {
    return fail_errno("cluster key file {}", path);
  }
  Key key;
  size_t bytes = 0;
  const size_t size = static_cast<size_t>(n);
  const bool shape = size == kHexDigits || (size == kHexDigits + 1 && text[kHexDigits] == '\n');
  const bool good =
      shape &&
      sodium_hex2bin(key.bytes.data(), key.bytes.size(), text, kHexDigits, nullptr, &bytes, nullptr) == 0 &&
      bytes == key.bytes.size();
  sodium_memzero(text, sizeof text);
  if (!good) {
    return fail(Errc::kCorrupt,
                "cluster key file {} does not hold 64 hex digits; copy it again from another node", path);
  }
  return key;
}

uint64_t cluster_tag(const Key& key) {
  static constexpr std::string_view kWhat = "kevre cluster tag 1";
  unsigned char proof[crypto_auth_BYTES];
  crypto_auth(proof, reinterpret_cast<const unsigned char*>(kWhat.data()), kWhat.size(), key.bytes.data());
  uint64_t tag = 0;
  std::memcpy(&tag, proof, sizeof tag);
  return tag;
}

}  // namespace kevre::cluster
