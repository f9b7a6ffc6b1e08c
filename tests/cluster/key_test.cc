#include "cluster/key.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace kevre::cluster {
namespace {

class KeyFile : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/kevre-key-XXXXXX";
    folder_ = ::mkdtemp(name);
    path_ = folder_ + "/key";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& text) {
    std::ofstream(path_) << text;
    ::chmod(path_.c_str(), 0600);
  }
  std::string folder_, path_;
};

TEST_F(KeyFile, ReadsBackWhatWasWritten) {
  const Key key = generate_key();
  ASSERT_TRUE(write_key_file(path_, key));
  const Result<Key> read = read_key_file(path_);
  ASSERT_TRUE(read) << read.error().text;
  EXPECT_EQ(read->bytes, key.bytes);
  struct stat status {};
  ::stat(path_.c_str(), &status);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

TEST_F(KeyFile, IsNeverOverwritten) {
  ASSERT_TRUE(write_key_file(path_, generate_key()));
  EXPECT_EQ(write_key_file(path_, generate_key()).error().code, Errc::kExists);
}

TEST_F(KeyFile, ThatOthersMayReadIsRefusedWithTheRemedy) {
  ASSERT_TRUE(write_key_file(path_, generate_key()));
  ::chmod(path_.c_str(), 0644);
  const auto read = read_key_file(path_);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::kDenied);
  EXPECT_NE(read.error().text.find("chmod 600"), std::string::npos);
}

TEST_F(KeyFile, WithAnythingButSixtyFourHexDigitsIsCorrupt) {
  for (const std::string& text : {std::string(), std::string("abc\n"), std::string(63, 'a') + "\n",
                                  std::string(64, 'g'), std::string(65, 'a'), std::string(64, 'a') + "\nx"}) {
    write(text);
    const auto read = read_key_file(path_);
    ASSERT_FALSE(read) << text;
    EXPECT_EQ(read.error().code, Errc::kCorrupt) << text;
  }
  EXPECT_EQ(read_key_file(path_ + "-none").error().code, Errc::kNotFound);
  EXPECT_EQ(read_key_file(folder_).error().code, Errc::kInvalid);
}

TEST(Key, TagsOfDifferentKeysDiffer) {
  const Key a = generate_key(), b = generate_key();
  EXPECT_NE(a.bytes, b.bytes);
  EXPECT_NE(cluster_tag(a), cluster_tag(b));
  EXPECT_EQ(cluster_tag(a), cluster_tag(a));
}

}  // namespace
}  // namespace kevre::cluster
