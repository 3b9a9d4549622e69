// A pickle read as data. The opcodes that build numbers, text, tuples, lists and dictionaries are understood, and of all
// Python callables only those with which torch.save describes a tensor; nothing is ever called. Values are handles into one
// pool, so what a pickle repeats costs nothing, and the memory of the whole machine is bounded.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "base/reader.h"
#include "formats/checkpoint.h"

namespace duet {

class Pickle {
 public:
  using Ref = uint32_t;  // of a value
  enum class Kind : uint8_t { none, boolean, integer, real, text, tuple, list, dict, global, storage, tensor };

  // `what` names the pickle in messages, `base` is its offset in the file; DUET_E_LIMIT when it needs more than `memory` bytes.
  Pickle(Bytes bytes, std::string_view what, uint64_t base, uint64_t memory);

  Pickle(const Pickle&) = delete;
  Pickle& operator=(const Pickle&) = delete;

  Ref top() const { return top_; }
  Kind kind(Ref r) const { return nodes_[r].kind; }
  int64_t integer(Ref r) const { return nodes_[r].value; }
  std::string_view text(Ref r) const { return as_text(bytes_).substr(static_cast<size_t>(nodes_[r].value), nodes_[r].count); }
  uint32_t count(Ref r) const { return nodes_[r].count; }  // items of a tuple, list or dict (keys and values counted)

  // f(item) for each item of a tuple, list or dict; a dict gives key, value, key, value ...
  template <class F>
  void each(Ref r, F&& f) const {
    for (uint32_t i = 0, c = nodes_[r].items.first; i < nodes_[r].count; ++i, c = cells_[c].next) f(cells_[c].item);
  }
  Ref item(Ref r, uint32_t i) const;  // i < count(r)

  // A tensor: item 0 of its arguments is a storage, 1 the offset, 2 the shape, 3 the strides (tuples of integers of one length).
  Ref arguments(Ref tensor) const { return nodes_[tensor].items.first; }
  // A storage: item 1 of its arguments is the type, 2 the key (text), 4 the number of elements.
  DType storage_dtype(Ref storage) const;

 private:
  struct Items {
    uint32_t first, last;  // cells
  };
  struct Node {
    union {
      int64_t value;  // boolean, integer; text: offset; global: index
      Items items;    // containers; storage, tensor: `first` is the tuple of arguments
    };
    uint32_t count = 0;
    Kind kind = Kind::none;
  };
  struct Cell {
    Ref item;
    uint32_t next;
  };

  void run();
  void step(uint8_t opcode);
  void check_memory() const;

  Ref make(Kind kind, int64_t value = 0, uint32_t count = 0);
  Ref make_text(uint64_t n);
  Ref make_integer(uint64_t n);
  Ref make_tuple(uint32_t n);
  Ref make_items(Kind kind);
  Ref make_holder(Kind kind, Ref arguments);
  void append(Ref container, Ref item);

  void push(Ref r) { stack_.push_back(r); }
  Ref pop();
  Ref need(Ref r, Kind kind, const char* what) const;
  void append_above_mark(Kind kind, const char* what);
  void put(uint64_t index);
  void get(uint64_t index);
  void global(std::string_view module, std::string_view name);
  void reduce();
  void build();
  void persistent();
  void check_tensor(Ref arguments) const;
  std::string_view line();
  template <class... A>
  [[noreturn]] void bad(fmt::format_string<A...> format, A&&... args) const {
    fail(DUET_E_FORMAT, "{}: {} at byte {}", what_, duet::format(format, std::forward<A>(args)...), at_);
  }

  Bytes bytes_;
  std::string what_;
  uint64_t base_, memory_, at_ = 0;  // at_: the opcode's offset in the file
  ByteReader in_;
  std::deque<Node> nodes_;
  std::deque<Cell> cells_;
  std::deque<Ref> stack_, memo_;
  std::deque<uint32_t> marks_;  // stack heights
  Ref top_ = 0;
  bool done_ = false;
};

const char* kind_name(Pickle::Kind kind);

}  // namespace duet
