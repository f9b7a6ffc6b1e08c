// Membership: who is in, as a pure state machine (events in, effects out; no clock, sockets, threads, random
// numbers).
//
// Views are decided one after the other. The oldest member coordinates: it proposes the next view (joins,
// leaves, losses), the members accept, it commits. A member that is suspected is not waited for, so a dead
// node does not stop a view; but a view needs a quorum of the view before it: more than half of the members
// that are not known to be dead, or exactly half with the oldest of them. When the coordinator itself is
// believed gone the next oldest takes over, and asks first what was accepted already (ballots as in Paxos,
// one instance per view number), so that two proposers never decide different views with one number.
//
// What makes a member lost (Evidence in messages.h), as every member computes it from everybody's heartbeats:
//   kDead    one member's word is enough: the node's kernel answered that its daemon is gone
//   kBroken  the connection of two living members broke: the younger of the two must go, unless one of them turns out to
//            have lost others too (it goes then by kSilent's rule): the first word is given a tick or two for that
//   kSilent  more than half of the others must say so
// Two nodes: kDead suffices for either side; on mere silence the older survives and the younger, which cannot
// reach a quorum, expels itself. In general a node without a quorum for a second failure_timeout expels
// itself: no split brain. What this cannot see: a partition together with the death of the older side of it
// during the same failure_timeout.
//
// Every node sees every view, in order; what it missed it fetches. A node that learns of a newer view without
// it expels itself. Ids are never reused: a view carries the newest id ever given.
//
// The driver (agent.h) answers every Effects::probe with on_probe() within a second or two.
// Owns: its state only. Threads: one owner. Tested in tests/cluster/membership_test.cc (seeded simulation).
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "cluster/messages.h"
#include "cluster/view.h"

namespace kevre::cluster {

enum class ProbeResult : uint8_t {
  kRefused,   // its kernel says that nobody listens there, or somebody else does: the daemon is gone
  kNoAnswer,  // no answer within the deadline
  kMember,    // it answers, and this node is a member of its view
  kNoMember,  // it answers, and this node is not a member of its view
};

class Membership {
 public:
  struct Options {
    NodeId self;
    Nanos failure_timeout_ns = 5'000'000'000;
  };
  struct Effects {
    std::vector<View> views;                        // installed, in order: connect to new members first,
    std::vector<std::pair<NodeId, Message>> send;   // then send, then disconnect from members that are lost
    std::vector<NodeId> probe;                      // ask at its daemon's port whether it lives
    std::vector<std::pair<NodeId, ViewId>> stable;  // a member has handed over for that view
    std::optional<std::string> expelled;            // once: the others go on without this node
  };

  static View first_view(Member self);  // of a new cluster; self.id must be 1
  Membership(const Options& options, View current, Nanos now);

  const View& view() const { return view_; }
  bool coordinates() const { return view_.coordinator() == options_.self; }
  bool ended() const { return left_ || expelled_; }

  // How often tick() wants to be called.
  Nanos tick_ns() const { return options_.failure_timeout_ns / 5; }
  void tick(Nanos now, Effects& effects);
  void on_message(NodeId from, const Message& message, Nanos now, Effects& effects);
  void on_peer_reset(NodeId peer, Nanos now, Effects& effects);  // the transport lost the connection
  void on_probe(NodeId peer, ProbeResult result, ViewId their_view, Nanos now, Effects& effects);

  // Coordinator: the id for a node that wants to join (given once), and the join itself.
  NodeId reserve_id();
  void admit(Member member, Nanos now, Effects& effects);
  void leave(Nanos now, Effects& effects);
  // Tells `to` that this node handed over for `view`.
  void tell_stable(ViewId view, const std::vector<NodeId>& to, Effects& effects) const;

 private:
  struct Peer {
    Nanos heard = 0;
    Nanos probed = 0;
    Nanos silent_since = 0;
    bool reset = false;
    Evidence evidence = Evidence::kNone;  // this node's own
    std::map<NodeId, Evidence> reports;   // what it says of others, for the current view
  };
  struct Proposal {
    bool active = false;
    bool accepting = false;  // second phase
    Ballot ballot;
    Nanos since = 0;
    std::set<NodeId> answers;
    bool has_value = false;
    Ballot value_ballot;
    View value;
  };
  struct Judgement {
    std::set<NodeId> dead;
    std::set<NodeId> gone;  // dead, silent or broken
  };

  void set_evidence(NodeId node, Evidence evidence, Nanos now, Effects& effects);
  void watch(Nanos now, Effects& effects);
  void ask(NodeId node, Nanos now, Effects& effects);
  Judgement judge() const;
  void settle_broken();
  Evidence said_by(NodeId reporter, NodeId about) const;
  bool quorum(const std::set<NodeId>& nodes, const std::set<NodeId>& dead) const;
  void check_own_standing(Nanos now, const Judgement& judgement, Effects& effects);
  void expel(std::string why, Effects& effects);

  void drive(Nanos now,
             Effects& effects);  // proposes when it is this node's turn and something has to change
  bool enough(const Judgement& judgement) const;
  View next_view(const Judgement& judgement) const;
  void propose(const View& value, Nanos now, Effects& effects);
  void start_accepting(const Judgement& judgement, Effects& effects);
  void on_prepare(NodeId from, const Message& m, Effects& effects);
  void on_promise(NodeId from, const Message& m);
  void on_accept(NodeId from, const Message& m, Effects& effects);
  void on_heartbeat(NodeId from, const Message& m, Nanos now, Effects& effects);
  bool about_next_view(NodeId from, const Message& m, Effects& effects) const;
  void install(const View& view, Nanos now, Effects& effects);
  void send_views_after(ViewId view, NodeId to, Effects& effects) const;
  void send_all(const Message& message, Effects& effects) const;
  Message heartbeat() const;

  Options options_;
  View view_;
  std::deque<View> log_;  // the newest views, view_ last
  std::map<NodeId, Peer> peers_;
  Nanos last_tick_ = 0;
  std::set<std::pair<NodeId, NodeId>> broken_, settled_;  // (who says so, of whom): at the last tick; and at the one before
  Nanos quiet_until_ = 0;   // this node was stopped itself: listens before it judges
  Nanos astray_since_ = 0;  // without a quorum, or judged gone by its own reckoning; 0: in good standing

  Ballot promised_;
  bool has_accepted_ = false;
  Ballot accepted_ballot_;
  View accepted_;
  Proposal proposal_;
  uint32_t round_ = 0;     // the highest used or seen for the next view
  bool proposed_ = false;  // for the next view, under round 0

  NodeId reserved_;  // the highest id given to a joining node
  std::vector<Member> joining_;
  std::set<NodeId> leaving_;
  bool wants_to_leave_ = false, left_ = false, expelled_ = false;
};

}  // namespace kevre::cluster
