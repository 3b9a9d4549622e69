#include "text/trie.h"

#include <algorithm>
#include <cstring>

namespace duet {

Trie::Trie(const Vocabulary& v, std::span<const uint32_t> sorted) {
  struct Range {
    size_t begin, end, depth;  // the tokens sorted[begin, end) pass through a node; they share `depth` bytes
  };
  std::vector<Range> ranges{{0, sorted.size(), 0}};
  nodes_.emplace_back();
  labels_.push_back(0);
  for (size_t i = 0; i < nodes_.size(); ++i) {
    auto [begin, end, depth] = ranges[i];
    if (v.bytes(sorted[begin]).size() == depth) nodes_[i].token = sorted[begin++];
    nodes_[i].children = static_cast<uint32_t>(nodes_.size());
    while (begin < end) {
      const std::string_view first = v.bytes(sorted[begin]);
      size_t next = begin + 1;
      while (next < end && v.bytes(sorted[next])[depth] == first[depth]) ++next;
      const std::string_view last = v.bytes(sorted[next - 1]);  // sorted: what the first and the last share, all share
      const auto fork = std::mismatch(first.begin() + depth, first.end(), last.begin() + depth, last.end()).first;
      const auto shared = static_cast<size_t>(fork - first.begin());
      Node child;
      child.edge = static_cast<uint32_t>(v.offset[sorted[begin]] + depth);
      child.n_edge = static_cast<uint16_t>(shared - depth);
      nodes_.push_back(child);
      labels_.push_back(first[depth]);
      ranges.push_back({begin, next, shared});
      begin = next;
    }
    nodes_[i].n_children = static_cast<uint16_t>(nodes_.size() - nodes_[i].children);
  }
  nodes_.shrink_to_fit();
  labels_.shrink_to_fit();
}

Trie::Match Trie::longest(const Vocabulary& v, std::string_view text) const {
  const Node* node = &nodes_[nodes_[0].children + static_cast<unsigned char>(text[0])];  // the root has all 256 children
  Match best{node->token, 1};
  for (size_t n = 1; n < text.size() && node->n_children > 0;) {
    const char* labels = labels_.data() + node->children;
    const auto* label = static_cast<const char*>(std::memchr(labels, static_cast<unsigned char>(text[n]), node->n_children));
    if (label == nullptr) break;
    node = &nodes_[node->children + static_cast<size_t>(label - labels)];
    if (node->n_edge > text.size() - n || std::memcmp(text.data() + n, v.pool.data() + node->edge, node->n_edge) != 0) break;
    n += node->n_edge;
    if (node->token != 0) best = {node->token, n};
  }
  return best;
}

}  // namespace duet
