// Longest match over a vocabulary: a trie whose chains of single children are one edge, so that it has at most two nodes a
// token, however long the tokens are.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace duet {

class Trie {
 public:
  struct Match {
    uint32_t token;
    size_t n;  // bytes
  };
  Trie(const Vocabulary& vocabulary, std::span<const uint32_t> sorted);  // the tokens by their bytes; every single byte is one
  Match longest(const Vocabulary& vocabulary, std::string_view text) const;  // text not empty

 private:
  struct Node {
    uint32_t children = 0;    // index of the first of them; they lie one after another, in the order of their labels
    uint32_t edge = 0;        // pool offset of the bytes that lead here from the parent
    uint16_t n_children = 0, n_edge = 0;
    uint32_t token = 0;       // 0: none ends here
  };
  std::vector<Node> nodes_;   // breadth first; 0 is the root
  std::vector<char> labels_;  // first byte of each node's edge
};

}  // namespace duet
