#pragma once
#include "transport/transport.h"
namespace kevre::transport::verbs {
class VerbsTransport {
 public:
  static Result<std::unique_ptr<Transport>> create(const Options& options);
};
}  // namespace kevre::transport::verbs
