// Tests and times wkv_sequential and wkv_chunked. From the root of the repository:
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -Ibackends -Iapi -Isdk/include backends/cuda/lab/wkv.cu
//     backends/cuda/wkv_chunked.cu backends/gpu/wkv_sequential.cu -o wkv_lab
//   ./wkv_lab           everything; "test", "time" or "plans" for a part, "time" being all but the search among plans
// Errors are relative, in the L2 norm, against f64 on the host. Exit code 1 when a case fails. notes.md in this folder has what was learnt.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/wkv_chunked.h"
#include "duet_stage.h"
#include "gpu/wkv.h"

namespace {

using duet_cuda::WkvPlan;
using duet_gpu::Wkv;

int failures = 0;

bool check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return true;
  std::printf("FAIL %s: %s\n", what, cudaGetErrorString(error));
  std::fflush(stdout);
  ++failures;
  cudaGetLastError();
  return false;
}
// After such an error nothing on the device works any more.
void check_or_quit(cudaError_t error, const char* what) {
  if (!check(error, what)) std::exit(1);
}

// Device memory of n elements, which ends with its scope.
template <class T>
struct Device {
  T* data = nullptr;
  size_t count;
  explicit Device(size_t n) : count(n) { check_or_quit(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T)), "cudaMalloc"); }
  explicit Device(const std::vector<T>& from) : Device(from.size()) {
    check_or_quit(cudaMemcpy(data, from.data(), count * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data); }
  std::vector<T> read() const {
    std::vector<T> to(count);
    check_or_quit(cudaMemcpy(to.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "copy to the host");
    return to;
  }
};

enum class Data {
  kUniform,  // r, k, v in +-3, w_raw in -6..0, a in 0..1, kk a random direction, state in +-10
  kFastest,  // the same with the smallest decay
  kSlow,     // the same with w_raw -12: nothing is forgotten but by the delta rule
  kAlike,    // keys with a common direction, k along kk: most of what is written replaces what is there
};
const char* const kDataName[] = {"uniform", "fastest", "slow", "alike"};

struct Case {
  uint32_t n_head, head_size;
  std::vector<int> lengths;
  std::vector<int> slots;  // of each; -1: none
  uint32_t n_slots;
  Data data;
  uint32_t spare_tokens = 3, spare_seqs = 2;  // capacities beyond what is used
  duet_dtype stored = DUET_F32;               // of the state
};

struct Host {
  std::vector<float> r, w_raw, k, v, kk, a, state;
  std::vector<double> y, final_state;
};

constexpr uint64_t kSlotPadding = 12;  // elements between slots, which nobody may touch

Host make(const Case& c) {
  Host h;
  const uint64_t width = uint64_t{c.n_head} * c.head_size, n = c.head_size;
  uint64_t tokens = 0;
  for (int l : c.lengths) tokens += l;
  std::mt19937 random(1234 + tokens);
  std::uniform_real_distribution<float> uniform(0, 1);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>& x, float low, float high) {
    x.resize(tokens * width);
    for (float& e : x) e = low + (high - low) * uniform(random);
  };
  fill(h.r, -3, 3);
  fill(h.w_raw, -6, 0);
  fill(h.k, -3, 3);
  fill(h.v, -3, 3);
  fill(h.a, 0, 1);
  h.kk.resize(tokens * width);
  for (uint64_t at = 0; at < tokens * width; at += n) {
    double sum = 0;
    for (uint64_t i = 0; i < n; ++i) {
      h.kk[at + i] = normal(random) + (c.data == Data::kAlike ? 1.0f : 0.0f);
      sum += double{h.kk[at + i]} * h.kk[at + i];
    }
    for (uint64_t i = 0; i < n; ++i) {
      h.kk[at + i] /= static_cast<float>(std::sqrt(std::max(sum, 1e-24)));
      if (c.data == Data::kAlike) h.k[at + i] = h.kk[at + i] * (0.5f + h.a[at + i]), h.a[at + i] = 1 - 0.1f * h.a[at + i];
    }
  }
  if (c.data == Data::kFastest) std::fill(h.w_raw.begin(), h.w_raw.end(), 100.0f);
  if (c.data == Data::kSlow) std::fill(h.w_raw.begin(), h.w_raw.end(), -12.0f);
  h.state.resize(c.n_slots * (width * n + kSlotPadding));
  for (float& e : h.state) e = duetp_stored(-10 + 20 * uniform(random), c.stored);
  h.y.resize(tokens * width);
  h.final_state.assign(h.state.begin(), h.state.end());

  uint64_t first = 0;
  for (size_t s = 0; s < c.lengths.size(); first += c.lengths[s++]) {
    for (uint64_t head = 0; head < c.n_head; ++head) {
      std::vector<double> state(n * n);
      double* const slot = c.slots[s] < 0 ? nullptr : &h.final_state[c.slots[s] * (width * n + kSlotPadding) + head * n * n];
      if (slot) std::copy(slot, slot + n * n, state.begin());
      for (int t = 0; t < c.lengths[s]; ++t) {
        const uint64_t at = (first + t) * width + head * n;
        std::vector<double> w(n), beta(n);
        for (uint64_t j = 0; j < n; ++j) {
          w[j] = std::exp(-std::exp(-0.5) / (1 + std::exp(-double{h.w_raw[at + j]})));
          beta[j] = double{h.kk[at + j]} * h.a[at + j];
        }
        for (uint64_t i = 0; i < n; ++i) {
          double u = 0, y = 0;
          double* const row = &state[i * n];
          for (uint64_t j = 0; j < n; ++j) u -= row[j] * h.kk[at + j];
          for (uint64_t j = 0; j < n; ++j) {
            row[j] = row[j] * w[j] + u * beta[j] + double{h.v[at + i]} * h.k[at + j];
            y += row[j] * h.r[at + j];
          }
          h.y[at + i] = y;
        }
      }
      if (slot && c.lengths[s] > 0) std::copy(state.begin(), state.end(), slot);
    }
  }
  return h;
}

double relative(const float* x, const double* exact, uint64_t n) {
  double difference = 0, norm = 0;
  for (uint64_t i = 0; i < n; ++i) {
    difference += (x[i] - exact[i]) * (x[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// Runs the case twice by `run` and prints one line.
template <class Run>
void test(const std::string& name, const Case& c, const Host& h, double bound, Run run) {
  const uint64_t width = uint64_t{c.n_head} * c.head_size, tokens = h.y.size() / width, capacity = tokens + c.spare_tokens;
  const uint64_t head = uint64_t{c.head_size} * c.head_size, stride = c.n_head * head + kSlotPadding;
  const auto nan_beyond = [&](const std::vector<float>& x) {  // what is not used is poison
    std::vector<float> padded(capacity * width, std::nanf(""));
    std::copy(x.begin(), x.end(), padded.begin());
    return padded;
  };
  Device<float> r(nan_beyond(h.r)), w_raw(nan_beyond(h.w_raw)), k(nan_beyond(h.k)), v(nan_beyond(h.v)), kk(nan_beyond(h.kk)), a(nan_beyond(h.a));
  std::vector<int32_t> starts(1, 0), slots(c.slots.begin(), c.slots.end());
  int longest = 0;
  for (int l : c.lengths) starts.push_back(starts.back() + l), longest = std::max(longest, l);
  const std::vector<int32_t> used = {starts.back(), static_cast<int32_t>(c.lengths.size()), 0};
  for (uint32_t i = 0; i < c.spare_seqs; ++i) starts.push_back(1 << 30), slots.push_back(1 << 28);  // a crash, if they were used
  Device<int32_t> used_there(used), starts_there(starts), slots_there(slots);

  std::vector<float> y[2], state[2];
  for (int i = 0; i < 2; ++i) {
    Device<float> y_there(capacity * width), state_there(h.state);
    std::vector<uint16_t> half(h.state.size());
    for (size_t e = 0; e < half.size(); ++e) half[e] = c.stored == DUET_BF16 ? duetp_bf16_of_f32(h.state[e]) : duetp_f16_of_f32(h.state[e]);
    Device<uint16_t> half_there(half);
    check_or_quit(cudaMemset(y_there.data, 0xff, capacity * width * sizeof(float)), "cudaMemset");
    Wkv args{r.data,
             w_raw.data,
             k.data,
             v.data,
             kk.data,
             a.data,
             y_there.data,
             c.stored == DUET_F32 ? static_cast<void*>(state_there.data) : half_there.data,
             c.stored,
             stride,
             used_there.data,
             starts_there.data,
             slots_there.data,
             static_cast<uint32_t>(capacity),
             static_cast<uint32_t>(slots.size()),
             static_cast<uint32_t>(longest),
             c.n_head,
             c.head_size};
    if (!check(run(args), name.c_str())) return;
    check_or_quit(cudaDeviceSynchronize(), name.c_str());
    y[i] = y_there.read();
    state[i] = state_there.read();
    half = half_there.read();
    for (size_t e = 0; e < half.size() && c.stored != DUET_F32; ++e) state[i][e] = c.stored == DUET_BF16 ? duetp_f32_of_bf16(half[e]) : duetp_f32_of_f16(half[e]);
  }
  const bool same = std::memcmp(y[0].data(), y[1].data(), y[0].size() * sizeof(float)) == 0 &&
                    std::memcmp(state[0].data(), state[1].data(), state[0].size() * sizeof(float)) == 0;
  bool untouched = true;
  for (uint64_t i = tokens * width; i < capacity * width; ++i) untouched = untouched && std::isnan(y[0][i]);
  double worst_state = 0;
  std::vector<bool> written(h.state.size());
  for (size_t s = 0; s < c.lengths.size(); ++s) {
    if (c.slots[s] < 0 || c.lengths[s] == 0) continue;
    for (uint64_t i = 0; i < c.n_head; ++i) {
      const uint64_t at = c.slots[s] * stride + i * head;
      const double error = relative(&state[0][at], &h.final_state[at], head);
      if (!(error <= worst_state)) worst_state = error;
      std::fill(written.begin() + at, written.begin() + at + head, true);
    }
  }
  for (size_t i = 0; i < written.size(); ++i) untouched = untouched && (written[i] || state[0][i] == h.state[i]);
  const double error = relative(y[0].data(), h.y.data(), tokens * width);
  const double rounding = c.stored == DUET_BF16 ? 0x1p-8 : c.stored == DUET_F16 ? 0x1p-11 : 0;
  const bool passed = error <= bound && worst_state <= bound + rounding && same && untouched;
  failures += !passed;
  std::printf("%s %-64s y %.2e  state %.2e%s%s\n", passed ? "ok  " : "FAIL", name.c_str(), error, worst_state, same ? "" : "  NOT REPEATABLE",
              untouched ? "" : "  WROTE ELSEWHERE");
  std::fflush(stdout);
}

std::string describe(const Case& c) {
  std::string s = (c.stored == DUET_F32 ? "" : c.stored == DUET_F16 ? "f16 " : "bf16 ") + std::string("N") + std::to_string(c.head_size) + " H" + std::to_string(c.n_head) + " " + kDataName[static_cast<int>(c.data)] + " T";
  for (size_t i = 0; i < c.lengths.size() && i < 9; ++i) s += (i ? "," : "") + std::to_string(c.lengths[i]);
  return c.lengths.size() > 9 ? s + ",.." : s;
}
std::string describe(const WkvPlan& p) {
  return "slice " + std::to_string(p.slice) + " producers " + std::to_string(p.producers) + " stages " + std::to_string(p.stages) +
         (p.segment ? " segment " + std::to_string(p.segment) : "");
}

// Scratch memory is poison before, and must be so behind its end.
cudaError_t run_plan(const Wkv& a, const WkvPlan& plan) {
  const uint64_t bytes = duet_cuda::wkv_scratch_bytes(plan, a.n_tokens, a.n_seqs, a.n_head, a.head_size), behind = 4096;
  Device<unsigned char> scratch(bytes + behind);
  check_or_quit(cudaMemset(scratch.data, 0xff, bytes + behind), "cudaMemset");
  const cudaError_t error = duet_cuda::wkv_chunked(a, plan, scratch.data, nullptr);
  if (error != cudaSuccess) return error;
  check_or_quit(cudaDeviceSynchronize(), "wkv_chunked");
  const std::vector<unsigned char> after = scratch.read();
  if (std::all_of(after.begin() + static_cast<int64_t>(bytes), after.end(), [](unsigned char x) { return x == 0xff; })) return cudaSuccess;
  std::printf("FAIL wrote behind the scratch memory\n");
  ++failures;
  return cudaSuccess;
}

constexpr double kChunkedBound = 1e-3, kSequentialBound = 1e-5;

void test_one(const Case& c, bool sequential, bool chunked) {
  const Host h = make(c);
  if (sequential)
    test("sequential " + describe(c), c, h, c.head_size == 1 ? 1e-3 : kSequentialBound,  // the sums of one head of one channel may cancel
         [](const Wkv& a) { return duet_gpu::wkv_sequential(a, nullptr); });
  if (chunked) test("chunked " + describe(c), c, h, kChunkedBound, [](const Wkv& a) { return duet_cuda::wkv_chunked(a, nullptr, nullptr); });
}

void test_plans(const Case& c, const std::vector<WkvPlan>& plans) {
  const Host h = make(c);
  for (const WkvPlan& p : plans) test("chunked " + describe(c) + " " + describe(p), c, h, kChunkedBound, [&](const Wkv& a) { return run_plan(a, p); });
}

Case single(uint32_t n_head, uint32_t head_size, int length, Data data = Data::kUniform) { return {n_head, head_size, {length}, {1}, 3, data}; }

void test_segments(const Case& pack) {
  const std::vector<WkvPlan> plans = {{64, 8, 9, 64}, {64, 2, 3, 48}, {32, 4, 9, 96}, {16, 10, 10, 112}, {64, 8, 8, 16}};
  for (int t : {63, 64, 65, 127, 128, 129, 192, 193, 777}) test_plans(single(2, 64, t), {plans[0]});
  test_plans(single(1, 64, 200), plans);
  test_plans(pack, plans);
  Case ragged{3, 64, {300, 0, 64, 65, 1, 129, 130, 17}, {4, 2, -1, 0, 6, 1, -1, 3}, 8, Data::kUniform};
  test_plans(ragged, plans);
  for (Data d : {Data::kFastest, Data::kSlow, Data::kAlike}) test_plans(single(2, 64, 1000, d), {plans[0], plans[4]});
  test_plans(single(2, 32, 300), {{32, 8, 10, 64}, {16, 3, 4, 32}});
  const Case chosen = single(3, 64, 2000);  // long enough for segments to be taken
  const Host h = make(chosen);
  test("chunked, plan with segments " + describe(chosen), chosen, h, kChunkedBound,
       [](const Wkv& a) { return run_plan(a, duet_cuda::wkv_plan(a.n_tokens, a.n_seqs, a.n_head, a.head_size, true)); });
}

void test_all() {
  for (int t : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65}) test_one(single(3, 64, t), true, true);
  test_one(single(1, 64, 1000), true, true);
  for (uint32_t n : {32u, 128u}) {
    for (int t : {1, 17, 200}) test_one(single(2, n, t), true, true);
  }
  for (uint32_t n : {1u, 2u, 5u, 15u, 16u, 17u, 40u, 100u, 192u, 255u, 256u}) test_one(single(2, n, 21), true, false);
  for (Data d : {Data::kFastest, Data::kSlow, Data::kAlike}) test_one(single(2, 64, 1000, d), true, true);
  test_one(single(1, 64, 4096, Data::kFastest), true, true);
  const Case pack{3, 64, {5, 0, 16, 1, 33, 0, 70}, {4, 2, -1, 0, 6, -1, 3}, 8, Data::kUniform};
  test_one(pack, true, true);
  test_plans(pack, {{64, 4, 4, 0}, {64, 1, 1, 0}, {32, 3, 3, 0}, {32, 2, 4, 0}, {16, 10, 10, 0}, {16, 2, 3, 0}, {16, 5, 7, 0}, {64, 2, 4, 0}});
  test_plans(single(2, 64, 777), {{64, 4, 4, 0}, {64, 1, 1, 0}, {32, 3, 3, 0}, {32, 2, 4, 0}, {16, 10, 10, 0}, {16, 2, 3, 0}, {16, 5, 7, 0}, {64, 3, 4, 0}});
  test_plans(single(1, 128, 100), {{128, 4, 4, 0}, {64, 2, 2, 0}, {16, 4, 5, 0}});
  test_plans(single(1, 32, 100), {{32, 4, 4, 0}, {16, 4, 9, 0}});
  test_segments(pack);
  for (const duet_dtype stored : {DUET_F16, DUET_BF16}) {
    Case c = pack;
    c.stored = stored;
    for (uint32_t n : {32u, 64u, 128u}) c.head_size = n, test_one(c, true, true);
    for (uint32_t n : {5u, 40u, 192u}) c.head_size = n, test_one(c, true, false);
    c.head_size = 64;
    test_plans(c, {{64, 8, 9, 64}, {16, 10, 10, 112}, {32, 3, 3, 0}});
  }
  Case many{2, 64, {}, {}, 300, Data::kUniform};
  Case decode = many;
  for (int i = 0; i < 290; ++i) {
    many.lengths.push_back(i % 7 * i % 40);
    many.slots.push_back(i % 11 == 3 ? -1 : 299 - i);
    decode.lengths.push_back(1);
    decode.slots.push_back(i % 11 == 3 ? -1 : 299 - i);
  }
  test_one(many, true, true);
  test_one(decode, true, true);
}

// ---- times ------------------------------------------------------------------------------------------------
__device__ float random_unit(uint64_t i) {
  uint64_t x = i * 0x9e3779b97f4a7c15ull + 0x632be59bd9b4e019ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<float>((x ^ (x >> 31)) >> 40) * 0x1p-24f;
}
__global__ void fill(float* x, uint64_t n, float low, float high, uint64_t seed) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < n; i += uint64_t{gridDim.x} * blockDim.x)
    x[i] = low + (high - low) * random_unit(i + (seed << 40));
}
__global__ void copy(const float4* from, float4* to, uint64_t n) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < n; i += uint64_t{gridDim.x} * blockDim.x) to[i] = from[i];
}

// Median over repetitions of the time of one of `batch` calls.
template <class Run>
double median_ms(int batch, Run run) {
  cudaEvent_t begin, end;
  check_or_quit(cudaEventCreate(&begin), "cudaEventCreate");
  check_or_quit(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < 2; ++i) check_or_quit(run(i), "launch");
  check_or_quit(cudaDeviceSynchronize(), "warm up");
  std::vector<float> times;
  for (int repetition = 0; repetition < 15; ++repetition) {
    check_or_quit(cudaEventRecord(begin), "cudaEventRecord");
    for (int i = 0; i < batch; ++i) check_or_quit(run(i), "launch");
    check_or_quit(cudaEventRecord(end), "cudaEventRecord");
    check_or_quit(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    check_or_quit(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    times.push_back(ms / batch);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

double copy_rate = 1;  // bytes read and written per ms

void measure_limit() {
  const uint64_t n = uint64_t{1} << 28;
  Device<float> from(n), to(n);
  fill<<<1024, 256>>>(from.data, n, -1, 1, 9);
  const double ms = median_ms(1, [&](int) {
    copy<<<132 * 16, 512>>>(reinterpret_cast<const float4*>(from.data), reinterpret_cast<float4*>(to.data), n / 4);
    return cudaGetLastError();
  });
  copy_rate = 2.0 * n * sizeof(float) / ms;
  std::printf("limit: copy of 1 GiB %.0f GB/s, read and written\n", copy_rate / 1e6);
}

// Inputs of several runs, more than the L2 holds, taken in turn.
struct Bench {
  uint32_t batch, length, n_head, head_size;
  uint64_t elements;
  int sets;
  Device<float> inputs, y, state;
  Device<int32_t> used, starts, slots;

  static std::vector<int32_t> ramp(uint32_t n, uint32_t step) {
    std::vector<int32_t> x(n);
    for (uint32_t i = 0; i < n; ++i) x[i] = static_cast<int32_t>(i * step);
    return x;
  }
  Bench(uint32_t b, uint32_t t, uint32_t h, uint32_t n)
      : batch(b),
        length(t),
        n_head(h),
        head_size(n),
        elements(uint64_t{b} * t * h * n),
        sets(static_cast<int>(std::clamp<uint64_t>((uint64_t{1} << 26) / elements, 1, 6))),
        inputs(6 * elements * sets),
        y(elements * sets),
        state(uint64_t{b} * h * n * n),
        used(std::vector<int32_t>{static_cast<int32_t>(b * t), static_cast<int32_t>(b), 0}),
        starts(ramp(b + 1, t)),
        slots(ramp(b, 1)) {
    const float low[6] = {-3, -6, -3, -3, -0.21f, 0}, high[6] = {3, 0, 3, 3, 0.21f, 1};  // kk of about unit length for 64 keys
    for (int s = 0; s < sets; ++s) {
      for (int i = 0; i < 6; ++i) fill<<<1024, 256>>>(inputs.data + (s * 6 + i) * elements, elements, low[i], high[i], s * 6 + i);
    }
    fill<<<1024, 256>>>(state.data, state.count, -1, 1, 99);
    check_or_quit(cudaDeviceSynchronize(), "inputs");
  }
  Wkv args(int i) const {
    const float* const x = inputs.data + uint64_t(i % sets) * 6 * elements;
    return {x,
            x + elements,
            x + 2 * elements,
            x + 3 * elements,
            x + 4 * elements,
            x + 5 * elements,
            y.data + uint64_t(i % sets) * elements,
            state.data,
            DUET_F32,
            uint64_t{n_head} * head_size * head_size,
            used.data,
            starts.data,
            slots.data,
            batch * length,
            batch,
            length,
            n_head,
            head_size};
  }
  double bytes() const { return 7.0 * elements * sizeof(float) + 2.0 * state.count * sizeof(float); }
  std::string name() const {
    return "B" + std::to_string(batch) + " T" + std::to_string(length) + " H" + std::to_string(n_head) + " N" + std::to_string(head_size);
  }
};

template <class Run>
void time_one(const Bench& b, const std::string& what, double target_ms, Run run) {
  const int batch = b.elements > (1 << 25) ? 1 : 6;
  const double ms = median_ms(batch, [&](int i) { return run(b.args(i)); });
  std::printf("time %-20s %-52s %8.4f ms  %6.0f MB  %5.1f %% of the copy rate  %7.1f ns a token", b.name().c_str(), what.c_str(), ms, b.bytes() / 1e6,
              100 * b.bytes() / ms / copy_rate, ms * 1e6 / b.length);
  if (target_ms > 0) std::printf("  target %.3f %s", target_ms, ms <= target_ms ? "met" : "MISSED");
  std::printf("\n");
  std::fflush(stdout);
}

// Nothing for a plan that does not fit.
void time_plan(const Bench& b, const WkvPlan& p, double target_ms) {
  const Wkv first = b.args(0);
  Device<unsigned char> scratch(duet_cuda::wkv_scratch_bytes(p, first.n_tokens, first.n_seqs, first.n_head, first.head_size));
  const cudaError_t error = duet_cuda::wkv_chunked(first, p, scratch.data, nullptr);
  if (error != cudaSuccess) {
    std::printf("     %-20s %-42s not launched: %s\n", b.name().c_str(), describe(p).c_str(), cudaGetErrorString(error));
    return;
  }
  time_one(b, "chunked " + describe(p), target_ms, [&](const Wkv& a) { return duet_cuda::wkv_chunked(a, p, scratch.data, nullptr); });
}

struct Size {
  uint32_t batch, length, n_head, head_size;
  double target_ms;
};
const Size kSizes[] = {{8, 4096, 32, 64, 0.9}, {8, 4096, 64, 64, 0},    {8, 4096, 12, 64, 0},    {1, 65536, 32, 64, 3.0},
                       {1, 4096, 32, 64, 0},   {1, 2048, 64, 64, 0.15}, {1, 2048, 32, 64, 0.12}, {1, 2048, 12, 64, 0.07},
                       {1, 512, 32, 64, 0},    {64, 64, 32, 64, 0},     {8, 4096, 64, 32, 0},    {8, 4096, 16, 128, 0}};

void time_all() {
  for (uint32_t batch : {1u, 32u, 128u, 512u}) {
    const Bench b(batch, 1, 64, 64);
    time_one(b, "sequential", batch == 512 ? b.bytes() / (0.9 * copy_rate) : 0, [](const Wkv& a) { return duet_gpu::wkv_sequential(a, nullptr); });
  }
  for (const Size& s : kSizes) {
    const Bench b(s.batch, s.length, s.n_head, s.head_size);
    for (bool segments : {false, true}) {
      const WkvPlan p = duet_cuda::wkv_plan(s.batch * s.length, s.batch, s.n_head, s.head_size, segments);
      if (segments && p.segment == 0) continue;
      time_plan(b, p, s.target_ms);
    }
    if (s.length <= 2048) time_one(b, "sequential", 0, [](const Wkv& a) { return duet_gpu::wkv_sequential(a, nullptr); });
  }
}

// Which plan is best where.
void time_plans() {
  for (const Size& s : kSizes) {
    if (s.head_size != 64) continue;
    const Bench b(s.batch, s.length, s.n_head, s.head_size);
    const uint32_t pairs = s.batch * s.n_head;
    for (const WkvPlan& p : std::initializer_list<WkvPlan>{
             {64, 2, 4, 0}, {64, 4, 4, 0}, {64, 8, 9, 0}, {32, 4, 4, 0}, {32, 9, 9, 0}, {16, 3, 10, 0}, {16, 5, 10, 0}, {16, 10, 10, 0}})
      time_plan(b, p, 0);
    for (uint32_t segments : {2u, 3u, 4u, 5u, 6u, 9u, 12u, 16u, 23u}) {
      const uint32_t length = (s.length / 16 + segments - 1) / segments * 16;
      if (pairs * (segments - 1) > 264 || length < 48) continue;
      for (const WkvPlan& p : std::initializer_list<WkvPlan>{{64, 4, 9, length}, {64, 8, 9, length}, {32, 9, 9, length}}) time_plan(b, p, 0);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string part = argc > 1 ? argv[1] : "all";
  cudaDeviceProp device;
  check_or_quit(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
  if (part == "all" || part == "test") test_all();
  if (part != "test") measure_limit();
  if (part == "all" || part == "time") time_all();
  if (part == "all" || part == "plans") time_plans();
  std::printf("%s: %d failed\n", failures ? "FAIL" : "ok", failures);
  return failures ? 1 : 0;
}
