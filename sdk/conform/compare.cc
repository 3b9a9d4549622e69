#include "conform/compare.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/format.h"
#include "duet_quantised.h"

namespace conform {
namespace {

bool untouched(const unsigned char* p, size_t n) {
  return std::all_of(p, p + n, [](unsigned char c) { return c == 0xff; });
}

double share_of_zeros(const std::vector<float>& values) {
  size_t zeros = 0, all = 0;
  for (float f : values)
    if (!std::isnan(f)) zeros += f == 0, ++all;
  return all ? static_cast<double>(zeros) / static_cast<double>(all) : 0;
}

// The first element that should have been written and was not, or that is not finite, as a sentence; "" if there is none.
std::string fault_of(const Outcome::Output& got, const Outcome::Output& want, const std::vector<float>& got_values, const std::vector<float>& want_values,
                     const std::string& name) {
  const size_t size = bytes_of(want.dtype);
  for (size_t i = 0; i < want_values.size(); ++i) {
    const bool wrote = !untouched(&got.bytes[i * size], size);
    const auto at = [&](const char* what) { return duet::format("{}: {} at row {}, column {}", name, what, i / want.columns, i % want.columns); };
    if (!wrote) return at("not written");
    if (!std::isfinite(got_values[i])) return at("not finite");
  }
  const double zeros = share_of_zeros(want_values);
  if (zeros > 0.5) return duet::format("{}: {:.0f} % of the right output is zero, so this case shows nothing", name, 100 * zeros);
  if (share_of_zeros(got_values) > 0.5) return duet::format("{}: mostly zeros", name);
  return "";
}

double rms_of(const std::vector<float>& values) {
  double square = 0;
  size_t n = 0;
  for (float v : values)
    if (std::isfinite(v)) square += double{v} * v, ++n;
  return std::sqrt(square / static_cast<double>(n ? n : 1)) + 1e-30;
}

double distance(float got, float want, double rms) {
  if (std::isnan(want) != std::isnan(got)) return HUGE_VAL;
  return std::isnan(want) ? 0 : std::fabs(double{got} - want) / std::max(std::fabs(double{want}), rms);
}

// The first element that is further away than `limit`
size_t first_beyond(double limit, const std::vector<float>& got, const std::vector<float>& want) {
  const double rms = rms_of(want);
  size_t i = 0;
  while (i < want.size() && distance(got[i], want[i], rms) <= limit) ++i;
  return i;
}

}  // namespace

double distance(const std::vector<float>& got, const std::vector<float>& want) {
  const double rms = rms_of(want);
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, distance(got[i], want[i], rms));
  return worst;
}

double tolerance(const StageCase& c, duet_dtype weights, duet_mode mode, const std::string& output, duet_dtype dtype) {
  if (dtype == DUET_BF16) return 0x1p-7;
  if ((weights == DUET_BF16 || duetp_is_quantised(weights)) && mode == DUET_MODE_PARALLEL && c.stage == "wkv") return 0x1p-8;
  const bool rounded_inside = c.stage == "lowrank" || (c.stage == "channel_mix" && output == "x") || output == "logits";
  if (!rounded_inside) return 2e-5;
  return weights == DUET_BF16 ? 0x1p-6 : duetp_is_quantised(weights) ? 0x1p-5 : 2e-5;
}

double network_tolerance(duet_dtype weights) { return weights == DUET_BF16 ? 5e-2 : duetp_is_quantised(weights) ? 0.15 : 2e-4; }

Verdict compare(const Outcome::Output& got, const Outcome::Output& want, const std::string& name, double limit) {
  const std::vector<float> got_values = decode(got.bytes, got.dtype), want_values = decode(want.bytes, want.dtype);
  Verdict v{distance(got_values, want_values), limit, name, fault_of(got, want, got_values, want_values, name)};
  if (v.fault.empty() && !(v.worst <= limit)) {
    const size_t first = first_beyond(limit, got_values, want_values);
    v.fault = duet::format("{}: {:.2g} from the reference, more than {:.2g}; the first at row {}, column {}", name, v.worst, limit, first / want.columns,
                          first % want.columns);
  }
  return v;
}

Verdict compare_states(State& got, State& want, const Batch& b, double limit) {
  Verdict v;
  v.limit = limit;
  std::vector<bool> named(got.n_slots());
  for (size_t i = 0; i < b.slots.size(); ++i)
    if (b.slots[i] >= 0 && b.lengths[i] > 0) named[static_cast<size_t>(b.slots[i])] = true;
  for (uint32_t slot = 0; slot < got.n_slots(); ++slot) {
    const std::vector<float> g = got.slot(slot);
    if (!named[slot]) {
      const std::vector<float> before = got.initial(slot);
      if (std::memcmp(g.data(), before.data(), g.size() * sizeof(float)) != 0 && v.fault.empty())
        v.fault = duet::format("the state: slot {} changed, which no token belongs to", slot);
      continue;
    }
    const std::vector<float> w = want.slot(slot);
    const double d = distance(g, w);
    if (v.where.empty() || d > v.worst) v.worst = d, v.where = "the state";
    if (!(d <= limit) && v.fault.empty())
      v.fault = duet::format("the state: slot {} is {:.2g} from the reference, more than {:.2g}; the first in {}", slot, d, limit,
                            got.place(first_beyond(limit, g, w)));
  }
  return v;
}

}  // namespace conform
