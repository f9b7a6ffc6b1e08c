// Membership, second part: the agreement on the next view. One Paxos instance per view number, among the
// members of the view before; the coordinator owns round 0 and therefore needs no first phase.
#include <algorithm>

#include "base/check.h"
#include "cluster/membership.h"

namespace kevre::cluster {

namespace {

constexpr size_t kLogViewsMax = 256;
constexpr uint32_t kPatienceMax = 6;

}  // namespace

NodeId Membership::reserve_id() {
  reserved_ = NodeId(static_cast<uint16_t>(std::max(reserved_, view_.newest).value + 1));
  return reserved_;
}

void Membership::admit(Member member, Nanos now, Effects& effects) {
  KEVRE_CHECK(coordinates(), "node {} admits but does not coordinate view {}", options_.self, view_.id);
  joining_.push_back(std::move(member));
  drive(now, effects);
}

void Membership::leave(Nanos now, Effects& effects) {
  if (ended()) {
    return;
  }
  wants_to_leave_ = true;
  leaving_.insert(options_.self);
  if (!coordinates()) {
    Message m;
    m.type = MessageType::kLeave;
    m.view_id = view_.id;
    effects.send.emplace_back(view_.coordinator(), m);
  }
  drive(now, effects);
}

void Membership::tell_stable(ViewId view, const std::vector<NodeId>& to, Effects& effects) const {
  Message m;
  m.type = MessageType::kStable;
  m.view_id = view;
  for (const NodeId node : to) {
    effects.send.emplace_back(node, m);
  }
}

void Membership::send_views_after(ViewId view, NodeId to, Effects& effects) const {
  for (const View& decided : log_) {
    if (decided.id > view) {
      Message m;
      m.type = MessageType::kCommit;
      m.view_id = decided.id;
      m.has_view = true;
      m.view = decided;
      effects.send.emplace_back(to, std::move(m));
    }
  }
}

// True when `m` speaks of the view after the current one. An older one: the sender gets what it missed. A
// newer one: this node missed something and asks for it.
bool Membership::about_next_view(NodeId from, const Message& m, Effects& effects) const {
  const ViewId next(view_.id.value + 1);
  if (m.view_id > next) {
    Message fetch;
    fetch.type = MessageType::kFetch;
    fetch.view_id = view_.id;
    effects.send.emplace_back(from, std::move(fetch));
  } else if (m.view_id < next && m.type != MessageType::kCommit) {
    send_views_after(ViewId(m.view_id.value - 1), from, effects);
  }
  return m.view_id == next;
}

void Membership::on_prepare(NodeId from, const Message& m, Effects& effects) {
  if (!about_next_view(from, m, effects) || m.ballot.proposer != from || m.ballot < promised_ ||
      !view_.has(from)) {
    return;
  }
  promised_ = m.ballot;
  round_ = std::max(round_, m.ballot.round);
  Message reply;
  reply.type = MessageType::kPromise;
  reply.view_id = m.view_id;
  reply.ballot = m.ballot;
  reply.has_view = has_accepted_;
  reply.view_ballot = accepted_ballot_;
  reply.view = accepted_;
  effects.send.emplace_back(from, std::move(reply));
}

void Membership::on_promise(NodeId from, const Message& m) {
  if (!proposal_.active || proposal_.accepting || m.view_id.value != view_.id.value + 1 ||
      m.ballot != proposal_.ballot) {
    return;
  }
  proposal_.answers.insert(from);
  if (m.has_view && (!proposal_.has_value || m.view_ballot > proposal_.value_ballot)) {
    proposal_.has_value = true;
    proposal_.value_ballot = m.view_ballot;
    proposal_.value = m.view;
  }
}

void Membership::on_accept(NodeId from, const Message& m, Effects& effects) {
  const bool coordinators = m.ballot.round > 0 || m.ballot.proposer == view_.coordinator();
  if (!about_next_view(from, m, effects) || m.ballot.proposer != from || m.ballot < promised_ ||
      !coordinators || !view_.has(from)) {
    return;
  }
  promised_ = m.ballot;
  round_ = std::max(round_, m.ballot.round);
  has_accepted_ = true;
  accepted_ballot_ = m.ballot;
  accepted_ = m.view;
  Message reply;
  reply.type = MessageType::kAccepted;
  reply.view_id = m.view_id;
  reply.ballot = m.ballot;
  effects.send.emplace_back(from, reply);
}

View Membership::next_view(const Judgement& judgement) const {
  View next;
  next.id = ViewId(view_.id.value + 1);
  next.newest = view_.newest;
  for (const Member& m : view_.members) {
    if (judgement.gone.contains(m.id)) {
      next.lost.push_back(m.id);
    } else if (leaving_.contains(m.id)) {
      next.left.push_back(m.id);
    } else {
      next.members.push_back(m);
    }
  }
  // A leaving coordinator takes nobody in, and two that came with one name cannot both get it.
  for (const Member& m : joining_) {
    if (!wants_to_leave_ && m.id > kNoNode && !next.has(m.id) && next.find(m.name) == nullptr) {
      next.members.push_back(m);
      next.newest = std::max(next.newest, m.id);
    }
  }
  std::sort(next.members.begin(), next.members.end(),
            [](const Member& a, const Member& b) { return a.id < b.id; });
  return next;
}

// The answers so far are those of a quorum, and of everybody else that is not suspected: nobody who may still
// be heard is passed over, so what it accepted is known.
bool Membership::enough(const Judgement& judgement) const {
  if (proposal_.ballot != promised_) {
    return false;  // this node promised another proposer meanwhile
  }
  for (const Member& m : view_.members) {
    const bool excused = judgement.gone.contains(m.id) || said_by(options_.self, m.id) != Evidence::kNone;
    if (!excused && !proposal_.answers.contains(m.id)) {
      return false;
    }
  }
  return quorum(proposal_.answers, judgement.dead);
}

void Membership::propose(const View& value, Nanos now, Effects& effects) {
  const bool first = coordinates() && !proposed_ && promised_.round == 0;
  round_ = first ? 0 : round_ + 1;
  proposed_ = true;
  proposal_ = Proposal{};
  proposal_.active = true;
  proposal_.since = now;
  proposal_.ballot = Ballot{round_, options_.self};
  promised_ = proposal_.ballot;
  proposal_.answers.insert(options_.self);
  if (first) {
    proposal_.has_value = true;
    proposal_.value = value;
    return;
  }
  if (has_accepted_) {
    proposal_.has_value = true;
    proposal_.value_ballot = accepted_ballot_;
    proposal_.value = accepted_;
  }
  Message m;
  m.type = MessageType::kPrepare;
  m.view_id = value.id;
  m.ballot = proposal_.ballot;
  send_all(m, effects);
}

void Membership::start_accepting(const Judgement& judgement, Effects& effects) {
  if (!proposal_.has_value) {
    proposal_.value = next_view(judgement);
    proposal_.has_value = true;
  }
  proposal_.accepting = true;
  proposal_.answers = {options_.self};
  has_accepted_ = true;
  accepted_ballot_ = proposal_.ballot;
  accepted_ = proposal_.value;
  Message m;
  m.type = MessageType::kAccept;
  m.view_id = proposal_.value.id;
  m.ballot = proposal_.ballot;
  m.has_view = true;
  m.view = proposal_.value;
  send_all(m, effects);
}

void Membership::drive(Nanos now, Effects& effects) {
  if (ended() || now < quiet_until_) {
    return;
  }
  const Judgement judgement = judge();
  check_own_standing(now, judgement, effects);
  if (ended()) {
    return;
  }
  const auto proposer = std::find_if(view_.members.begin(), view_.members.end(),
                                     [&](const Member& m) { return !judgement.gone.contains(m.id); });
  if (proposer == view_.members.end() || proposer->id != options_.self) {
    proposal_.active = false;
    return;
  }
  const View next = next_view(judgement);
  const bool change = !next.lost.empty() || !next.left.empty() || next.members.size() != view_.members.size();
  // Slow answers are not lost ones: every attempt waits longer than the one before.
  const Nanos patience = options_.failure_timeout_ns / 2 * std::min<uint32_t>(round_ + 1, kPatienceMax);
  const bool stuck = proposal_.active && now - proposal_.since > patience;
  if ((!proposal_.active && change) || stuck) {
    propose(next, now, effects);
    if (proposal_.has_value && proposal_.ballot.round == 0) {
      start_accepting(judgement, effects);
    }
  }
  if (proposal_.active && !proposal_.accepting && enough(judgement)) {
    proposal_.since = now;
    start_accepting(judgement, effects);
  }
  if (proposal_.active && proposal_.accepting && enough(judgement)) {
    const View decided = proposal_.value;
    Message m;
    m.type = MessageType::kCommit;
    m.view_id = decided.id;
    m.has_view = true;
    m.view = decided;
    send_all(m, effects);
    install(decided, now, effects);
    drive(now, effects);  // what came up meanwhile
  }
}

void Membership::install(const View& view, Nanos now, Effects& effects) {
  KEVRE_CHECK(view.id.value == view_.id.value + 1, "view {} after view {}", view.id, view_.id);
  view_ = view;
  log_.push_back(view);
  if (log_.size() > kLogViewsMax) {
    log_.pop_front();
  }
  promised_ = {};
  has_accepted_ = false;
  proposal_ = Proposal{};
  round_ = 0;
  proposed_ = false;
  astray_since_ = 0;
  std::erase_if(joining_, [&](const Member& m) {
    return view_.has(m.id) || view_.find(m.name) != nullptr || !coordinates();
  });
  std::erase_if(leaving_, [&](NodeId node) { return !view_.has(node); });
  if (std::find(view.left.begin(), view.left.end(), options_.self) != view.left.end()) {
    left_ = true;
    effects.views.push_back(view);
    return;
  }
  if (!view.has(options_.self)) {
    expel(fmt::format("view {} of the cluster goes on without this node", view.id), effects);
    return;
  }
  std::erase_if(peers_, [&](const auto& entry) { return !view_.has(entry.first); });
  for (const Member& m : view_.members) {
    if (m.id != options_.self && !peers_.contains(m.id)) {
      peers_[m.id].heard = now;
    }
  }
  bool suspicious = false;
  for (auto& [node, peer] : peers_) {
    peer.reports.clear();
    suspicious = suspicious || peer.evidence != Evidence::kNone;
  }
  effects.views.push_back(view);
  if (suspicious) {
    send_all(heartbeat(), effects);  // reports count for one view only
  }
}

}  // namespace kevre::cluster
