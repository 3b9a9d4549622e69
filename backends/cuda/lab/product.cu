// Checks the products of few rows, and those with quantised weights, against double precision on many shapes:
//   nvcc -std=c++20 -O2 -arch=native -Ibackends/cuda -Ibackends -Iapi -Isdk/include backends/cuda/lab/product.cu backends/cuda/*product*.cu backends/cuda/quantised_many.cu -o product && ./product
// Outputs start as NaN, rows beyond those in use must stay so, and a second run must give the same bits.
#include "duet_quantised.h"
#include "product.h"
#include "timing.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

using namespace duet_cuda;

namespace {

uint64_t state = 88172645463325252ull;
float uniform() {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
}

struct Tensor {
  duet_dtype dtype;
  std::vector<double> value;  // as stored, after rounding
  void* device = nullptr;
  uint64_t bytes = 0;
  Tensor(duet_dtype t, size_t n, double zeros = 0, float scale = 1) : dtype(t), value(n) {
    std::vector<char> raw(n * (t == DUET_F32 ? 4 : 2));
    bytes = raw.size();
    for (size_t i = 0; i < n; ++i) {
      const float v = uniform() * 0.5f + 0.5f < zeros ? 0 : uniform() * scale;
      if (t == DUET_F32) std::memcpy(&raw[4 * i], &v, 4), value[i] = v;
      if (t == DUET_BF16) {
        const __nv_bfloat16 h = __float2bfloat16_rn(v);
        std::memcpy(&raw[2 * i], &h, 2), value[i] = __bfloat162float(h);
      }
      if (t == DUET_F16) {
        const __half h = __float2half_rn(v);
        std::memcpy(&raw[2 * i], &h, 2), value[i] = __half2float(h);
      }
    }
    if (cudaMalloc(&device, bytes) != cudaSuccess) std::printf("out of memory\n"), std::exit(1);
    cudaMemcpy(device, raw.data(), bytes, cudaMemcpyHostToDevice);
  }
  ~Tensor() { cudaFree(device); }
  Tensor(const Tensor&) = delete;
};

double decode(const std::vector<char>& raw, bool bf16, size_t i) {
  if (!bf16) return reinterpret_cast<const float*>(raw.data())[i];
  uint32_t u = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(raw.data())[i]) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

double apply(Finish f, double p) {
  switch (f) {
    case Finish::tanh_input: return std::tanh(p);
    case Finish::sigmoid_input: return 1 / (1 + std::exp(-p));
    case Finish::relu_squared_input: return p > 0 ? p * p : 0;
    default: return p;
  }
}

int failures = 0, cases = 0;
double worst = 0;

void report(double error, double limit, const char* what, uint32_t rows, uint32_t used, uint32_t n_in, uint32_t n_out, duet_dtype t, bool same) {
  ++cases;
  worst = std::max(worst, error / limit);
  if (error <= limit && same) return;
  ++failures;
  if (failures < 40) std::printf("FAILED %s: rows %u of %u, in %u, out %u, dtype %d: error %.3g, limit %.3g%s\n", what, used, rows, n_in, n_out, t, error, limit, same ? "" : ", other bits the second time");
}

int32_t* used_counts(uint32_t n) {
  int32_t *d = nullptr, h[3] = {static_cast<int32_t>(n), 0, 0};
  cudaMalloc(&d, sizeof h);
  cudaMemcpy(d, h, sizeof h, cudaMemcpyHostToDevice);
  return d;
}

void check_group(uint32_t rows, uint32_t used, uint32_t n_in, uint32_t n_out, duet_dtype t) {
  const bool bf16 = t == DUET_BF16;
  const Finish finishes[] = {Finish::store, Finish::add, Finish::tanh_input, Finish::input, Finish::sigmoid_input, Finish::relu_squared_input};
  std::vector<std::unique_ptr<Tensor>> w, x;
  std::vector<void*> y(6);
  Products p{};
  std::vector<std::vector<char>> first(6);
  std::vector<std::vector<float>> before(6);
  p.used = used_counts(used);
  p.n_rows = rows;
  p.weights = t;
  p.n = 6;
  for (int i = 0; i < 6; ++i) {
    const uint32_t out = i % 2 ? n_out : (n_out + 1) / 2 + 3;
    w.push_back(std::make_unique<Tensor>(t, size_t{out} * n_in));
    x.push_back(std::make_unique<Tensor>(bf16 ? DUET_BF16 : DUET_F32, size_t{rows} * n_in, 0, 1 / std::sqrt(float(n_in))));
    before[i].resize(size_t{rows} * out);
    for (float& f : before[i]) f = finishes[i] == Finish::add ? uniform() : NAN;
    cudaMalloc(&y[i], before[i].size() * 4);
    p.item[i] = {w[i]->device, x[i]->device, y[i], out, n_in, finishes[i]};
  }
  bool same = true;
  for (int run = 0; run < 2; ++run) {
    for (int i = 0; i < 6; ++i) {
      cudaMemcpy(y[i], before[i].data(), before[i].size() * 4, cudaMemcpyHostToDevice);
      if (finishes[i] != Finish::add) cudaMemset(y[i], 0xff, before[i].size() * 4);
    }
    const Error e = products(p, nullptr);
    const Error s = cudaDeviceSynchronize();
    if (e != cudaSuccess || s != cudaSuccess) std::printf("FAILED products: %s %s (rows %u in %u out %u dtype %d)\n", cudaGetErrorString(e), cudaGetErrorString(s), rows, n_in, n_out, t), std::exit(1);
    for (int i = 0; i < 6; ++i) {
      std::vector<char> raw(before[i].size() * 4);
      cudaMemcpy(raw.data(), y[i], raw.size(), cudaMemcpyDeviceToHost);
      if (run == 0) first[i] = raw;
      same = same && std::memcmp(raw.data(), first[i].data(), raw.size()) == 0;
    }
  }
  for (int i = 0; i < 6; ++i) {
    const uint32_t out = p.item[i].n_out;
    const bool as_input = finishes[i] != Finish::store && finishes[i] != Finish::add, half = as_input && bf16;
    double error = 0;
    for (uint32_t r = 0; r < rows; ++r)
      for (uint32_t o = 0; o < out; ++o) {
        const double got = decode(first[i], half, size_t{r} * out + o);
        if (r >= used) {
          const bool untouched = finishes[i] == Finish::add ? got == before[i][size_t{r} * out + o] : std::isnan(got);
          if (!untouched) error = 1e9;
          continue;
        }
        double sum = 0;
        for (uint32_t k = 0; k < n_in; ++k) sum += w[i]->value[size_t{o} * n_in + k] * x[i]->value[size_t{r} * n_in + k];
        double want = apply(finishes[i], sum);
        if (finishes[i] == Finish::add) want += before[i][size_t{r} * out + o];
        const double e = std::fabs(got - want);
        error = e <= error ? error : e;  // NaN gets through
        if (std::isnan(e)) error = 1e9;
      }
    report(error, half ? 8e-3 : 1e-5, "products", rows, used, n_in, out, t, same);
    cudaFree(y[i]);
  }
  cudaFree(const_cast<int32_t*>(p.used));
}

void check_skipping(uint32_t rows, uint32_t used, uint32_t n_in, uint32_t n_out, duet_dtype t, double zeros) {
  Tensor w(t, size_t{n_in} * n_out), u(t == DUET_BF16 ? DUET_BF16 : DUET_F32, size_t{rows} * n_in, zeros, 1 / std::sqrt(float(n_in)));
  std::vector<float> before(size_t{rows} * n_out), got(before.size()), second(before.size());
  for (float& f : before) f = uniform();
  SkippingProduct p{};
  p.w = w.device, p.u = u.device;
  p.n_in = n_in, p.n_out = n_out, p.n_rows = rows, p.weights = t;
  p.used = used_counts(used);
  void *tickets = nullptr, *parts = nullptr;
  const SkippingScratch bytes = skipping_scratch(p);
  cudaMalloc(&p.x, before.size() * 4), cudaMalloc(&tickets, bytes.tickets + 1), cudaMalloc(&parts, bytes.parts + 1);
  cudaMemset(tickets, 0, bytes.tickets + 1), cudaMemset(parts, 0xff, bytes.parts + 1);
  for (std::vector<float>* out : {&got, &second}) {
    cudaMemcpy(p.x, before.data(), before.size() * 4, cudaMemcpyHostToDevice);
    const Error e = skipping_product(p, tickets, parts, nullptr), s = cudaDeviceSynchronize();
    if (e != cudaSuccess || s != cudaSuccess) std::printf("FAILED skipping_product: %s %s (rows %u in %u out %u dtype %d)\n", cudaGetErrorString(e), cudaGetErrorString(s), rows, n_in, n_out, t), std::exit(1);
    cudaMemcpy(out->data(), p.x, before.size() * 4, cudaMemcpyDeviceToHost);
  }
  double error = 0;
  for (uint32_t r = 0; r < rows; ++r)
    for (uint32_t c = 0; c < n_out; ++c) {
      double want = before[size_t{r} * n_out + c];
      for (uint32_t f = 0; r < used && f < n_in; ++f) want += u.value[size_t{r} * n_in + f] * w.value[size_t{f} * n_out + c];
      const double e = std::fabs(got[size_t{r} * n_out + c] - want);
      error = e <= error ? error : e;
      if (std::isnan(e)) error = 1e9;
    }
  report(error, 1e-5, "skipping_product", rows, used, n_in, n_out, t, std::memcmp(got.data(), second.data(), got.size() * 4) == 0);
  cudaFree(p.x), cudaFree(tickets), cudaFree(parts), cudaFree(const_cast<int32_t*>(p.used));
}

// ---- q8 and q4 ----

// Random in its stored form, what pads it too: nothing may come of that.
struct QuantisedMatrix {
  std::vector<double> value;  // [out, in]
  void *w = nullptr, *scale = nullptr, *minimum = nullptr;
  QuantisedMatrix(duet_dtype t, uint32_t out, uint32_t in) : value(size_t{out} * in) {
    const duetp_quantised_form form = duetp_form_of(DUETP_T_KEY, t, out, in);
    const float step = t == DUET_I8 ? 1 / 127.0f : 1 / 7.5f;
    std::vector<int8_t> q(form.bytes);
    std::vector<__nv_bfloat16> scales(form.scales), minimums(form.scales);
    for (int8_t& i : q) i = static_cast<int8_t>(uniform() * 127.9f);
    for (auto& s : scales) s = __float2bfloat16_rn(step * (0.75f + 0.25f * uniform()));
    for (auto& m : minimums) m = __float2bfloat16_rn(-0.75f + 0.25f * uniform());
    duetp_tensor tensor{};
    tensor.id = DUETP_T_KEY, tensor.dtype = t, tensor.data = q.data(), tensor.scale = scales.data(), tensor.minimum = minimums.data();
    for (uint32_t o = 0; o < out; ++o)
      for (uint32_t i = 0; i < in; ++i) value[size_t{o} * in + i] = duetp_quantised_weight(&tensor, &form, o, i);
    const auto put = [](void*& to, const void* from, uint64_t n) {
      if (cudaMalloc(&to, n) != cudaSuccess) std::printf("out of memory\n"), std::exit(1);
      cudaMemcpy(to, from, n, cudaMemcpyHostToDevice);
    };
    put(w, q.data(), form.bytes), put(scale, scales.data(), 2 * form.scales);
    if (t == DUET_I4) put(minimum, minimums.data(), 2 * form.scales);
  }
  ~QuantisedMatrix() { cudaFree(w), cudaFree(scale), cudaFree(minimum); }
  QuantisedMatrix(const QuantisedMatrix&) = delete;
};

// f32, with groups of zeros and of what is too small to be rounded; `value` is what rounding makes of it.
struct QuantisedInput {
  std::vector<double> value;
  float* device = nullptr;
  QuantisedInput(uint32_t rows, uint32_t n, bool infinite) : value(size_t{rows} * n) {
    std::vector<float> x(value.size());
    for (uint32_t r = 0; r < rows; ++r)
      for (uint32_t at = 0; at < n; at += DUETP_QUANTISED_GROUP) {
        const uint32_t count = std::min<uint32_t>(DUETP_QUANTISED_GROUP, n - at);
        float* group = &x[size_t{r} * n + at];
        const float choice = uniform(), size = choice > 0.95f ? 0 : choice > 0.9f ? 1e-32f : 1 / std::sqrt(float(n));
        for (uint32_t i = 0; i < count; ++i) group[i] = size * uniform();
        if (infinite && r == 0 && at == 0) group[0] = INFINITY;
        int8_t q[DUETP_QUANTISED_GROUP];
        float scale = 0;
        duetp_round_input(group, count, q, &scale);
        for (uint32_t i = 0; i < count; ++i) value[size_t{r} * n + at + i] = double{scale} * q[i];
      }
    if (cudaMalloc(&device, x.size() * 4) != cudaSuccess) std::printf("out of memory\n"), std::exit(1);
    cudaMemcpy(device, x.data(), x.size() * 4, cudaMemcpyHostToDevice);
  }
  ~QuantisedInput() { cudaFree(device); }
  QuantisedInput(const QuantisedInput&) = delete;
};

// Six products with every finish, two of them of one input, or one alone that adds.
void check_quantised(uint32_t rows, uint32_t used, uint32_t n_in, uint32_t n_out, duet_dtype t, bool alone, bool infinite = false) {
  const Finish finishes[] = {Finish::add, Finish::store, Finish::tanh_input, Finish::input, Finish::sigmoid_input, Finish::relu_squared_input};
  const uint32_t n = alone ? 1 : 6;
  std::vector<std::unique_ptr<QuantisedMatrix>> w;
  std::vector<std::shared_ptr<QuantisedInput>> x;
  std::vector<std::vector<float>> before(n), got(n), first(n);
  Products p{};
  p.used = used_counts(used);
  p.n_rows = rows;
  p.weights = t;
  p.n = n;
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t in = i % 3 == 2 ? n_in / 2 + 1 : n_in, out = i % 2 ? (n_out + 1) / 2 + 3 : n_out;
    w.push_back(std::make_unique<QuantisedMatrix>(t, out, in));
    x.push_back(i == 1 ? x[0] : std::make_shared<QuantisedInput>(rows, in, infinite && i == 0));
    before[i].resize(size_t{rows} * out);
    for (float& f : before[i]) f = finishes[i] == Finish::add ? uniform() : NAN;
    void* y = nullptr;
    cudaMalloc(&y, before[i].size() * 4);
    p.item[i] = {w[i]->w, x[i]->device, y, out, in, finishes[i], w[i]->scale, w[i]->minimum};
  }
  const uint64_t scratch = products_scratch(p);
  if (cudaMalloc(&p.rounded, scratch + 1) != cudaSuccess) std::printf("out of memory\n"), std::exit(1);
  cudaMemset(p.rounded, 0xff, scratch + 1);
  bool same = true;
  for (int run = 0; run < 2; ++run) {
    for (uint32_t i = 0; i < n; ++i) cudaMemcpy(p.item[i].y, before[i].data(), before[i].size() * 4, cudaMemcpyHostToDevice);
    const Error e = products(p, nullptr), s = cudaDeviceSynchronize();
    if (e != cudaSuccess || s != cudaSuccess) std::printf("FAILED products: %s %s (rows %u in %u out %u dtype %d)\n", cudaGetErrorString(e), cudaGetErrorString(s), rows, n_in, n_out, t), std::exit(1);
    for (uint32_t i = 0; i < n; ++i) {
      got[i].resize(before[i].size());
      cudaMemcpy(got[i].data(), p.item[i].y, got[i].size() * 4, cudaMemcpyDeviceToHost);
      if (run == 0) first[i] = got[i];
      same = same && std::memcmp(got[i].data(), first[i].data(), got[i].size() * 4) == 0;
    }
  }
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t out = p.item[i].n_out, in = p.item[i].n_in;
    double error = 0;
    for (uint32_t r = 0; r < rows; ++r)
      for (uint32_t o = 0; o < out; ++o) {
        const size_t at = size_t{r} * out + o;
        double want = 0;
        for (uint32_t k = 0; r < used && k < in; ++k) want += w[i]->value[size_t{o} * in + k] * x[i]->value[size_t{r} * in + k];
        want = r < used ? apply(finishes[i], want) + (finishes[i] == Finish::add ? before[i][at] : 0) : double{before[i][at]};
        const double e = std::isnan(want) ? (std::isnan(got[i][at]) ? 0 : 1e9) : std::fabs(got[i][at] - want);
        error = std::max(error, std::isnan(e) || (r >= used && e != 0) ? 1e9 : e);
      }
    report(error, 1e-5, alone ? "quantised product" : "quantised products", rows, used, in, out, t, same);
    cudaFree(p.item[i].y);
  }
  cudaFree(p.rounded), cudaFree(const_cast<int32_t*>(p.used));
}

void check_all_quantised() {
  cases = 0, worst = 0;
  for (const duet_dtype t : {DUET_I8, DUET_I4}) {
    for (const uint32_t rows : {1u, 2u, 7u, 8u, 9u, 16u, 17u, 33u, 64u, 65u, 130u, 200u})
      for (const uint32_t n_in : {5u, 64u, 100u, 130u, 768u, 1001u, 2100u})
        for (const uint32_t n_out : {5u, 37u, 130u, 768u}) {
          if (uint64_t{rows} * n_in * n_out > (rows > 2 ? 3000000u : 2000000u)) continue;
          check_quantised(rows, rows, n_in, n_out, t, false, rows % 2 == 0);
          if (rows > 2) check_quantised(rows, rows - 2, n_in, n_out, t, n_out == 37);
        }
    // wide: fewer rows at a time, several launches of a part of the inputs each, or tiles
    for (const uint32_t rows : {1u, 8u, 12u, 33u, 70u})
      for (const uint32_t n_in : {8192u, 16500u, 30000u}) {
        check_quantised(rows, rows, n_in, 20, t, true);
        if (n_in != 16500 || rows < 33) check_quantised(rows, rows, n_in, 20, t, false);
      }
    check_quantised(1, 1, 4096, 4096, t, true);  // more items than multiprocessors
    check_quantised(3, 2, 256, 40000, t, false);
  }
  std::printf("quantised products: %d cases, %d failures, worst share of the limit %.2f\n", cases, failures, worst);
}

// ---- times: graphs of dependent launches over rotating weights, more than the L2 cache holds ----

void time_products() {
  constexpr uint64_t kPool = 6ull << 30;
  constexpr int kLaunches = 64;
  char *pool = nullptr, *x = nullptr, *y = nullptr, *scratch = nullptr;
  cudaMalloc(&pool, kPool), cudaMalloc(&x, 128 << 20), cudaMalloc(&y, 128 << 20), cudaMalloc(&scratch, 256 << 20);
  cudaMemset(scratch, 0, 256 << 20);
  {  // random weights: tensor cores are slower on them than on zeros
    std::vector<uint16_t> block(32 << 20);
    for (auto& h : block) h = static_cast<uint16_t>(0x3c00 + (static_cast<uint32_t>(uniform() * 4096) & 0x83ff));
    for (uint64_t at = 0; at < kPool; at += block.size() * 2) cudaMemcpy(pool + at, block.data(), block.size() * 2, cudaMemcpyHostToDevice);
    for (uint64_t at = 0; at < (128 << 20); at += block.size() * 2) cudaMemcpy(x + at, block.data(), block.size() * 2, cudaMemcpyHostToDevice);
  }
  const double rate = kPool / 1e9 / (lab::milliseconds([&](cudaStream_t s) { lab::read_kernel<<<132 * 8, 512, 0, s>>>(reinterpret_cast<const uint4*>(pool), kPool / 16, nullptr); }) * 1e-3);
  std::printf("streaming read %.0f GB/s\n", rate);
  struct Shape {
    const char* name;
    std::vector<std::pair<uint32_t, uint32_t>> matrices;  // out, in
  };
  const Shape shapes[] = {{"7.2b r,k,v and low-rank", {{4096, 4096}, {4096, 4096}, {4096, 4096}, {128, 4096}, {128, 4096}, {96, 4096}, {480, 4096}}},
                          {"7.2b low-rank out", {{4096, 128}, {4096, 128}, {4096, 96}, {4096, 480}}},
                          {"7.2b output", {{4096, 4096}}}, {"7.2b key", {{16384, 4096}}}, {"7.2b head", {{65536, 4096}}},
                          {"0.1b r,k,v and low-rank", {{768, 768}, {768, 768}, {768, 768}, {64, 768}, {64, 768}, {32, 768}, {128, 768}}},
                          {"0.1b output", {{768, 768}}}, {"0.1b key", {{3072, 768}}}};
  for (const uint32_t rows : {1u, 8u, 16u, 32u, 64u}) {
    int32_t* used = used_counts(rows);
    for (const Shape& shape : shapes) {
      uint64_t bytes = 0, at = 0;
      for (const auto& [out, in] : shape.matrices) bytes += 2ull * out * in;
      const float ms = lab::milliseconds([&](cudaStream_t s) {
        for (int i = 0; i < kLaunches; ++i) {
          Products p{};
          p.used = used, p.n_rows = rows, p.weights = DUET_BF16;
          if (at + bytes > kPool) at = 0;
          uint64_t to = 0;
          for (const auto& [out, in] : shape.matrices) {
            p.item[p.n++] = {pool + at, x, y + to, out, in, Finish::store};
            at += 2ull * out * in, to += 4ull * out * rows;
          }
          if (const Error e = products(p, s); e != cudaSuccess) std::printf("FAILED: %s\n", cudaGetErrorString(e)), std::exit(1);
        }
      });
      std::printf("%-24s rows %2u %8.2f us %5.1f %%\n", shape.name, rows, ms * 1e3 / kLaunches, 100 * bytes * kLaunches / (ms * 1e-3) / 1e9 / rate);
    }
    for (const uint32_t C : {4096u, 768u})
      for (const double zeros : {0.0, 0.5, 0.9}) {
        const uint32_t F = 4 * C;
        Tensor u(DUET_BF16, size_t{rows} * F, zeros);
        uint64_t at = 0;
        const uint64_t bytes = 2ull * F * C;
        const float ms = lab::milliseconds([&](cudaStream_t s) {
          for (int i = 0; i < kLaunches; ++i) {
            if (at + bytes > kPool) at = 0;
            const SkippingProduct p{pool + at, u.device, reinterpret_cast<float*>(y), F, C, used, 0, rows, DUET_BF16};
            at += bytes;
            if (const Error e = skipping_product(p, scratch, scratch + (1 << 20), s); e != cudaSuccess) std::printf("FAILED: %s\n", cudaGetErrorString(e)), std::exit(1);
          }
        });
        const double read = bytes * (1 - std::pow(zeros, rows));
        std::printf("%s value      %.1f zero rows %2u %8.2f us %5.1f %%\n", C == 768 ? "0.1b" : "7.2b", zeros, rows, ms * 1e3 / kLaunches, 100 * read * kLaunches / (ms * 1e-3) / 1e9 / rate);
      }
    cudaFree(used);
  }
}

void time_quantised(duet_dtype t) {
  constexpr uint64_t kPool = 4ull << 30, kRandom = 64 << 20, kActivations = 512ull << 20;
  char *pool = nullptr, *x = nullptr, *y = nullptr, *rounded = nullptr;
  cudaMalloc(&pool, kPool), cudaMalloc(&x, kActivations), cudaMalloc(&y, kActivations), cudaMalloc(&rounded, kActivations);
  {
    std::vector<uint64_t> bytes(kRandom / 8);
    std::vector<float> floats(kRandom / 4);
    for (uint64_t& b : bytes) uniform(), b = state;
    for (float& f : floats) f = uniform();
    for (uint64_t at = 0; at < kPool; at += kRandom) cudaMemcpy(pool + at, bytes.data(), kRandom, cudaMemcpyHostToDevice);
    for (uint64_t at = 0; at < kActivations; at += kRandom) cudaMemcpy(x + at, floats.data(), kRandom, cudaMemcpyHostToDevice);
  }
  const double rate = kPool / 1e9 / (lab::milliseconds([&](cudaStream_t s) { lab::read_kernel<<<132 * 8, 512, 0, s>>>(reinterpret_cast<const uint4*>(pool), kPool / 16, nullptr); }) * 1e-3);
  std::printf("%s; streaming read %.0f GB/s\n", t == DUET_I8 ? "q8" : "q4", rate);
  struct Shape {
    const char* name;
    Finish finish;
    std::vector<std::pair<uint32_t, uint32_t>> matrices;  // out, in
  };
  const Shape shapes[] = {{"7.2b r,k,v and low-rank", Finish::store, {{4096, 4096}, {4096, 4096}, {4096, 4096}, {128, 4096}, {128, 4096}, {96, 4096}, {480, 4096}}},
                          {"7.2b low-rank out", Finish::store, {{4096, 128}, {4096, 128}, {4096, 96}, {4096, 480}}},
                          {"7.2b output", Finish::add, {{4096, 4096}}}, {"7.2b key", Finish::relu_squared_input, {{16384, 4096}}}, {"7.2b value", Finish::add, {{4096, 16384}}}, {"7.2b head", Finish::store, {{65536, 4096}}},
                          {"0.1b r,k,v and low-rank", Finish::store, {{768, 768}, {768, 768}, {768, 768}, {64, 768}, {64, 768}, {32, 768}, {128, 768}}},
                          {"0.1b output", Finish::add, {{768, 768}}}, {"0.1b key", Finish::relu_squared_input, {{3072, 768}}}, {"0.1b value", Finish::add, {{768, 3072}}}};
  for (const uint32_t rows : {1u, 8u, 16u, 32u, 64u, 512u, 2048u}) {
    int32_t* used = used_counts(rows);
    const int n_launches = rows > 64 ? 8 : 64;
    for (const Shape& shape : shapes) {
      if (rows > 64 && shape.matrices[0].first == 65536) continue;
      uint64_t bytes = 0, at = 0;
      double operations = 0;
      for (const auto& [out, in] : shape.matrices) {
        const duetp_quantised_form form = duetp_form_of(DUETP_T_KEY, t, out, in);
        bytes += form.bytes + form.scales * (t == DUET_I4 ? 4 : 2);
        operations += 2.0 * rows * out * in;
      }
      const float ms = lab::milliseconds([&](cudaStream_t s) {
        for (int i = 0; i < n_launches; ++i) {
          Products p{};
          p.used = used, p.n_rows = rows, p.weights = t, p.rounded = rounded;
          if (at + bytes > kPool) at = 0;
          uint64_t to = 0, from = 0;
          for (const auto& [out, in] : shape.matrices) {
            const duetp_quantised_form form = duetp_form_of(DUETP_T_KEY, t, out, in);
            char *w = pool + at, *scale = w + form.bytes, *minimum = scale + 2 * form.scales;
            p.item[p.n++] = {w, x + from, y + to, out, in, shape.finish, scale, minimum};
            at += form.bytes + form.scales * (t == DUET_I4 ? 4 : 2), to += 4ull * out * rows;
            if (p.n < 7) from += 4ull * in * rows;  // as in a layer, the last but one and the last of seven share theirs
          }
          if (products_scratch(p) > kActivations || to > kActivations || from > kActivations) std::printf("FAILED: room for activations\n"), std::exit(1);
          if (const Error e = products(p, s); e != cudaSuccess) std::printf("FAILED: %s\n", cudaGetErrorString(e)), std::exit(1);
        }
      });
      std::printf("%-24s rows %4u %8.2f us %5.1f %% of the read rate, %6.1f TOPS\n", shape.name, rows, ms * 1e3 / n_launches, 100 * bytes * n_launches / (ms * 1e-3) / 1e9 / rate, operations * n_launches / (ms * 1e-3) / 1e12);
    }
    cudaFree(used);
  }
  cudaFree(pool), cudaFree(x), cudaFree(y), cudaFree(rounded);
}

}  // namespace

// ./product [check | check quantised | time | time q8 | time q4]
int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string what = argc > 1 ? argv[1] : "check", of = argc > 2 ? argv[2] : "";
  if (what == "time") return of == "q8" ? time_quantised(DUET_I8) : of == "q4" ? time_quantised(DUET_I4) : time_products(), 0;
  check_all_quantised();
  if (of == "quantised") return failures ? 1 : 0;
  cases = 0, worst = 0;
  for (const duet_dtype t : {DUET_BF16, DUET_F16, DUET_F32})
    for (const uint32_t rows : {1u, 2u, 7u, 8u, 9u, 16u, 17u, 33u})
      for (const uint32_t n_in : {8u, 40u, 64u, 96u, 100u, 768u, 1000u})
        for (const uint32_t n_out : {8u, 37u, 768u}) {
          if (rows > 9 && n_in * n_out > 100000) continue;
          check_group(rows, rows, n_in, n_out, t);
          if (rows > 2) check_group(rows, rows - 2, n_in, n_out, t);
        }
  std::printf("products: %d cases, %d failures, worst share of the limit %.2f\n", cases, failures, worst);
  cases = 0, worst = 0;
  for (const duet_dtype t : {DUET_BF16, DUET_F16, DUET_F32})
    for (const uint32_t rows : {1u, 2u, 8u, 9u, 16u, 17u, 40u})
      for (const uint32_t n_in : {16u, 48u, 200u, 3072u, 4100u})
        for (const uint32_t n_out : {8u, 64u, 72u, 128u, 768u})
          for (const double zeros : {0.0, 0.5, 0.9, 1.1}) {
            if (rows > 2 && n_in * n_out > 300000) continue;
            check_skipping(rows, rows, n_in, n_out, t, zeros);
            if (rows > 2) check_skipping(rows, rows - 1, n_in, n_out, t, zeros);
          }
  std::printf("skipping_product: %d cases, %d failures, worst share of the limit %.2f\n", cases, failures, worst);
  return failures ? 1 : 0;
}
