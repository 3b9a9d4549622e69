#include "formats/pickle.h"

#include <algorithm>
#include <array>
#include <limits>

namespace duet {
namespace {

constexpr uint64_t kMaxPickle = uint64_t{64} << 20;
constexpr size_t kMaxGlobal = 256;
constexpr Pickle::Ref kUnset = ~0u;

struct Global {
  std::string_view module, name;
  enum { ordered_dict, tensor, parameter, storage } role;
  DType dtype = DType::f32;
};
// clang-format off
constexpr std::array kGlobals{
    Global{"collections", "OrderedDict", Global::ordered_dict},
    Global{"torch._utils", "_rebuild_tensor_v2", Global::tensor},
    Global{"torch._utils", "_rebuild_parameter", Global::parameter},
    Global{"torch", "DoubleStorage", Global::storage, DType::f64},
    Global{"torch", "FloatStorage", Global::storage, DType::f32},
    Global{"torch", "HalfStorage", Global::storage, DType::f16},
    Global{"torch", "BFloat16Storage", Global::storage, DType::bf16},
    Global{"torch", "LongStorage", Global::storage, DType::i64},
    Global{"torch", "IntStorage", Global::storage, DType::i32},
    Global{"torch", "ShortStorage", Global::storage, DType::i16},
    Global{"torch", "CharStorage", Global::storage, DType::i8},
    Global{"torch", "ByteStorage", Global::storage, DType::u8},
    Global{"torch", "BoolStorage", Global::storage, DType::boolean},
};

// The opcodes' names and values are those of Python's pickletools.
enum Op : uint8_t {
  MARK = '(', STOP = '.', POP = '0', POP_MARK = '1', DUP = '2', NONE = 'N', NEWTRUE = 0x88, NEWFALSE = 0x89,
  BININT = 'J', BININT1 = 'K', BININT2 = 'M', LONG1 = 0x8a, LONG4 = 0x8b, BINFLOAT = 'G',
  BINSTRING = 'T', SHORT_BINSTRING = 'U', BINUNICODE = 'X', SHORT_BINUNICODE = 0x8c, BINUNICODE8 = 0x8d,
  EMPTY_TUPLE = ')', TUPLE = 't', TUPLE1 = 0x85, TUPLE2 = 0x86, TUPLE3 = 0x87,
  EMPTY_LIST = ']', APPEND = 'a', APPENDS = 'e', LIST = 'l', EMPTY_DICT = '}', SETITEM = 's', SETITEMS = 'u', DICT = 'd',
  BINPUT = 'q', LONG_BINPUT = 'r', MEMOIZE = 0x94, BINGET = 'h', LONG_BINGET = 'j',
  GLOBAL = 'c', STACK_GLOBAL = 0x93, REDUCE = 'R', BUILD = 'b', BINPERSID = 'Q', PROTO = 0x80, FRAME = 0x95,
};
// clang-format on

}  // namespace

const char* kind_name(Pickle::Kind kind) {
  constexpr const char* names[] = {"None", "a boolean", "an integer", "a float", "text", "a tuple", "a list", "a dict", "a global", "a storage", "a tensor"};
  return names[static_cast<size_t>(kind)];
}

Pickle::Pickle(Bytes bytes, std::string_view what, uint64_t base, uint64_t memory)
    : bytes_(bytes), what_(what), base_(base), memory_(memory), in_(bytes, what_, base) {
  if (bytes.size() > kMaxPickle) fail(DUET_E_LIMIT, "{}: a pickle of {} bytes, more than the {} allowed", what_, bytes.size(), kMaxPickle);
  run();
}

void Pickle::run() {
  while (!done_) {
    at_ = in_.offset();
    step(in_.u8("opcode"));
    check_memory();
  }
  if (in_.left() != 0) bad("{} bytes after the pickle's end", in_.left());
}

void Pickle::check_memory() const {
  const uint64_t used = nodes_.size() * sizeof(Node) + cells_.size() * sizeof(Cell) + (stack_.size() + memo_.size() + marks_.size()) * sizeof(Ref);
  if (used > memory_) fail(DUET_E_LIMIT, "{}: node budget: building its values takes more than {} bytes at byte {}", what_, memory_, at_);
}

void Pickle::step(uint8_t opcode) {
  switch (opcode) {
    case PROTO:
      if (const uint8_t version = in_.u8("protocol"); version < 2 || version > 5)
        fail(DUET_E_UNSUPPORTED, "{}: pickle protocol {} at byte {}; 2 to 5 can be read", what_, version, at_);
      return;
    case FRAME: {
      const uint64_t frame = in_.u64("frame");
      if (frame > in_.left()) bad("a frame of {} bytes, but only {} are left", frame, in_.left());
      return;
    }
    case STOP:
      top_ = pop();
      if (!stack_.empty()) bad("{} values are left over at the end", stack_.size());
      done_ = true;
      return;

    case NONE: return push(make(Kind::none));
    case NEWTRUE: return push(make(Kind::boolean, 1));
    case NEWFALSE: return push(make(Kind::boolean, 0));
    case BININT: return push(make_integer(4));
    case BININT1: return push(make(Kind::integer, in_.u8("integer")));
    case BININT2: return push(make(Kind::integer, in_.u16("integer")));
    case LONG1: return push(make_integer(in_.u8("integer")));
    case LONG4: return push(make_integer(in_.u32("integer")));
    case BINFLOAT: return in_.skip(8, "float"), push(make(Kind::real));
    case SHORT_BINSTRING:
    case SHORT_BINUNICODE: return push(make_text(in_.u8("text")));
    case BINSTRING:
    case BINUNICODE: return push(make_text(in_.u32("text")));
    case BINUNICODE8: return push(make_text(in_.u64("text")));

    case MARK: return marks_.push_back(static_cast<uint32_t>(stack_.size()));
    case POP:
      if (!marks_.empty() && marks_.back() == stack_.size()) return marks_.pop_back();
      pop();
      return;
    case POP_MARK:
      if (marks_.empty()) bad("no mark to go back to");
      stack_.resize(marks_.back());
      return marks_.pop_back();
    case DUP: {
      const Ref r = pop();
      push(r);
      return push(r);
    }

    case EMPTY_TUPLE: return push(make_tuple(0));
    case TUPLE1: return push(make_tuple(1));
    case TUPLE2: return push(make_tuple(2));
    case TUPLE3: return push(make_tuple(3));
    case EMPTY_LIST: return push(make_items(Kind::list));
    case EMPTY_DICT: return push(make_items(Kind::dict));
    case TUPLE:
    case LIST:
    case DICT: {
      if (marks_.empty()) bad("no mark to collect items from");
      const auto n = static_cast<uint32_t>(stack_.size() - marks_.back());
      marks_.pop_back();
      const Ref r = make_tuple(n);
      nodes_[r].kind = opcode == TUPLE ? Kind::tuple : opcode == LIST ? Kind::list : Kind::dict;
      if (opcode == DICT && n % 2) bad("a dict of {} keys and values", n);
      return push(r);
    }
    case APPEND: {
      const Ref item = pop(), list = pop();
      append(need(list, Kind::list, "APPEND to"), item);
      return push(list);
    }
    case SETITEM: {
      const Ref value = pop(), key = pop(), dict = pop();
      append(need(dict, Kind::dict, "SETITEM on"), key);
      append(dict, value);
      return push(dict);
    }
    case APPENDS: return append_above_mark(Kind::list, "APPENDS to");
    case SETITEMS: return append_above_mark(Kind::dict, "SETITEMS on");

    case BINPUT: return put(in_.u8("memo index"));
    case LONG_BINPUT: return put(in_.u32("memo index"));
    case MEMOIZE: return put(memo_.size());
    case BINGET: return get(in_.u8("memo index"));
    case LONG_BINGET: return get(in_.u32("memo index"));

    case GLOBAL: {
      const std::string_view module = line(), name = line();
      return global(module, name);
    }
    case STACK_GLOBAL: {
      const Ref name = need(pop(), Kind::text, "STACK_GLOBAL with"), module = need(pop(), Kind::text, "STACK_GLOBAL with");
      return global(text(module), text(name));
    }
    case REDUCE: return reduce();
    case BUILD: return build();
    case BINPERSID: return persistent();
    default: bad("opcode {:#04x}, which builds nothing that weights consist of", opcode);
  }
}

Pickle::Ref Pickle::make(Kind kind, int64_t value, uint32_t count) {
  Node node;
  node.value = value;
  node.count = count;
  node.kind = kind;
  nodes_.push_back(node);
  return static_cast<Ref>(nodes_.size() - 1);
}

Pickle::Ref Pickle::make_text(uint64_t n) {
  const uint64_t offset = in_.offset() - base_;
  in_.skip(n, "text");
  return make(Kind::text, static_cast<int64_t>(offset), static_cast<uint32_t>(n));
}

// Little-endian two's complement of n bytes
Pickle::Ref Pickle::make_integer(uint64_t n) {
  const Bytes b = in_.take(n, "integer");
  if (n > 8) fail(DUET_E_LIMIT, "{}: an integer of {} bytes at byte {}; 8 are enough for any size", what_, n, at_);
  const bool negative = n > 0 && std::to_integer<uint8_t>(b[n - 1]) >= 0x80;
  uint64_t v = negative ? ~uint64_t{0} : 0;
  for (size_t i = n; i-- > 0;) v = v << 8 | std::to_integer<uint64_t>(b[i]);
  return make(Kind::integer, static_cast<int64_t>(v));
}

Pickle::Ref Pickle::make_items(Kind kind) {
  const Ref r = make(kind);
  nodes_[r].items = {0, 0};
  return r;
}

// Of the n topmost values
Pickle::Ref Pickle::make_tuple(uint32_t n) {
  const size_t fence = marks_.empty() ? 0 : marks_.back();
  if (stack_.size() - fence < n) bad("a tuple of {} items, but the stack has {}", n, stack_.size() - fence);
  const Ref tuple = make_items(Kind::tuple);
  for (size_t i = stack_.size() - n; i < stack_.size(); ++i) append(tuple, stack_[i]);
  stack_.resize(stack_.size() - n);
  return tuple;
}

Pickle::Ref Pickle::make_holder(Kind kind, Ref arguments) {
  const Ref r = make(kind);
  nodes_[r].items = {arguments, 0};
  return r;
}

void Pickle::append(Ref container, Ref item) {
  const auto c = static_cast<uint32_t>(cells_.size());
  cells_.push_back({item, 0});
  Node& node = nodes_[container];
  if (node.count == 0) node.items.first = c;
  else cells_[node.items.last].next = c;
  node.items.last = c;
  ++node.count;
}

Pickle::Ref Pickle::item(Ref r, uint32_t i) const {
  uint32_t c = nodes_[r].items.first;
  while (i-- > 0) c = cells_[c].next;
  return cells_[c].item;
}

Pickle::Ref Pickle::pop() {
  if (stack_.size() == (marks_.empty() ? 0 : marks_.back())) bad("stack underflow");
  const Ref r = stack_.back();
  stack_.pop_back();
  return r;
}

Pickle::Ref Pickle::need(Ref r, Kind kind, const char* what) const {
  if (nodes_[r].kind != kind) bad("{} {}, where {} belongs", what, kind_name(nodes_[r].kind), kind_name(kind));
  return r;
}

void Pickle::append_above_mark(Kind kind, const char* what) {
  if (marks_.empty()) bad("no mark to collect items from");
  const size_t first = marks_.back();
  marks_.pop_back();
  if (first == (marks_.empty() ? 0 : marks_.back())) bad("stack underflow");
  const Ref container = need(stack_[first - 1], kind, what);
  if (kind == Kind::dict && (stack_.size() - first) % 2) bad("a dict of {} keys and values", stack_.size() - first);
  for (size_t i = first; i < stack_.size(); ++i) append(container, stack_[i]);
  stack_.resize(first);
}

void Pickle::put(uint64_t index) {
  const Ref r = pop();
  push(r);
  if (index >= memo_.size()) {
    if (index * sizeof(Ref) > memory_) fail(DUET_E_LIMIT, "{}: node budget: memo index {} at byte {}", what_, index, at_);
    memo_.resize(index + 1, kUnset);
  }
  memo_[index] = r;
}

void Pickle::get(uint64_t index) {
  if (index >= memo_.size() || memo_[index] == kUnset) bad("memo entry {} was never stored", index);
  push(memo_[index]);
}

std::string_view Pickle::line() {
  const std::string_view rest = as_text(bytes_).substr(static_cast<size_t>(in_.offset() - base_), kMaxGlobal);
  const size_t n = rest.find('\n');
  if (n == rest.npos) bad("a global's name without an end");
  return in_.text(n + 1, "global").substr(0, n);
}

void Pickle::global(std::string_view module, std::string_view name) {
  for (size_t i = 0; i < kGlobals.size(); ++i)
    if (kGlobals[i].module == module && kGlobals[i].name == name) return push(make(Kind::global, static_cast<int64_t>(i)));
  if (module == "torch" && name.ends_with("Storage"))
    fail(DUET_E_UNSUPPORTED, "{}: tensors of type torch.{} at byte {} cannot be read", what_, printable(name), at_);
  bad("global {}.{} not allowed", printable(module), printable(name));
}

DType Pickle::storage_dtype(Ref storage) const { return kGlobals[static_cast<size_t>(nodes_[item(arguments(storage), 1)].value)].dtype; }

void Pickle::reduce() {
  const Ref arguments = need(pop(), Kind::tuple, "REDUCE with"), callable = need(pop(), Kind::global, "REDUCE of");
  const Global& g = kGlobals[static_cast<size_t>(nodes_[callable].value)];
  const uint32_t n = count(arguments);
  switch (g.role) {
    case Global::ordered_dict:
      if (n != 0) bad("OrderedDict with {} arguments", n);
      return push(make_items(Kind::dict));
    case Global::tensor:
      if (n < 6 || n > 7) bad("_rebuild_tensor_v2 with {} arguments", n);
      check_tensor(arguments);
      return push(make_holder(Kind::tensor, arguments));
    case Global::parameter:
      if (n != 3) bad("_rebuild_parameter with {} arguments", n);
      return push(need(item(arguments, 0), Kind::tensor, "_rebuild_parameter of"));
    case Global::storage: bad("a storage outside a persistent id");
  }
}

void Pickle::check_tensor(Ref arguments) const {
  need(item(arguments, 0), Kind::storage, "_rebuild_tensor_v2 of");
  need(item(arguments, 1), Kind::integer, "an offset that is");
  const Ref shape = need(item(arguments, 2), Kind::tuple, "a shape that is"), stride = need(item(arguments, 3), Kind::tuple, "strides that are");
  // before they are walked: a pickle can repeat a long tuple for a few bytes
  constexpr size_t kWalk = 64;  // pth.cc allows fewer, and names the tensor
  if (count(shape) > kWalk || count(stride) > kWalk) bad("a tensor of {} dimensions", std::max(count(shape), count(stride)));
  each(shape, [&](Ref r) { need(r, Kind::integer, "a dimension that is"); });
  each(stride, [&](Ref r) { need(r, Kind::integer, "a stride that is"); });
  if (count(shape) != count(stride)) bad("a shape of {} dimensions with {} strides", count(shape), count(stride));
}

// State of an object (the `_metadata` of a module's state_dict): nothing in it is about tensors.
void Pickle::build() {
  const Ref state = pop(), object = pop();
  need(object, Kind::dict, "BUILD on");
  if (kind(state) != Kind::none) need(state, Kind::dict, "BUILD with");
  push(object);
}

// ('storage', type, key, location, elements)
void Pickle::persistent() {
  const Ref id = need(pop(), Kind::tuple, "a persistent id that is");
  if (count(id) != 5) bad("a persistent id of {} items instead of 5", count(id));
  if (const Ref tag = need(item(id, 0), Kind::text, "a persistent id that begins with"); text(tag) != "storage")
    bad("a persistent id of a {}, not a storage", printable(text(tag)));
  const Ref type = need(item(id, 1), Kind::global, "a storage type that is");
  if (kGlobals[static_cast<size_t>(nodes_[type].value)].role != Global::storage)
    bad("a storage whose type is {}", kGlobals[static_cast<size_t>(nodes_[type].value)].name);
  need(item(id, 2), Kind::text, "a storage key that is");
  need(item(id, 3), Kind::text, "a storage location that is");
  need(item(id, 4), Kind::integer, "a storage length that is");
  push(make_holder(Kind::storage, id));
}

}  // namespace duet
