#include "norma/core/file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "norma/core/error.h"

namespace norma {
namespace {
namespace fs = std::filesystem;

class FileTest : public ::testing::Test {
 protected:
  FileTest() : folder_(::testing::TempDir() + format("norma_file_{}/", ::getpid())) {
    fs::create_directories(folder_);
  }
  ~FileTest() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + name; }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder_))
      found.push_back(entry.path().filename());
    return found;
  }

 private:
  std::string folder_;
};

template <class F>
std::string io_message(const F& f) {
  try {
    f();
  } catch (const IOError& e) {
    return e.what();
  }
  return "nothing was thrown";
}

using Names = std::vector<std::string>;

TEST_F(FileTest, WhatIsWrittenIsReadBack) {
  const std::string zeros_inside("a\0b\n\xff", 5);
  for (const std::string& bytes : {std::string(), zeros_inside, std::string(1 << 20, 'x')}) {
    write_file_atomically(path("f"), bytes);
    EXPECT_EQ(read_file(path("f")), bytes);
    EXPECT_EQ(names(), Names{"f"});
  }
}

TEST_F(FileTest, FilesOfUnknownSizeAreReadWhole) {
  EXPECT_GT(read_file("/proc/self/status").size(), 100u);  // its size is said to be 0
}

TEST_F(FileTest, NothingAppearsBeforeCommit) {
  write_file_atomically(path("f"), "old");
  AtomicFile file(path("f"));
  file.write("ne");
  file.write("w");
  EXPECT_EQ(read_file(path("f")), "old");
  file.commit();
  EXPECT_EQ(read_file(path("f")), "new");
  EXPECT_EQ(names(), Names{"f"});
}

TEST_F(FileTest, AnAbandonedWriteLeavesTheFolderAsItWas) {
  write_file_atomically(path("f"), "old");
  {
    AtomicFile file(path("f"));
    file.write("half");
    EXPECT_EQ(names().size(), 2u);
  }
  EXPECT_EQ(names(), Names{"f"});
  EXPECT_EQ(read_file(path("f")), "old");
}

TEST_F(FileTest, TwoWritersOfOneFileDoNotMix) {
  AtomicFile first(path("f")), second(path("f"));
  first.write("first");
  second.write("second");
  second.commit();
  first.commit();
  EXPECT_EQ(read_file(path("f")), "first");
  EXPECT_EQ(names(), Names{"f"});
}

TEST_F(FileTest, TheFileHasTheUsualPermissions) {
  const mode_t mask = ::umask(027);
  write_file_atomically(path("f"), "x");
  ::umask(mask);
  struct stat status {};
  ASSERT_EQ(::stat(path("f").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
}

TEST_F(FileTest, ARelativePathKeepsItsMeaning) {
  const fs::path before = fs::current_path();
  fs::current_path(path(""));
  {
    AtomicFile file("f");
    file.write("here");
    fs::current_path(before);
    file.commit();
  }
  EXPECT_EQ(read_file(path("f")), "here");
}

/// Files may grow to `bytes` only, as on a full disk: the write that crosses it is short, the next
/// one fails.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    before_signal_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, before_signal_);
  }

 private:
  rlimit before_{};
  sighandler_t before_signal_;
};

TEST_F(FileTest, AFullDiskLeavesTheOldFileAndNoOther) {
  write_file_atomically(path("f"), "old");
  std::string message;
  {
    const FileSizeLimit limit(1000);
    message = io_message([&] { write_file_atomically(path("f"), std::string(5000, 'x')); });
  }
  EXPECT_EQ(message,
            path("f") + ": 5000 bytes were to be written, but only 1000 could be: File too large");
  EXPECT_EQ(read_file(path("f")), "old");
  EXPECT_EQ(names(), Names{"f"});
}

TEST_F(FileTest, MistakesAreNamedWithThePathAndTheReason) {
  EXPECT_EQ(io_message([&] { read_file(path("absent")); }),
            path("absent") + ": must be a file to read, but: No such file or directory");
  EXPECT_EQ(io_message([&] { InputFile file(path("absent")); }),
            path("absent") + ": must be a file to read, but: No such file or directory");
  fs::create_directory(path("folder"));
  EXPECT_EQ(io_message([&] { read_file(path("folder")); }),
            path("folder") + ": must be a file to read, but: Is a directory");
  EXPECT_EQ(io_message([&] { InputFile file(path("folder")); }),
            path("folder") + ": must be a regular file, but is a folder");
  EXPECT_EQ(io_message([&] { write_file_atomically(path("no/f"), "x"); }),
            path("no/f") + ": the folder " + path("no") +
                " must exist and be readable, but: No such file or directory");
  EXPECT_EQ(io_message([&] { write_file_atomically(path(""), "x"); }),
            path("") + ": must name a file, but ends in no name");
  EXPECT_EQ(io_message([&] { write_file_atomically(path("folder"), "x"); }),
            path("folder") + ": must be replaced by the finished file, but: Is a directory");
  EXPECT_EQ(names(), Names{"folder"});
}

TEST_F(FileTest, AnyPartIsReadAndTheEndIsNamed) {
  write_file_atomically(path("f"), "0123456789");
  const InputFile file(path("f"));
  EXPECT_EQ(file.size(), 10);
  std::string part(4, ' ');
  file.read(3, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(part, "3456");
  EXPECT_EQ(io_message([&] { file.read(8, std::as_writable_bytes(std::span(part))); }),
            path("f") + ": 4 bytes must follow byte 8, but only 2 do: the file ends there");
}

}  // namespace
}  // namespace norma
