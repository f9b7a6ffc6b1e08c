#include "cluster/messages.h"

#include "transport/transport.h"

namespace kevre::cluster {

namespace {

constexpr uint8_t kFormat = 1;
constexpr size_t kAddressTextMax = 64;

void write_ballot(Writer& out, const Ballot& ballot) {
  out.number(ballot.round).number(ballot.proposer.value);
}

Ballot read_ballot(Reader& in) {
  Ballot ballot;
  ballot.round = in.number<uint32_t>();
  ballot.proposer = NodeId(in.number<uint16_t>());
  return ballot;
}

void write_ids(Writer& out, const std::vector<NodeId>& ids) {
  out.number(static_cast<uint32_t>(ids.size()));
  for (const NodeId id : ids) {
    out.number(id.value);
  }
}

std::vector<NodeId> read_ids(Reader& in) {
  std::vector<NodeId> ids(in.count(kMembersMax, 2));
  for (NodeId& id : ids) {
    id = NodeId(in.number<uint16_t>());
  }
  return ids;
}

bool carries_view(const Message& m) {
  return m.type == MessageType::kAccept || m.type == MessageType::kCommit ||
         (m.type == MessageType::kPromise && m.has_view);
}

}  // namespace

void write_view(Writer& out, const View& view) {
  out.number(view.id.value).number(view.newest.value);
  out.number(static_cast<uint32_t>(view.members.size()));
  for (const Member& m : view.members) {
    out.number(m.id.value).text(m.name).text(m.address).bytes(m.transport_address);
    out.number(m.pid_first).number(m.pid_last);
  }
  write_ids(out, view.lost);
  write_ids(out, view.left);
}

View read_view(Reader& in) {
  View view;
  view.id = ViewId(in.number<uint32_t>());
  view.newest = NodeId(in.number<uint16_t>());
  const size_t members = in.count(kMembersMax, 22);
  NodeId before;
  for (size_t i = 0; i < members && in.ok(); ++i) {
    Member m;
    m.id = NodeId(in.number<uint16_t>());
    m.name = in.text(kNameBytesMax);
    m.address = in.text(kAddressTextMax);
    const auto address = in.bytes(transport::kAddressBytesMax);
    m.transport_address.assign(address.begin(), address.end());
    m.pid_first = in.number<uint32_t>();
    m.pid_last = in.number<uint32_t>();
    in.require(before < m.id && m.id <= view.newest);  // in order, none twice, never 0
    before = m.id;
    view.members.push_back(std::move(m));
  }
  view.lost = read_ids(in);
  view.left = read_ids(in);
  return view;
}

Bytes encode(const View& view) {
  Writer out;
  write_view(out, view);
  return out.take();
}

Result<View> decode_view(std::span<const std::byte> bytes) {
  Reader in(bytes);
  View view = read_view(in);
  if (!in.done()) {
    return fail(Errc::kCorrupt, "a malformed view");
  }
  return view;
}

Bytes encode(const Message& m) {
  Writer out;
  out.number(kFormat).number(static_cast<uint8_t>(m.type)).number(m.view_id.value);
  write_ballot(out, m.ballot);
  out.number(static_cast<uint32_t>(m.suspicions.size()));
  for (const Suspicion& s : m.suspicions) {
    out.number(s.node.value).number(static_cast<uint8_t>(s.evidence));
  }
  out.number(static_cast<uint8_t>(carries_view(m)));
  if (carries_view(m)) {
    write_ballot(out, m.view_ballot);
    write_view(out, m.view);
  }
  return out.take();
}

Result<Message> decode_message(std::span<const std::byte> bytes) {
  Reader in(bytes);
  Message m;
  in.require(in.number<uint8_t>() == kFormat);
  const auto type = in.number<uint8_t>();
  in.require(type >= static_cast<uint8_t>(MessageType::kHeartbeat) &&
             type <= static_cast<uint8_t>(MessageType::kStable));
  m.type = static_cast<MessageType>(type);
  m.view_id = ViewId(in.number<uint32_t>());
  m.ballot = read_ballot(in);
  m.suspicions.resize(in.count(kMembersMax, 3));
  for (Suspicion& s : m.suspicions) {
    s.node = NodeId(in.number<uint16_t>());
    const auto evidence = in.number<uint8_t>();
    in.require(evidence >= 1 && evidence <= static_cast<uint8_t>(Evidence::kDead));
    s.evidence = static_cast<Evidence>(evidence);
  }
  const auto has_view = in.number<uint8_t>();
  in.require(has_view <= 1);
  if (in.ok() && has_view == 1) {
    m.has_view = true;
    m.view_ballot = read_ballot(in);
    m.view = read_view(in);
  }
  in.require(m.has_view == carries_view(m));
  // A view travels only with its own number, and without its number nothing is decided.
  in.require(!m.has_view || (m.view.id == m.view_id && m.view_id.value != 0));
  if (!in.done()) {
    return fail(Errc::kCorrupt, "a malformed cluster message");
  }
  return m;
}

}  // namespace kevre::cluster
