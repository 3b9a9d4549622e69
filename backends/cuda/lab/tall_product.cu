// Checks tall_product.h against double precision, and times it beside cuBLASLt:
//   nvcc -std=c++20 -O2 -gencode=arch=compute_90a,code=sm_90a -DDUET_CUDA_90A -DDUET_WATCHDOG=400000000ll -Ibackends/cuda -Ibackends -Iapi -Isdk/include backends/cuda/lab/tall_product.cu \
//     backends/cuda/tall_product.cu backends/cuda/product.cu backends/cuda/quantised_product.cu backends/cuda/quantised_many.cu backends/cuda/skipping_product.cu backends/cuda/cublas.cc backends/gpu/shape.cu \
//     -ldl -o tall && ./tall check && ./tall time
// With DUET_WATCHDOG a wait of so many cycles ends the program instead of hanging it, with DUET_WATCHDOG_SPEAKS after a message. Outputs start as NaN, rows beyond those in use must
// stay so, and a second run must give the same bits.
#include "tall_product.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "device.h"
#include "gpu/shape.h"
#include "timing.h"

using namespace duet_cuda;
using bf16 = __nv_bfloat16;

namespace {

char doing[256] = "";
void check(cudaError_t e, const char* what) {
  if (e != cudaSuccess) std::printf("FAILED: %s: %s (%s)\n", what, cudaGetErrorString(e), doing), std::exit(1);
}
char* device_memory(uint64_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes + 256), "memory");
  return static_cast<char*>(p);
}

__host__ __device__ uint32_t mix(uint32_t x) {
  x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
  return x;
}

// What matrices are filled with. one_hot: row r has a one at input (r * 37 + 11) % width.
enum class Fill { random, sparse, one_hot, low_index, output_high, input_high };
__global__ void fill_kernel(bf16* p, uint64_t n, uint32_t width, Fill fill, bool in_major, float scale, uint32_t seed) {
  for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += uint64_t{gridDim.x} * blockDim.x) {
    const uint32_t row = static_cast<uint32_t>(i / width), column = static_cast<uint32_t>(i % width);
    const uint32_t output = in_major ? column : row, input = in_major ? row : column;
    const uint32_t h = mix(static_cast<uint32_t>(i) * 2654435761u + seed + static_cast<uint32_t>(i >> 32) * 97);
    const float u = static_cast<float>(static_cast<int32_t>(h)) * 0x1p-31f * scale;
    const float v = fill == Fill::random ? u
                    : fill == Fill::sparse ? (mix(h) % 2 ? u : 0.0f)
                    : fill == Fill::one_hot ? (column == (row * 37 + 11) % width ? 1.0f : 0.0f)
                    : fill == Fill::low_index ? static_cast<float>(output % 16 * 16 + input % 16)
                    : fill == Fill::output_high ? static_cast<float>(output / 16 % 256)
                                                : static_cast<float>(input / 16 % 256);
    p[i] = __float2bfloat16_rn(v);
  }
}
void fill(void* p, uint64_t n, uint32_t width, Fill f, bool in_major, float scale, uint32_t seed) {
  fill_kernel<<<1024, 256>>>(static_cast<bf16*>(p), n, width, f, in_major, scale, seed);
  check(cudaGetLastError(), "filling");
}

// worst[0]: the largest error, as the bits of a float; worst[1]: how many are wrong; wrong: the first of those that are noted
struct Wrong {
  uint32_t row, output;
  float got, want;
};
__global__ void compare_kernel(Product p, const float* before, bool in_major, uint32_t rows, uint32_t used, float limit, uint32_t* worst, Wrong* wrong) {
  const uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= uint64_t{rows} * p.n_out) return;
  const uint32_t row = static_cast<uint32_t>(i / p.n_out), output = static_cast<uint32_t>(i % p.n_out);
  const bool f32 = p.finish == Finish::store || p.finish == Finish::add;
  const float got = f32 ? static_cast<const float*>(p.y)[i] : __bfloat162float(static_cast<const bf16*>(p.y)[i]);
  float want;
  bool right;
  if (row >= used) {
    want = p.finish == Finish::add ? before[i] : NAN;
    right = p.finish == Finish::add ? got == want : isnan(got);
  } else {
    double sum = 0;
    const bf16 *w = static_cast<const bf16*>(p.w), *x = static_cast<const bf16*>(p.x) + uint64_t{row} * p.n_in;
    for (uint32_t k = 0; k < p.n_in; ++k) sum += double(__bfloat162float(w[in_major ? uint64_t{k} * p.n_out + output : uint64_t{output} * p.n_in + k])) * double(__bfloat162float(x[k]));
    if (p.finish == Finish::add) sum += before[i];
    if (p.finish == Finish::tanh_input) sum = tanh(sum);
    if (p.finish == Finish::sigmoid_input) sum = 1 / (1 + exp(-sum));
    if (p.finish == Finish::relu_squared_input) sum = sum > 0 ? sum * sum : 0;
    want = static_cast<float>(sum);
    const float error = fabsf(got - want);
    right = error <= (f32 ? limit : limit + fabsf(want) * 0x1p-8f);
    if (right) atomicMax(worst, __float_as_uint(error));
  }
  if (right) return;
  const uint32_t n = atomicAdd(worst + 1, 1);
  if (n < 12) wrong[n] = {row, output, got, want};
}

int failures = 0, cases = 0;
float worst_error = 0;

struct Case {
  uint32_t rows, used;
  std::vector<std::pair<uint32_t, uint32_t>> shapes;  // out, in
  bool in_major;
};

// Runs it twice; returns what is wrong with which product, or -1.
int run_case(const Case& c, Fill w_fill, Fill x_fill, bool plain, std::vector<Wrong>& wrong, bool& same) {
  TallProducts t{};
  t.in_major = c.in_major;
  Products& p = t.products;
  const Finish finishes[] = {Finish::store, Finish::add, Finish::relu_squared_input, Finish::tanh_input, Finish::input, Finish::sigmoid_input};
  std::vector<char*> memory;
  std::vector<uint64_t> bytes;
  std::vector<float*> before;
  p.n_rows = c.rows, p.weights = DUET_BF16;
  int32_t counts[3] = {static_cast<int32_t>(c.used), 0, 0};
  memory.push_back(device_memory(sizeof counts));
  check(cudaMemcpy(memory.back(), counts, sizeof counts, cudaMemcpyHostToDevice), "counts");
  p.used = reinterpret_cast<int32_t*>(memory.back());
  for (const auto& [out, in] : c.shapes) {
    char *w = device_memory(2ull * out * in), *x = device_memory(2ull * c.rows * in), *y = device_memory(4ull * c.rows * out), *old = device_memory(4ull * c.rows * out);
    fill(w, uint64_t{out} * in, c.in_major ? out : in, w_fill, c.in_major, 1, 17 * p.n + 1);
    fill(x, uint64_t{c.rows} * in, in, x_fill, false, 1 / std::sqrt(float(in)), 31 * p.n + 5);
    std::vector<float> start(uint64_t{c.rows} * out);
    for (uint64_t i = 0; i < start.size(); ++i) start[i] = static_cast<float>(mix(static_cast<uint32_t>(i)) % 1000) / 1000;
    check(cudaMemcpy(old, start.data(), start.size() * 4, cudaMemcpyHostToDevice), "start");
    before.push_back(reinterpret_cast<float*>(old));
    bytes.push_back(4ull * c.rows * out);
    p.item[p.n] = {w, x, y, out, in, plain ? Finish::store : finishes[p.n % 6]};
    ++p.n;
    for (char* m : {w, x, y, old}) memory.push_back(m);
  }
  if (!tall_takes(t)) std::printf("FAILED: not taken (rows %u)\n", c.rows), std::exit(1);
  const SkippingScratch need = tall_scratch(t);
  char *tickets = device_memory(need.tickets), *parts = device_memory(need.parts);
  memory.push_back(tickets), memory.push_back(parts);
  check(cudaMemset(tickets, 0, need.tickets), "tickets"), check(cudaMemset(parts, 0xff, need.parts), "parts");
  std::vector<std::vector<char>> first;
  same = true;
  for (int run = 0; run < 2; ++run) {
    for (uint32_t i = 0; i < p.n; ++i) {
      if (p.item[i].finish == Finish::add)
        check(cudaMemcpy(p.item[i].y, before[i], bytes[i], cudaMemcpyDeviceToDevice), "start");
      else
        check(cudaMemset(p.item[i].y, 0xff, bytes[i]), "poison");
    }
    check(tall_products(t, tickets, parts, nullptr), "tall_products");
    check(cudaDeviceSynchronize(), "running tall_products");
    for (uint32_t i = 0; i < p.n; ++i) {
      std::vector<char> raw(bytes[i]);
      check(cudaMemcpy(raw.data(), p.item[i].y, bytes[i], cudaMemcpyDeviceToHost), "results");
      if (run == 0) first.push_back(std::move(raw));
      else same = same && std::memcmp(raw.data(), first[i].data(), bytes[i]) == 0;
    }
  }
  int bad = -1;
  for (uint32_t i = 0; i < p.n && bad < 0; ++i) {
    uint32_t* worst = reinterpret_cast<uint32_t*>(device_memory(8 + 12 * sizeof(Wrong)));
    memory.push_back(reinterpret_cast<char*>(worst));
    check(cudaMemset(worst, 0, 8 + 12 * sizeof(Wrong)), "errors");
    compare_kernel<<<static_cast<uint32_t>((uint64_t{c.rows} * p.item[i].n_out + 127) / 128), 128>>>(p.item[i], before[i], c.in_major, c.rows, c.used, plain && x_fill == Fill::one_hot ? 0.0f : 2e-5f * std::max(1.0f, p.item[i].n_in / 2048.0f), worst,
                                                                                                  reinterpret_cast<Wrong*>(worst + 2));
    uint32_t h[2];
    check(cudaMemcpy(h, worst, 8, cudaMemcpyDeviceToHost), "errors");
    float e;
    std::memcpy(&e, h, 4);
    if (p.item[i].finish == Finish::store || p.item[i].finish == Finish::add) worst_error = std::max(worst_error, e);
    if (h[1] == 0) continue;
    bad = static_cast<int>(i);
    wrong.resize(std::min(h[1], 12u));
    check(cudaMemcpy(wrong.data(), worst + 2, wrong.size() * sizeof(Wrong), cudaMemcpyDeviceToHost), "errors");
    std::printf("  product %d (out %u, in %u): %u of %llu wrong\n", bad, p.item[i].n_out, p.item[i].n_in, h[1], static_cast<unsigned long long>(bytes[i] / 4));
  }
  for (char* m : memory) cudaFree(m);
  return bad;
}

void check_case(const Case& c) {
  ++cases;
  std::snprintf(doing, sizeof doing, "rows %u of %u, %zu products of which the first is out %u in %u, in_major %d", c.used, c.rows, c.shapes.size(), c.shapes[0].first,
                c.shapes[0].second, c.in_major);
  std::vector<Wrong> wrong;
  bool same = true;
  const int bad = run_case(c, Fill::random, Fill::random, false, wrong, same);
  if (bad < 0 && same) return;
  ++failures;
  std::printf("FAILED: %s%s\n", doing, same ? "" : ", other bits the second time");
  for (const Wrong& w : wrong) std::printf("    y[%u][%u] = %g, not %g\n", w.row, w.output, w.got, w.want);
  if (failures > 6) return;
  // where from: with one-hot inputs y[row][o] is the weight [o][(37 row + 11) % in]; three runs tell which weight came instead
  for (const auto& [f, what] : {std::pair{Fill::low_index, "16 (output % 16) + input % 16"}, std::pair{Fill::output_high, "output / 16"}, std::pair{Fill::input_high, "input / 16"}}) {
    std::vector<Wrong> hot;
    bool again;
    run_case(c, f, Fill::one_hot, true, hot, again);
    std::printf("    one-hot, weights are %s: %s\n", what, hot.empty() ? "right" : "");
    for (const Wrong& w : hot) std::printf("      y[%u][%u] = %g, not %g\n", w.row, w.output, w.got, w.want);
  }
}

void check_all() {
  const auto done = [](const char* what) { std::printf("%s: %d cases, %d failures, worst error %.2g\n", what, cases, failures, worst_error), cases = 0, worst_error = 0; };
  // one tile, one unit; then along k, outputs and rows
  for (const bool in_major : {false, true}) {
    check_case({32, 32, {{128, 64}}, in_major});
    for (const uint32_t rows : {8u, 16u, 32u, 64u, 128u, 256u}) check_case({rows, rows, {{128, 256}}, in_major});
    check_case({32, 32, {{128, 4096}}, in_major});
    check_case({32, 32, {{1024, 1024}}, in_major});
    done(in_major ? "first, in-major" : "first");
    if (failures > 0) std::exit(1);
  }
  for (const uint32_t rows : {1u, 7u, 8u, 9u, 16u, 17u, 32u, 33u, 50u, 64u, 65u, 100u, 128u, 129u, 200u, 256u, 300u, 512u, 2048u})
    for (const bool in_major : {false, true})
      for (const auto& [out, in] : {std::pair{72u, 40u}, std::pair{768u, 768u}, std::pair{2048u, 1032u}, std::pair{200u, 3072u}})
        for (const uint32_t used : {rows, rows > 5 ? rows - 5 : 0, rows / 3}) check_case({rows, used, {{out, in}}, in_major});
  done("single");
  for (const uint32_t rows : {8u, 13u, 17u, 64u, 100u, 128u, 256u, 400u}) {
    check_case({rows, rows, {{768, 768}, {768, 768}, {768, 768}, {64, 768}, {64, 768}, {32, 768}, {128, 768}}, false});
    check_case({rows, rows - 1, {{768, 64}, {768, 64}, {768, 32}, {768, 128}}, false});
    check_case({rows, rows - 7, {{37, 768}, {1001, 40}, {130, 1544}, {7, 8}, {513, 520}, {2048, 2048}, {3, 4096}, {129, 1000}}, false});
    check_case({rows, rows, {{4096, 4096}, {4096, 4096}, {4096, 4096}, {128, 4096}, {128, 4096}, {96, 4096}, {480, 4096}}, false});
    check_case({rows, rows - 3, {{128, 4096}, {128, 4096}, {96, 4096}, {480, 4096}}, false});
    check_case({rows, rows - 3, {{4096, 128}, {4096, 128}, {4096, 96}, {4096, 480}}, false});
  }
  done("several");
  for (const uint32_t rows : {8u, 16u, 32u, 64u, 128u, 256u}) {
    check_case({rows, rows, {{16384, 4096}}, false});
    check_case({rows, rows, {{4096, 16384}}, true});
  }
  done("large");
}

// ---- times: graphs of dependent launches over rotating weights, more than the L2 cache holds ----

void no_log(void*, int, const char* text) { std::printf("%s\n", text); }

struct Matrix {
  uint32_t out, in;
  Finish finish = Finish::store;
};
struct Phase {
  const char* name;
  std::vector<Matrix> matrices;
  uint32_t batch = 1;  // so many of the first ones are one batched product for cuBLASLt
  bool in_major = false;
};

// Those of a model whose low-rank matrices are w, a, v, g wide
std::vector<Phase> phases_of(const char* const (&names)[7], uint32_t C, const uint32_t (&rank)[4]) {
  const Matrix rkv{C, C};
  const std::vector<Matrix> low_in = {{rank[0], C, Finish::tanh_input}, {rank[1], C, Finish::input}, {rank[2], C, Finish::input}, {rank[3], C, Finish::sigmoid_input}};
  std::vector<Matrix> inputs = {rkv, rkv, rkv}, low_out;
  inputs.insert(inputs.end(), low_in.begin(), low_in.end());
  for (const uint32_t r : rank) low_out.push_back({C, r});
  return {{names[0], inputs, 3},
          {names[1], low_in},
          {names[2], low_out},
          {names[3], {{C, C, Finish::add}}},
          {names[4], {{4 * C, C, Finish::relu_squared_input}}},
          {names[5], {{C, 4 * C, Finish::add}}, 1, true},
          {names[6], {{65536, C}}}};
}

void time_all() {
  constexpr uint64_t kPool = 3ull << 30, kWorkspace = 32 << 20, kX = 160ull << 20, kY = 160ull << 20;
  char *pool = device_memory(kPool), *x = device_memory(kX), *y = device_memory(kY), *sums = device_memory(kY), *workspace = device_memory(kWorkspace);
  fill(pool, kPool / 2, 4096, Fill::random, false, 0.02f, 1);
  fill(x, kX / 2, 4096, Fill::random, false, 1, 2);
  check(cudaDeviceSynchronize(), "filling");
  const double rate = kPool / 1e9 / (lab::milliseconds([&](cudaStream_t s) { lab::read_kernel<<<132 * 8, 512, 0, s>>>(reinterpret_cast<const uint4*>(pool), kPool / 16, nullptr); }) * 1e-3);
  std::printf("streaming read %.0f GB/s\n", rate);
  Cublas cublas;
  duetp_host host{};
  host.log = no_log;
  const bool has_cublas = cublas.available(host);
  std::vector<Phase> phases;
  const auto add = [&](const std::vector<Phase>& of) { phases.insert(phases.end(), of.begin(), of.end()); };
#define DUET_NAMES(m) {m " r,k,v, low-rank", m " low-rank in", m " low-rank out", m " output", m " key", m " value", m " head"}
  add(phases_of(DUET_NAMES("7.2b"), 4096, {128, 128, 96, 480}));
  add(phases_of(DUET_NAMES("2.9b"), 2560, {96, 96, 64, 320}));
  add(phases_of(DUET_NAMES("1.5b"), 2048, {96, 96, 64, 256}));
  add(phases_of(DUET_NAMES("0.4b"), 1024, {64, 64, 32, 128}));
  add(phases_of(DUET_NAMES("0.1b"), 768, {64, 64, 32, 128}));
#undef DUET_NAMES
  std::printf("us a phase (share of the streaming read rate, TFLOP/s); few: product.h and, for value, skipping_product without zeros; cublasLt with activations\n");
  for (const uint32_t rows : {8u, 16u, 17u, 32u, 48u, 64u, 96u, 128u, 256u, 512u, 1024u, 2048u}) {
    int32_t counts[3] = {static_cast<int32_t>(rows), 0, 0};
    int32_t* used = reinterpret_cast<int32_t*>(device_memory(sizeof counts));
    check(cudaMemcpy(used, counts, sizeof counts, cudaMemcpyHostToDevice), "counts");
    for (const Phase& phase : phases) {
      if (rows > 128 && std::strstr(phase.name, " low-rank ") == nullptr) continue;  // cuBLASLt's
      uint64_t bytes = 0;
      for (const Matrix& m : phase.matrices) bytes += 2ull * m.out * m.in;
      const int launches = static_cast<int>(std::clamp<uint64_t>((2ull << 30) / bytes, 4, 40));
      uint64_t at = 0;
      const auto next = [&] {
        if (at + bytes > kPool) at = 0;
        TallProducts t{};
        t.in_major = phase.in_major;
        Products& p = t.products;
        p.used = used, p.n_rows = rows, p.weights = DUET_BF16;
        uint64_t to = 0, from = 0;
        for (const Matrix& m : phase.matrices) {
          p.item[p.n++] = {pool + at, x + from, y + to, m.out, m.in, m.finish};
          at += 2ull * m.out * m.in, to += 4ull * m.out * rows, from += 2ull * m.in * rows;
        }
        if (to > kY || from > kX) std::printf("FAILED: %s, rows %u: more memory is needed\n", phase.name, rows), std::exit(1);
        return t;
      };
      const auto time = [&](const std::function<Error(const TallProducts&, cudaStream_t)>& f) {
        at = 0;
        return lab::milliseconds([&](cudaStream_t s) { for (int i = 0; i < launches; ++i) check(f(next(), s), phase.name); }) * 1e3 / launches;
      };
      const double flops = static_cast<double>(bytes) * rows;
      const auto show = [&](const char* what, double us) { std::printf("  %s %.1f (%.0f %%, %.0f)", what, us, 100 * bytes / us / 1e3 / rate, flops / us / 1e6); };
      std::snprintf(doing, sizeof doing, "%s, rows %u", phase.name, rows);
      std::printf("%-21s rows %4u:", phase.name, rows);
      SkippingScratch need = tall_scratch(next());
      at = 0;
      const Product first = next().products.item[0];
      SkippingProduct value{first.w, first.x, static_cast<float*>(first.y), first.n_in, first.n_out, used, 0, rows, DUET_BF16};
      if (phase.in_major) {
        const SkippingScratch n = skipping_scratch(value);
        need = {std::max(need.tickets, n.tickets), std::max(need.parts, n.parts)};
      }
      char *tickets = device_memory(need.tickets), *parts = device_memory(need.parts);
      check(cudaMemset(tickets, 0, need.tickets), "tickets");
      show("tall", time([&](const TallProducts& t, cudaStream_t s) { return tall_products(t, tickets, parts, s); }));
      if (rows <= 64)
        show("few", time([&](const TallProducts& t, cudaStream_t s) {
               if (!phase.in_major) return products(t.products, s);
               value.w = t.products.item[0].w;
               return skipping_product(value, tickets, parts, s);
             }));
      if (has_cublas)
        show("cublasLt", time([&](const TallProducts& t, cudaStream_t s) {
               for (uint32_t i = 0; i < t.products.n; i += i == 0 ? phase.batch : 1) {
                 const Product& p = t.products.item[i];
                 const bool has_function = p.finish == Finish::tanh_input || p.finish == Finish::sigmoid_input || p.finish == Finish::relu_squared_input;
                 Gemm g{};
                 g.x = p.x, g.w = p.w, g.y = has_function ? sums : p.y, g.rows = rows, g.n_in = p.n_in, g.n_out = p.n_out, g.batch = i == 0 ? phase.batch : 1;
                 g.input = DUET_BF16, g.output = p.finish == Finish::input ? DUET_BF16 : DUET_F32, g.in_major = phase.in_major, g.add = p.finish == Finish::add;
                 cublas.run(g, workspace, kWorkspace, s);
                 if (!has_function) continue;
                 const duet_gpu::Activation f = p.finish == Finish::tanh_input      ? duet_gpu::Activation::tanh
                                                : p.finish == Finish::sigmoid_input ? duet_gpu::Activation::sigmoid
                                                                                    : duet_gpu::Activation::relu_squared;
                 if (const Error e = duet_gpu::activate(reinterpret_cast<const float*>(sums), p.y, true, f, used, rows, p.n_out, s); e != cudaSuccess) return e;
               }
               return cudaSuccess;
             }));
      std::printf("\n");
      cudaFree(tickets), cudaFree(parts);
    }
    cudaFree(used);
  }
}

}  // namespace

// ./tall [check|time]
int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  if (argc > 1 && std::strcmp(argv[1], "time") == 0) return time_all(), 0;
  check_all();
  std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
