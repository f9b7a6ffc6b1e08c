#include "tools/sockets.h"

#include <algorithm>
#include <cstdlib>

#include "cluster/local.h"
#include "tools/control_client.h"

namespace kevre::tools {

Result<std::string> control_socket_of(const std::string& cluster, const std::string& preferred) {
  if (const char* inside = std::getenv("KEVRE_CONTROL"); inside != nullptr && inside[0] != '\0') {
    return std::string(inside);
  }
  KEVRE_ASSIGN(auto nodes, cluster::local::describe(cluster));
  std::stable_partition(nodes.begin(), nodes.end(), [&](const auto& node) { return node.name == preferred; });
  for (const auto& node : nodes) {
    if (ControlClient::connect(node.control_socket)) {
      return node.control_socket;
    }
  }
  return fail(Errc::kNotFound, "no daemon of cluster '{0}' answers: 'kevre --cluster {0} cluster down', then up again",
              cluster);
}

std::string bytes_to_json(const std::string& bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (const char c : bytes) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      text += c;
    } else {
      text += static_cast<char>(0xc0 | (byte >> 6));
      text += static_cast<char>(0x80 | (byte & 0x3f));
    }
  }
  return text;
}

Result<std::string> bytes_from_json(const nlohmann::json& value) {
  if (!value.is_string()) {
    return fail(Errc::kCorrupt, "text expected, not {}", value.dump());
  }
  const auto& text = value.get_ref<const std::string&>();
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char first = static_cast<unsigned char>(text[i]);
    if (first < 0x80) {
      bytes += text[i];
      continue;
    }
    if ((first != 0xc2 && first != 0xc3) || i + 1 == text.size()) {
      return fail(Errc::kCorrupt, "a character beyond one byte");
    }
    bytes += static_cast<char>(((first & 3) << 6) | (static_cast<unsigned char>(text[++i]) & 0x3f));
  }
  return bytes;
}

}  // namespace kevre::tools
