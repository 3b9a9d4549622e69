#include "model/quantised_file.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "model/weights.h"

namespace duet {
namespace {

constexpr const char *kDtype = "duet.quantised", *kVersion = "duet.version", *kShape = "duet.shape", *kFormVersion = "1";

constexpr struct {
  const char* name;
  uint32_t duetp_shape::*value;
} kDimensions[] = {{"n_layer", &duetp_shape::n_layer}, {"n_embd", &duetp_shape::n_embd},   {"n_head", &duetp_shape::n_head}, {"head_size", &duetp_shape::head_size},
                   {"n_ffn", &duetp_shape::n_ffn},     {"n_vocab", &duetp_shape::n_vocab}, {"rank_w", &duetp_shape::rank_w}, {"rank_a", &duetp_shape::rank_a},
                   {"rank_v", &duetp_shape::rank_v},   {"rank_g", &duetp_shape::rank_g}};

std::string value_of(const Checkpoint& file, const char* key) {
  const auto it = file.metadata().find(key);
  return it == file.metadata().end() ? "" : it->second;
}

// The integer of input i for output o, both possibly of the padding.
int integer(const QuantisedMatrix& m, duet_dtype dtype, uint64_t o, uint64_t i) {
  const duetp_quantised_form& f = m.form;
  const uint64_t tile = o / f.width, lane = o % f.width;
  if (dtype == DUET_I8) return static_cast<const int8_t*>(m.data)[((tile * f.groups * 16 + i / 4) * f.width + lane) * 4 + i % 4];
  const uint8_t pair = static_cast<const uint8_t*>(m.data)[((tile * f.groups * 8 + i / 8) * f.width + lane) * 4 + i % 4];
  return i % 8 < 4 ? pair & 15 : pair >> 4;
}

uint64_t count_padding_not_zero(const QuantisedMatrix& m, duet_dtype dtype) {
  const duetp_quantised_form& f = m.form;
  const uint64_t inputs = f.groups * DUETP_QUANTISED_GROUP, outputs = f.tiles * f.width;
  uint64_t n = 0;
  for (uint64_t o = 0; o < outputs; ++o) {
    for (uint64_t i = o < f.out ? f.in : 0; i < inputs; ++i) n += integer(m, dtype, o, i) != 0;
    for (uint64_t g = 0; o >= f.out && g < f.groups; ++g) {
      const uint64_t s = (o / f.width * f.groups + g) * f.width + o % f.width;
      n += duetp_bf16(m.scale, s) != 0;
      n += dtype == DUET_I4 && duetp_bf16(m.minimum, s) != 0;
    }
  }
  return n;
}

}  // namespace

std::map<std::string, std::string> quantised_metadata(duet_dtype dtype, const duetp_shape& shape) {
  nlohmann::ordered_json dimensions;
  for (const auto& d : kDimensions) dimensions[d.name] = shape.*d.value;
  return {{kDtype, weights_name(dtype)}, {kVersion, kFormVersion}, {kShape, dimensions.dump()}};
}

duet_dtype quantised_dtype(const Checkpoint& file) {
  const std::string dtype = value_of(file, kDtype), version = value_of(file, kVersion);
  if (dtype.empty()) {
    if (file.find("emb.weight.scale") != nullptr)
      fail(DUET_E_FORMAT, "{}: has a tensor emb.weight.scale, but its __metadata__ has no {}; what wrote the file has dropped it", file.path(), kDtype);
    return 0;
  }
  if (dtype != "q8" && dtype != "q4")
    fail(DUET_E_UNSUPPORTED, "{}: __metadata__ says {} = \"{}\"; this version reads q8 and q4", file.path(), kDtype, printable(dtype));
  if (version != kFormVersion)
    fail(DUET_E_UNSUPPORTED, "{}: __metadata__ says {} = \"{}\"; this version reads {} of quantised weights", file.path(), kVersion, printable(version),
         kFormVersion);
  return dtype == "q8" ? DUET_I8 : DUET_I4;
}

duetp_shape quantised_shape(const Checkpoint& file) {
  const std::string what = duet::format("{}: {} in __metadata__", file.path(), kShape);
  const Json dimensions = parse_json(value_of(file, kShape), what);
  duetp_shape s{};
  s.size = sizeof s;
  for (const auto& d : kDimensions) {
    const auto found = dimensions.is_object() ? dimensions.find(d.name) : dimensions.end();
    if (found == dimensions.end()) fail(DUET_E_FORMAT, "{} has no {}", what, d.name);
    if (!found->is_number_unsigned() || found->get<uint64_t>() > UINT32_MAX)
      fail(DUET_E_FORMAT, "{}: {} is {}, expected a whole number of at most 32 bits", what, d.name,
           printable(found->dump(-1, ' ', false, Json::error_handler_t::replace)));
    s.*d.value = found->get<uint32_t>();
  }
  if (s.n_layer == 1 && s.rank_v != 0) fail(DUET_E_FORMAT, "{}: rank_v is {}, but a model of one layer has none", what, s.rank_v);
  return s;
}

std::vector<QuantisedPart> quantised_parts_in_file(duet_dtype dtype, const duetp_quantised_form& f) {
  const bool i4 = dtype == DUET_I4;
  const auto tiles = static_cast<uint32_t>(f.tiles), groups = static_cast<uint32_t>(f.groups);
  const uint64_t row = f.bytes / (f.tiles * f.groups);  // of integers: one tile, one group
  std::vector<QuantisedPart> parts = {{"", i4 ? DType::u8 : DType::i8, {tiles, groups * (i4 ? 8 : 16), f.width, 4}, f.bytes, std::min<uint64_t>(row, 64)}};
  for (const char* suffix : {".scale", ".minimum"}) parts.push_back({suffix, DType::bf16, {tiles, groups, f.width}, f.scales * 2, uint64_t{f.width} * 2});
  if (!i4) parts.pop_back();
  return parts;
}

void check_quantised(const QuantisedMatrix& m, duet_dtype dtype, const std::string& file, const std::string& name, const Log& log, bool strict) {
  const auto warn = [&](uint64_t n, const char* what) {
    if (n == 0) return;
    if (strict) fail(DUET_E_FORMAT, "{}: {} {} of {} (refused by strict loading)", file, n, what, name);
    log.warn("{}: {} {} of {}", file, n, what, name);
  };
  check_values(m.scale, DType::bf16, m.form.scales, file, name + ".scale", log, strict);
  if (dtype == DUET_I4) check_values(m.minimum, DType::bf16, m.form.scales, file, name + ".minimum", log, strict);
  const auto* q = static_cast<const int8_t*>(m.data);
  if (dtype == DUET_I8) warn(static_cast<uint64_t>(std::count(q, q + m.form.bytes, int8_t{-128})), "integers are -128, which is outside [-127,127], in the matrix");
  warn(count_padding_not_zero(m, dtype), "numbers are not zero in the padding");
}

}  // namespace duet
