#include "tools/piped_program.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

using kevre::Errc;
using kevre::tools::PipedProgram;

TEST(PipedPrograms, AnswerLineByLineAndEndWithTheirInput) {
  auto cat = PipedProgram::start({"cat"});
  ASSERT_TRUE(cat) << cat.error().text;
  EXPECT_EQ(*cat->ask("one", 10000), "one");
  EXPECT_EQ(*cat->ask("two", 10000), "two");
  EXPECT_EQ(*cat->finish(10000), 0);
}

TEST(PipedPrograms, OneThatEndsOrIsSilentIsAnError) {
  auto gone = PipedProgram::start({"true"});
  EXPECT_EQ(gone->read_line(10000).error().code, Errc::kPeerLost);
  auto silent = PipedProgram::start({"sleep", "100"});
  EXPECT_EQ(silent->read_line(10).error().code, Errc::kTimedOut);
}

TEST(PipedPrograms, AnUnknownProgramIsNotStarted) {
  EXPECT_EQ(PipedProgram::start({"/no/such/program"}).error().sys_errno, ENOENT);
}
