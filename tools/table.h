// Table: aligned columns for people. Numbers to the right, words to the left. Threads: one owner.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace kevre::tools {

class Table {
 public:
  explicit Table(std::vector<std::string> head) { rows_.push_back(std::move(head)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

  void print(FILE* to) const {
    std::vector<size_t> width(rows_[0].size(), 0);
    for (const auto& row : rows_) {
      for (size_t i = 0; i < row.size() && i < width.size(); ++i) {
        width[i] = std::max(width[i], row[i].size());
      }
    }
    for (const auto& row : rows_) {
      std::string line;
      for (size_t i = 0; i < row.size() && i < width.size(); ++i) {
        const std::string gap(width[i] - row[i].size(), ' ');
        const bool number = i > 0 && row[i].find_first_not_of("0123456789.") == std::string::npos;
        line += (i > 0 ? "  " : "") + (number ? gap + row[i] : row[i] + gap);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      std::fprintf(to, "%s\n", line.c_str());
    }
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace kevre::tools
