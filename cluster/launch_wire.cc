#include "cluster/launch_wire.h"

namespace kevre::cluster {

namespace {

constexpr uint8_t kFormat = 1;
constexpr size_t kStringsMax = 65536;
constexpr size_t kStringBytesMax = 1 << 20;  // longer than the kernel's MAX_ARG_STRLEN
constexpr size_t kPathBytesMax = 4096;
constexpr size_t kGroupsMax = 65536;
constexpr int kSignalMax = 64;

void write_strings(Writer& out, const std::vector<std::string>& strings) {
  out.number(static_cast<uint32_t>(strings.size()));
  for (const std::string& s : strings) {
    out.text(s);
  }
}

// Strings for execve: none may hold a zero byte.
std::vector<std::string> read_strings(Reader& in) {
  std::vector<std::string> strings(in.count(kStringsMax, 4));
  for (std::string& s : strings) {
    s = in.text(kStringBytesMax);
    in.require(s.find('\0') == std::string::npos);
  }
  return strings;
}

std::string read_path(Reader& in) {
  std::string path = in.text(kPathBytesMax);
  in.require(path.find('\0') == std::string::npos);
  return path;
}

void write_request(Writer& out, const LaunchRequest& r) {
  write_strings(out, r.argv);
  write_strings(out, r.env);
  out.text(r.cwd).number(r.uid).number(r.gid).number(static_cast<uint32_t>(r.groups.size()));
  for (const uint32_t group : r.groups) {
    out.number(group);
  }
  out.number(r.umask).number(static_cast<uint8_t>(r.pty)).number(r.window.rows).number(r.window.columns);
  out.number(static_cast<uint8_t>(r.detach)).text(r.output_file);
}

bool read_bool(Reader& in) {
  const auto value = in.number<uint8_t>();
  in.require(value <= 1);
  return value == 1;
}

LaunchRequest read_request(Reader& in) {
  LaunchRequest r;
  r.argv = read_strings(in);
  r.env = read_strings(in);
  r.cwd = read_path(in);
  r.uid = in.number<uint32_t>();
  r.gid = in.number<uint32_t>();
  r.groups.resize(in.count(kGroupsMax, 4));
  for (uint32_t& group : r.groups) {
    group = in.number<uint32_t>();
  }
  r.umask = in.number<uint32_t>();
  r.pty = read_bool(in);
  r.window.rows = in.number<uint16_t>();
  r.window.columns = in.number<uint16_t>();
  r.detach = read_bool(in);
  r.output_file = read_path(in);
  in.require(!r.argv.empty() && r.umask <= 0777 && !(r.pty && r.detach));
  return r;
}

}  // namespace

Bytes encode(const LaunchMessage& m) {
  Writer out;
  out.number(kFormat).number(static_cast<uint8_t>(m.type)).number(m.run);
  switch (m.type) {
    case LaunchType::kStart:
      write_request(out, m.request);
      break;
    case LaunchType::kData:
      out.number(static_cast<uint8_t>(m.stream)).bytes(m.data);
      break;
    case LaunchType::kCredit:
      out.number(static_cast<uint8_t>(m.stream)).number(m.number);
      break;
    case LaunchType::kStarted:
    case LaunchType::kSignal:
    case LaunchType::kWait:
      out.number(m.number);
      break;
    case LaunchType::kResize:
      out.number(m.window.rows).number(m.window.columns);
      break;
    case LaunchType::kExit:
      out.number(static_cast<uint8_t>(m.status.kind)).number(m.status.code).text(m.status.text);
      break;
    case LaunchType::kInputEnd:
    case LaunchType::kCancel:
      break;
  }
  return out.take();
}

Result<LaunchMessage> decode_launch(std::span<const std::byte> bytes) {
  Reader in(bytes);
  LaunchMessage m;
  in.require(in.number<uint8_t>() == kFormat);
  const auto type = in.number<uint8_t>();
  in.require(type >= static_cast<uint8_t>(LaunchType::kStart) &&
             type <= static_cast<uint8_t>(LaunchType::kWait));
  m.type = static_cast<LaunchType>(type);
  m.run = in.number<uint64_t>();
  if (!in.ok()) {
    return fail(Errc::kCorrupt, "a malformed launch message");
  }
  if (m.type == LaunchType::kData || m.type == LaunchType::kCredit) {
    const auto stream = in.number<uint8_t>();
    in.require(stream <= static_cast<uint8_t>(Stream::kError));
    m.stream = static_cast<Stream>(stream);
  }
  switch (m.type) {
    case LaunchType::kStart:
      m.request = read_request(in);
      break;
    case LaunchType::kData: {
      const auto data = in.bytes(kChunkBytesMax);
      m.data.assign(data.begin(), data.end());
      break;
    }
    case LaunchType::kCredit:
      m.number = in.number<uint32_t>();
      break;
    case LaunchType::kStarted:
    case LaunchType::kWait:
      m.number = in.number<uint32_t>();
      break;
    case LaunchType::kSignal:
      m.number = in.number<uint32_t>();
      in.require(m.number >= 1 && m.number <= kSignalMax);
      break;
    case LaunchType::kResize:
      m.window.rows = in.number<uint16_t>();
      m.window.columns = in.number<uint16_t>();
      break;
    case LaunchType::kExit: {
      const auto kind = in.number<uint8_t>();
      in.require(kind <= static_cast<uint8_t>(ExitStatus::Kind::kLost));
      m.status.kind = static_cast<ExitStatus::Kind>(kind);
      m.status.code = in.number<int32_t>();
      m.status.text = in.text(kPathBytesMax * 2);
      break;
    }
    case LaunchType::kInputEnd:
    case LaunchType::kCancel:
      break;
  }
  if (!in.done()) {
    return fail(Errc::kCorrupt, "a malformed launch message");
  }
  return m;
}

}  // namespace kevre::cluster
