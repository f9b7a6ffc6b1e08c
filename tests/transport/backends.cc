#include "tests/transport/backends.h"

#include <cstdio>

#include "base/check.h"
#include "base/random.h"
#include "transport/sim/sim_network.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/verbs/probe.h"
#include "transport/verbs/verbs_transport.h"

namespace kevre::transport::testing {
namespace {

using Make = Result<std::unique_ptr<Transport>> (*)(const Options&);

// Transports of this machine, each made by `make`.
class RealCluster final : public Cluster {
 public:
  RealCluster(size_t nodes, const Options& options, Make make) : options_(options), make_(make) {
    for (size_t i = 0; i < nodes; ++i) {
      Options mine = options;
      mine.self = NodeId(static_cast<uint16_t>(i + 1));
      nodes_.push_back(make_another(mine));
    }
  }
  // tests/rdma/ adds these lines up.
  ~RealCluster() override {
    for (size_t i = 0; i < nodes_.size(); ++i) {
      stop(i);
    }
    if (name_ == "verbs") {
      std::printf("transport verbs: %llu one-sided reads\n", static_cast<unsigned long long>(reads_));
    }
  }
  std::unique_ptr<Transport> make_another(const Options& options) override {
    Options mine = options_;
    mine.self = options.self;
    mine.cluster_tag = options.cluster_tag;
    auto made = make_(mine);
    KEVRE_CHECK(made.has_value(), "{}", made.error().text);
    return std::move(*made);
  }
  size_t size() const override { return nodes_.size(); }
  Transport& node(size_t index) override { return *nodes_[index]; }
  void step() override {
    for (auto& node : nodes_) {
      if (node) {
        node->progress();
      }
    }
  }
  void stop(size_t index) override {
    if (nodes_[index]) {
      name_ = nodes_[index]->name();
      reads_ += nodes_[index]->counters().one_sided_reads;
      nodes_[index].reset();
    }
  }
  int patience() const override { return slow_ ? 6 : 1; }

 private:
  const Options options_;
  const Make make_;
  const bool slow_ = verbs::probe().usable();  // here that is an emulated machine
  std::vector<std::unique_ptr<Transport>> nodes_;
  std::string name_;
  uint64_t reads_ = 0;
};

class SimCluster final : public Cluster {
 public:
  SimCluster(size_t nodes, const Options& options, const Capabilities& capabilities) {
    network_.set_capabilities(capabilities);
    for (size_t i = 0; i < nodes; ++i) {
      Options mine = options;
      mine.self = NodeId(static_cast<uint16_t>(i + 1));
      nodes_.push_back(make_another(mine));
    }
  }
  std::unique_ptr<Transport> make_another(const Options& options) override {
    auto made = network_.create(options);
    KEVRE_CHECK(made.has_value(), "{}", made.error().text);
    return std::move(*made);
  }
  size_t size() const override { return nodes_.size(); }
  Transport& node(size_t index) override { return *nodes_[index]; }
  void step() override {
    network_.advance();
    for (auto& node : nodes_) {
      if (node) {
        node->progress();
      }
    }
  }
  void stop(size_t index) override { nodes_[index].reset(); }

 private:
  sim::SimNetwork network_{sim::SimOptions{}};
  std::vector<std::unique_ptr<Transport>> nodes_;
};

Backend sim(const std::string& name, const Capabilities& capabilities) {
  return {name, "sim",
          [capabilities](size_t nodes, const Options& options) -> std::unique_ptr<Cluster> {
            return std::make_unique<SimCluster>(nodes, options, capabilities);
          },
          capabilities.read};
}

Backend sim_backend() {
  return sim("sim", {false, false, false, "sim"});
}
Backend sim_one_sided_backend() {
  return sim("sim_one_sided", {true, true, true, "sim"});
}

Backend verbs_backend() {
  return {"verbs", "rc",
          [](size_t nodes, Options options) -> std::unique_ptr<Cluster> {
            options.kind = "verbs";
            return std::make_unique<RealCluster>(nodes, options, &verbs::VerbsTransport::create);
          },
          true};
}

Backend ucx(const std::string& name, const std::string& tls, const std::string& via) {
  return {name, via, [tls](size_t nodes, Options options) -> std::unique_ptr<Cluster> {
            options.kind = "ucx";
            options.ucx_tls = tls;
            options.bind_address = "127.0.0.1";
            return std::make_unique<RealCluster>(nodes, options, &ucx::UcxTransport::create);
          }};
}

// What a daemon gets: the choice among all that this machine has.
Backend choice(const std::string& tls, const std::string& via) {
  return {"auto", via, [tls](size_t nodes, Options options) -> std::unique_ptr<Cluster> {
            options.kind = "auto";
            options.ucx_tls = tls;
            options.bind_address = "127.0.0.1";
            return std::make_unique<RealCluster>(nodes, options, &create);
          }};
}

}  // namespace

void Cluster::connect_all() {
  for (size_t i = 0; i < size(); ++i) {
    for (size_t k = 0; k < size(); ++k) {
      if (i != k) {
        const auto connected = node(i).connect(node(k).self(), node(k).local_address());
        KEVRE_CHECK(connected.has_value(), "{}", connected.error().text);
      }
    }
  }
}

bool Cluster::until(const std::function<bool()>& condition, Nanos deadline_ns) {
  const Nanos end = now_ns() + deadline_ns * patience();
  while (!condition()) {
    if (now_ns() > end) {
      return condition();
    }
    step();
  }
  return true;
}

std::vector<Backend> backends() {
  std::vector<Backend> all = {sim_backend(), sim_one_sided_backend(), ucx("ucx_tcp", "tcp", "tcp"),
                              ucx("ucx_shm", "posix", "shm")};
  if (const auto found = verbs::probe(); found.usable()) {
    all.push_back(verbs_backend());
    all.push_back(choice("tcp", "rc"));
    all.back().one_sided = true;
  } else {
    static const bool said = [&] {
      std::printf("kevre: no verbs here: %s\n", found.why_not.c_str());
      return true;
    }();
    static_cast<void>(said);
    all.push_back(choice("tcp", "tcp"));
  }
  return all;
}

void Recorder::on_message(NodeId from, std::span<const std::byte> header,
                          std::span<const std::byte> payload) {
  if (keep) {
    messages.push_back({from, {header.begin(), header.end()}, {payload.begin(), payload.end()}});
  }
  if (also) {
    also(from, header, payload);
  }
}
void Recorder::on_peer_lost(NodeId peer, const Error& why) {
  lost.emplace_back(peer, why.text);
}
void Recorder::on_writable(NodeId peer) {
  writable.push_back(peer);
}

std::vector<std::byte> pattern(size_t bytes, uint64_t seed) {
  std::vector<std::byte> out(bytes);
  Random random(seed + 1);
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t word = random.next();
    for (size_t k = i; k < std::min(bytes, i + 8); ++k) {
      out[k] = static_cast<std::byte>(word >> (8 * (k - i)));
    }
  }
  return out;
}

std::span<const std::byte> as_bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace kevre::transport::testing
