// Membership, first part: watching the peers and judging them. The agreement on views is in
// membership_agree.cc.
#include "cluster/membership.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"

namespace kevre::cluster {

View Membership::first_view(Member self) {
  KEVRE_CHECK(self.id == NodeId(1), "the first node is node 1");
  View view;
  view.id = ViewId(1);
  view.newest = self.id;
  view.members.push_back(std::move(self));
  return view;
}

Membership::Membership(const Options& options, View current, Nanos now) : options_(options), last_tick_(now) {
  KEVRE_CHECK(current.has(options.self), "node {} is no member of its first view {}", options.self,
              current.id);
  view_ = std::move(current);
  log_.push_back(view_);
  reserved_ = view_.newest;
  for (const Member& m : view_.members) {
    if (m.id != options_.self) {
      peers_[m.id].heard = now;
    }
  }
}

Message Membership::heartbeat() const {
  Message m;
  m.type = MessageType::kHeartbeat;
  m.view_id = view_.id;
  for (const auto& [node, peer] : peers_) {
    if (peer.evidence != Evidence::kNone) {
      m.suspicions.push_back({node, peer.evidence});
    }
  }
  return m;
}

void Membership::send_all(const Message& message, Effects& effects) const {
  for (const auto& [node, peer] : peers_) {
    effects.send.emplace_back(node, message);
  }
}

void Membership::expel(std::string why, Effects& effects) {
  expelled_ = true;
  effects.expelled = std::move(why);
}

void Membership::tick(Nanos now, Effects& effects) {
  if (ended()) {
    return;
  }
  // This node itself was stopped (both cores busy, SIGSTOP, a suspended machine): what it did not hear in
  // that time says nothing about the others, and what they decided meanwhile lies in its queue. It listens
  // first.
  const Nanos gap = now - last_tick_;
  if (gap > options_.failure_timeout_ns / 2) {
    for (auto& [node, peer] : peers_) {
      peer.heard = std::min(now, peer.heard + gap);
    }
    quiet_until_ = now + options_.failure_timeout_ns / 2;
    astray_since_ = 0;
  }
  last_tick_ = now;
  send_all(heartbeat(), effects);
  if (wants_to_leave_) {
    leave(now, effects);
  }
  watch(now, effects);
  settle_broken();
  drive(now, effects);
}

// A node that loses its device breaks with everybody at once, but the others say so one after the other. Were the younger
// of the first two sent away at once, it might be the healthy one.
void Membership::settle_broken() {
  std::set<std::pair<NodeId, NodeId>> now_broken;
  for (const Member& a : view_.members) {
    for (const Member& b : view_.members) {
      if (said_by(a.id, b.id) == Evidence::kBroken) {
        now_broken.emplace(a.id, b.id);
      }
    }
  }
  settled_.clear();
  std::set_intersection(now_broken.begin(), now_broken.end(), broken_.begin(), broken_.end(),
                        std::inserter(settled_, settled_.end()));
  broken_ = std::move(now_broken);
}

void Membership::ask(NodeId node, Nanos now, Effects& effects) {
  peers_[node].probed = now;
  effects.probe.push_back(node);
}

void Membership::watch(Nanos now, Effects& effects) {
  for (auto& [node, peer] : peers_) {
    const bool silent = now - peer.heard > options_.failure_timeout_ns;
    if ((silent || peer.reset) && peer.evidence != Evidence::kDead && now - peer.probed >= tick_ns()) {
      ask(node, now, effects);
    }
    if (!silent && !peer.reset && peer.evidence == Evidence::kSilent) {
      set_evidence(node, Evidence::kNone, now, effects);
    }
    // Neither heard nor agreed upon for so long: the two of us cannot stay in one view.
    if (peer.evidence == Evidence::kSilent && now - peer.silent_since > 2 * options_.failure_timeout_ns) {
      set_evidence(node, Evidence::kBroken, now, effects);
    }
  }
}

void Membership::set_evidence(NodeId node, Evidence evidence, Nanos now, Effects& effects) {
  Peer& peer = peers_[node];
  if (peer.evidence == evidence) {
    return;
  }
  if (evidence == Evidence::kSilent) {
    peer.silent_since = now;
  }
  peer.evidence = evidence;
  send_all(heartbeat(), effects);
}

void Membership::on_peer_reset(NodeId peer, Nanos now, Effects& effects) {
  const auto i = peers_.find(peer);
  if (ended() || i == peers_.end()) {
    return;
  }
  i->second.reset = true;
  ask(peer, now, effects);
}

void Membership::on_probe(NodeId node, ProbeResult result, ViewId their_view, Nanos now, Effects& effects) {
  const auto i = peers_.find(node);
  if (ended() || i == peers_.end()) {
    return;
  }
  Peer& peer = i->second;
  switch (result) {
    case ProbeResult::kRefused:
      if (peer.evidence == Evidence::kBroken && node < options_.self) {
        break;  // it lived when the connection broke, so it has declared this node lost before it died
      }
      set_evidence(node, Evidence::kDead, now, effects);
      break;
    case ProbeResult::kNoAnswer:
      if (peer.evidence == Evidence::kNone &&
          (peer.reset || now - peer.heard > options_.failure_timeout_ns)) {
        set_evidence(node, Evidence::kSilent, now, effects);
      }
      break;
    case ProbeResult::kMember:
      if (peer.reset) {
        set_evidence(node, Evidence::kBroken, now, effects);
      } else {
        peer.heard = now;
      }
      break;
    case ProbeResult::kNoMember:
      if (their_view > view_.id) {
        expel(fmt::format("view {} of the cluster goes on without this node", their_view), effects);
        return;
      }
      break;
  }
  drive(now, effects);
}

Evidence Membership::said_by(NodeId reporter, NodeId about) const {
  if (reporter == options_.self) {
    const auto i = peers_.find(about);
    return i == peers_.end() ? Evidence::kNone : i->second.evidence;
  }
  const auto i = peers_.find(reporter);
  if (i == peers_.end()) {
    return Evidence::kNone;
  }
  const auto j = i->second.reports.find(about);
  return j == i->second.reports.end() ? Evidence::kNone : j->second;
}

Membership::Judgement Membership::judge() const {
  Judgement result;
  const auto& members = view_.members;
  for (const Member& reporter : members) {
    if (said_by(options_.self, reporter.id) == Evidence::kDead) {
      continue;  // the word of the dead is old
    }
    for (const Member& m : members) {
      if (m.id != reporter.id && m.id != options_.self && said_by(reporter.id, m.id) == Evidence::kDead) {
        result.dead.insert(m.id);
      }
    }
  }
  result.gone = result.dead;
  for (const Member& m : members) {
    size_t others = 0, votes = 0;
    for (const Member& reporter : members) {
      if (reporter.id != m.id && !result.dead.contains(reporter.id)) {
        ++others;
        votes += said_by(reporter.id, m.id) != Evidence::kNone ? 1 : 0;
      }
    }
    if (2 * votes > others) {
      result.gone.insert(m.id);
    }
  }
  std::set<NodeId> younger;
  for (const Member& a : members) {
    for (const Member& b : members) {
      if (!result.gone.contains(a.id) && !result.gone.contains(b.id) &&
          said_by(a.id, b.id) == Evidence::kBroken && settled_.contains({a.id, b.id})) {
        younger.insert(std::max(a.id, b.id));
      }
    }
  }
  result.gone.merge(younger);
  return result;
}

bool Membership::quorum(const std::set<NodeId>& nodes, const std::set<NodeId>& dead) const {
  size_t voters = 0, present = 0;
  NodeId oldest;
  for (const Member& m : view_.members) {
    if (!dead.contains(m.id)) {
      oldest = oldest == kNoNode ? m.id : oldest;
      ++voters;
      present += nodes.contains(m.id) ? 1 : 0;
    }
  }
  return 2 * present > voters || (2 * present == voters && nodes.contains(oldest));
}

void Membership::check_own_standing(Nanos now, const Judgement& judgement, Effects& effects) {
  std::set<NodeId> heard{options_.self};
  for (const auto& [node, peer] : peers_) {
    if (!peer.reset && now - peer.heard <= options_.failure_timeout_ns) {
      heard.insert(node);
    }
  }
  if (quorum(heard, judgement.dead) && !judgement.gone.contains(options_.self)) {
    astray_since_ = 0;
  } else if (astray_since_ == 0) {
    astray_since_ = now;
  } else if (now - astray_since_ > options_.failure_timeout_ns) {
    expel("this node cannot reach enough of the others; they go on without it", effects);
  }
}

void Membership::on_heartbeat(NodeId from, const Message& m, Nanos now, Effects& effects) {
  const auto i = peers_.find(from);
  if (i == peers_.end() || m.view_id < view_.id) {
    // It missed a view, or was declared lost and does not know: either way it needs what was decided.
    send_views_after(m.view_id, from, effects);
    return;
  }
  i->second.reports.clear();
  for (const Suspicion& s : m.suspicions) {
    if (m.view_id == view_.id && view_.has(s.node)) {
      i->second.reports[s.node] = s.evidence;
    }
  }
  (void)now;
}

void Membership::on_message(NodeId from, const Message& m, Nanos now, Effects& effects) {
  if (ended()) {
    return;
  }
  if (const auto i = peers_.find(from); i != peers_.end()) {
    i->second.heard = now;
  }
  switch (m.type) {
    case MessageType::kHeartbeat:
      if (m.view_id > view_.id) {
        Message fetch;
        fetch.type = MessageType::kFetch;
        fetch.view_id = view_.id;
        effects.send.emplace_back(from, fetch);
      } else {
        on_heartbeat(from, m, now, effects);
      }
      break;
    case MessageType::kPrepare:
      on_prepare(from, m, effects);
      break;
    case MessageType::kPromise:
      on_promise(from, m);
      break;
    case MessageType::kAccept:
      on_accept(from, m, effects);
      break;
    case MessageType::kAccepted:
      if (proposal_.active && proposal_.accepting && m.view_id == proposal_.value.id &&
          m.ballot == proposal_.ballot) {
        proposal_.answers.insert(from);
      }
      break;
    case MessageType::kCommit:
      if (about_next_view(from, m, effects)) {
        install(m.view, now, effects);
      }
      break;
    case MessageType::kFetch:
      send_views_after(m.view_id, from, effects);
      break;
    case MessageType::kLeave:
      if (view_.has(from)) {
        leaving_.insert(from);
      }
      break;
    case MessageType::kStable:
      effects.stable.emplace_back(from, m.view_id);
      break;
  }
  drive(now, effects);
}

}  // namespace kevre::cluster
