#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "norma/core/error.h"
#include "norma/core/file.h"

namespace norma::testing {

/// Each byte of a file is changed to some that formats give a meaning to; `load` reads each such
/// file or refuses it with an IOError, and refuses one at least.
template <class Load>
void expect_any_change_read_or_refused(const std::string& path, const Load& load) {
  using namespace std::string_literals;
  const std::string whole = read_file(path);
  int refused = 0;
  for (size_t i = 0; i < whole.size(); ++i)
    for (char c : "\0\xff {}[]\"',:9-e\\"s) {
      std::string changed = whole;
      changed[i] = c;
      std::ofstream(path, std::ios::binary) << changed;  // unlike ours without fsync: many files
      try {
        load(path);
      } catch (const IOError&) {
        ++refused;
      }
    }
  EXPECT_GT(refused, 0);
}

}  // namespace norma::testing
