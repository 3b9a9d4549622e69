// Times whole steps of the CUDA plugin through its own ABI, on random weights of the official shapes, beside the read rate that
// the same run measures:
//   duet_cuda_step PLUGIN.so [MODELS [BATCHES [PROMPTS [ZEROS [DTYPE [STATE]]]]]]   e.g. 0.1b,7.2b 1,8,32 512,2048 0.9 q8 f16
// Every layer has the same weights in its own memory. ZEROS: the share of relu^2 that is zero, 0 to 1; plain random weights give 0.5.
// DTYPE: bf16, q8 or q4. Quantised weights are random integers under one scale, which is all that speed sees of them; zeros do not
// matter to it then, and their share is as it comes.
// STATE: f32, f16 or bf16, in which the wkv state is stored.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "duet_plugin.h"
#include "duet_quantised.h"
#include "timing.h"

namespace {

char last_message[1024];

void die(const char* what) {
  std::printf("FAILED: %s: %s\n", what, last_message);
  std::exit(1);
}
void check(duet_status s, const char* what) {
  if (s != DUET_OK) die(what);
}

duetp_host make_host() {
  duetp_host h{};
  h.size = sizeof h;
  h.abi = DUETP_ABI;
  h.alloc = [](void*, size_t n, size_t align) { return std::aligned_alloc(align, (n + align - 1) / align * align); };
  h.free = [](void*, void* p) { std::free(p); };
  h.log = [](void*, int32_t, const char* m) { std::printf("log: %s\n", m); };
  h.fail = [](void*, duet_status code, const char* m) { return std::snprintf(last_message, sizeof last_message, "%s", m), code; };
  h.option = [](void*, const char* key) -> const char* { return std::strcmp(key, "resident") == 0 ? std::getenv("DUET_CUDA_RESIDENT") : nullptr; };
  h.team_size = [](void*) -> uint32_t { return 1; };
  h.team = [](void*, void (*fn)(void*, uint32_t, uint32_t), void* ctx) { fn(ctx, 0, 1); };
  h.barrier = [](void*) {};
  h.extension = [](void*, const char*) -> const void* { return nullptr; };
  return h;
}

struct Named {
  const char* name;
  uint32_t layers, width, ranks[4];
};
constexpr Named kModels[] = {{"0.1b", 12, 768, {64, 64, 32, 128}}, {"0.4b", 24, 1024, {64, 64, 32, 128}}, {"1.5b", 24, 2048, {96, 96, 64, 256}},
                             {"2.9b", 32, 2560, {96, 96, 64, 320}}, {"7.2b", 32, 4096, {128, 128, 96, 480}}};
constexpr uint32_t kVocabulary = 65536;

uint64_t random_state = 88172645463325252ull;
float uniform() {  // -1 .. 1
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return static_cast<float>(static_cast<int32_t>(random_state >> 32)) * 0x1p-31f;
}
uint16_t bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

// Canonical host tensors of one layer, reused for all.
class Tensors {
 public:
  explicit Tensors(duet_dtype dtype) : dtype_(dtype) {}
  void vector(uint32_t id, uint32_t n, float middle, float spread) {
    auto& d = data_[id];
    d.resize(n * 4);
    for (uint32_t i = 0; i < n; ++i) reinterpret_cast<float*>(d.data())[i] = middle + spread * uniform();
    describe(id, DUET_F32, {n});
  }
  void matrix(uint32_t id, uint32_t rows, uint32_t columns, float middle, float spread) {
    if (duetp_is_quantised(dtype_)) return quantised(id, rows, columns, middle, spread);
    auto& d = data_[id];
    const uint64_t n = uint64_t{rows} * columns;
    d.resize(n * 2);
    for (uint64_t i = 0; i < n; ++i) reinterpret_cast<uint16_t*>(d.data())[i] = bf16(middle + spread * uniform());
    describe(id, DUET_BF16, {rows, columns});
  }
  const duetp_tensor* const* table() {
    for (auto& [id, t] : tensors_) table_[id] = &t;
    return table_;
  }
  uint64_t bytes() const {
    uint64_t n = 0;
    for (const auto& [id, t] : tensors_) n += id == DUETP_T_EMB ? 0 : bytes_of(id);  // the embedding gives one row
    return n;
  }
  uint64_t bytes_of(uint32_t id) const {
    const duetp_tensor& t = tensors_.at(id);
    return t.bytes + t.scale_bytes + t.minimum_bytes;
  }

 private:
  void quantised(uint32_t id, uint32_t rows, uint32_t columns, float middle, float spread) {
    auto& d = data_[id];
    auto &scale = scale_[id], &minimum = minimum_[id];
    describe(id, dtype_, {rows, columns});
    duetp_tensor& t = tensors_[id];
    const duetp_quantised_form form = duetp_form(&t);
    const bool q8 = dtype_ == DUET_I8;
    d.resize(form.bytes);
    for (char& c : d) c = static_cast<char>(uniform() * 127.9f);
    scale.assign(form.scales, bf16(q8 ? spread / 127 : spread / 7.5f));
    minimum.assign(q8 ? 0 : form.scales, bf16(middle - spread));
    t.data = d.data(), t.bytes = form.bytes;
    t.scale = scale.data(), t.scale_bytes = form.scales * 2;
    if (!q8) t.minimum = minimum.data(), t.minimum_bytes = form.scales * 2;
    t.group = DUETP_QUANTISED_GROUP, t.scale_dtype = DUET_BF16;
  }
  void describe(uint32_t id, duet_dtype dtype, std::vector<uint32_t> dims) {
    duetp_tensor t{};
    t.size = sizeof t;
    t.id = id;
    t.name = "random";
    t.data = data_[id].data();
    t.bytes = data_[id].size();
    t.dtype = dtype;
    t.n_dim = static_cast<uint32_t>(dims.size());
    std::copy(dims.begin(), dims.end(), t.dim);
    tensors_[id] = t;
  }
  duet_dtype dtype_;
  std::map<uint32_t, std::vector<char>> data_;
  std::map<uint32_t, std::vector<uint16_t>> scale_, minimum_;
  std::map<uint32_t, duetp_tensor> tensors_;
  const duetp_tensor* table_[DUETP_T_COUNT] = {};
};

double read_rate() {  // bytes a second
  uint4* p = nullptr;
  uint32_t* out = nullptr;
  const uint64_t bytes = 8ull << 30;
  if (cudaMalloc(&p, bytes) != cudaSuccess || cudaMalloc(&out, 4) != cudaSuccess) die("memory for the read rate");
  cudaMemset(p, 1, bytes);
  cudaEvent_t a, b;
  cudaEventCreate(&a), cudaEventCreate(&b);
  float best = 1e9;
  for (int i = 0; i < 6; ++i) {
    float ms = 0;
    cudaEventRecord(a);
    lab::read_kernel<<<132 * 8, 512>>>(p, bytes / 16, out);
    cudaEventRecord(b);
    cudaEventSynchronize(b);
    cudaEventElapsedTime(&ms, a, b);
    best = std::min(best, ms);
  }
  cudaFree(p), cudaFree(out);
  return bytes / (best * 1e-3);
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::vector<std::string> split(const std::string& s) {
  std::vector<std::string> out;
  std::stringstream in(s);
  for (std::string word; std::getline(in, word, ',');)
    if (!word.empty()) out.push_back(word);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  if (argc < 2) return std::puts("duet_cuda_step PLUGIN.so [MODELS [BATCHES [PROMPTS [ZEROS [DTYPE [STATE]]]]]]"), 2;
  const auto models = split(argc > 2 ? argv[2] : "0.1b,7.2b"), batches = split(argc > 3 ? argv[3] : "1,8,32,128"), prompts = split(argc > 4 ? argv[4] : "512,2048");
  const double zeros = argc > 5 ? std::atof(argv[5]) : 0.5;
  const std::string dtype_name = argc > 6 ? argv[6] : "bf16";
  const duet_dtype dtype = dtype_name == "q8" ? DUET_I8 : dtype_name == "q4" ? DUET_I4 : DUET_BF16;
  if (dtype == DUET_BF16 && dtype_name != "bf16") return std::printf("no dtype %s: bf16, q8 or q4\n", dtype_name.c_str()), 2;
  const std::string stored_name = argc > 7 ? argv[7] : "f32";
  const duet_dtype stored = stored_name == "f16" ? DUET_F16 : stored_name == "bf16" ? DUET_BF16 : DUET_F32;
  if (stored == DUET_F32 && stored_name != "f32") return std::printf("no state in %s: f32, f16 or bf16\n", stored_name.c_str()), 2;
  void* so = dlopen(argv[1], RTLD_NOW);
  if (!so) return std::printf("%s\n", dlerror()), 1;
  const auto query = reinterpret_cast<duetp_query_fn>(dlsym(so, DUETP_QUERY_NAME));
  const duetp_plugin* plugin = query(DUETP_ABI, 0);
  const duetp_host host = make_host();
  void* self = nullptr;
  check(plugin->open(&host, &self), "open");
  if (plugin->device_count(self) == 0) return std::printf("no device: %s\n", plugin->no_device_reason(self)), 1;
  duetp_device_info info{};
  info.size = sizeof info;
  check(plugin->device_info(self, 0, &info), "device_info");
  const duetp_device* d = nullptr;
  check(plugin->device_open(self, 0, &d), "device_open");
  const double rate = read_rate();
  std::printf("%s, %s, %s, states in %s; streaming read %.0f GB/s (data sheet %.0f)\n", info.name, plugin->build, dtype_name.c_str(), stored_name.c_str(), rate / 1e9, info.bytes_per_s / 1e9);

  for (const std::string& name : models) {
    const Named* m = nullptr;
    for (const Named& n : kModels)
      if (name == n.name) m = &n;
    if (!m) return std::printf("no model %s\n", name.c_str()), 2;
    const uint32_t C = m->width, F = 4 * C, N = 64;
    duetp_shape shape{sizeof(duetp_shape), m->layers, C, C / N, N, F, kVocabulary, m->ranks[0], m->ranks[1], m->ranks[2], m->ranks[3], 1e-5f, 64e-5f};
    std::vector<duetp_layer*> layers(m->layers + 1);
    uint64_t layer_bytes = 0, value_bytes = 0, head_bytes = 0;
    const auto add = [&](uint32_t index, Tensors& t) {
      duetp_layer_desc desc{};
      desc.size = sizeof desc;
      desc.index = index;
      desc.shape = &shape;
      desc.tensors = t.table();
      desc.n_tensors = DUETP_T_COUNT;
      desc.weights = dtype;
      check(d->layer_new(d->self, &desc, &layers[index]), "layer_new");
    };
    {
      Tensors t(dtype);
      for (const uint32_t id : {DUETP_T_LN1_W, DUETP_T_LN2_W, DUETP_T_LN_X_W}) t.vector(id, C, 1, 0.1f);
      for (const uint32_t id : {DUETP_T_LN1_B, DUETP_T_LN_X_B}) t.vector(id, C, 0, 0.1f);
      t.vector(DUETP_T_LN2_B, C, 1, 0);  // with a mean of key's rows below zero, it sets the share of zeros
      for (uint32_t id = DUETP_T_X_R; id <= DUETP_T_X_G; ++id) t.vector(id, C, 0.5f, 0.5f);
      for (const uint32_t id : {DUETP_T_W0, DUETP_T_A0, DUETP_T_V0, DUETP_T_R_K}) t.vector(id, C, 0, 0.5f);
      for (const uint32_t id : {DUETP_T_K_K, DUETP_T_K_A, DUETP_T_FFN_X_K}) t.vector(id, C, 0.7f, 0.3f);
      const float s = std::sqrt(3.0f / C);
      for (uint32_t i = 0; i < 4; ++i) {
        t.matrix(DUETP_T_W1 + i, C, m->ranks[i], 0, s);
        t.matrix(DUETP_T_W2 + i, m->ranks[i], C, 0, std::sqrt(3.0f / m->ranks[i]));
      }
      for (const uint32_t id : {DUETP_T_RECEPTANCE, DUETP_T_KEY, DUETP_T_VALUE, DUETP_T_OUTPUT}) t.matrix(id, C, C, 0, s);
      // key z ~ normal(-shift, sqrt(2)): zeros = P(below 0)
      double shift = -8;
      while (0.5 * std::erfc(shift / 2) > 1 - zeros) shift += 0.01;
      t.matrix(DUETP_T_FFN_KEY, F, C, static_cast<float>(-shift / C), s);
      t.matrix(DUETP_T_FFN_VALUE, C, F, 0, std::sqrt(3.0f / F));
      for (uint32_t i = 0; i < m->layers; ++i) add(i, t);
      layer_bytes = t.bytes();
      value_bytes = t.bytes_of(DUETP_T_FFN_VALUE);
    }
    {
      Tensors t(dtype);
      for (const uint32_t id : {DUETP_T_LN0_W, DUETP_T_LN_OUT_W}) t.vector(id, C, 1, 0.1f);
      for (const uint32_t id : {DUETP_T_LN0_B, DUETP_T_LN_OUT_B}) t.vector(id, C, 0, 0.1f);
      t.matrix(DUETP_T_EMB, kVocabulary, C, 0, 1);
      t.matrix(DUETP_T_HEAD, kVocabulary, C, 0, std::sqrt(3.0f / C));
      add(m->layers, t);
      head_bytes = t.bytes();
    }

    const auto run = [&](uint32_t n_tokens, uint32_t n_seqs, bool parallel) {
      duetp_queue* q = nullptr;
      duetp_state* state = nullptr;
      check(d->queue_new(d->self, &q), "queue_new");
      check(d->state_new(d->self, &shape, n_seqs, stored, &state), "state_new");
      std::vector<duetp_buffer*> buffers;
      const auto buffer = [&](uint64_t bytes, duet_dtype t) {
        duetp_buffer* b = nullptr;
        check(d->buffer_new(d->self, bytes, &b), "buffer_new");
        buffers.push_back(b);
        return duetp_ref{b, 0, t, 0};
      };
      const uint32_t n_rows = n_seqs;
      duetp_frame f{sizeof(duetp_frame), n_tokens, n_seqs, n_rows, n_tokens / n_seqs, buffer(64, 0), buffer(4ull * n_tokens, 0), buffer(4ull * n_seqs + 4, 0), buffer(4ull * n_seqs, 0), buffer(4ull * n_rows, 0)};
      const auto put = [&](duetp_ref r, const std::vector<int32_t>& v) { check(d->upload(d->self, q, r, v.data(), 4 * v.size()), "upload"); };
      std::vector<int32_t> tokens(n_tokens), starts(n_seqs + 1), slots(n_seqs), rows(n_rows);
      for (auto& t : tokens) t = static_cast<int32_t>((uniform() + 1) * 0.5f * (kVocabulary - 1));
      for (uint32_t i = 0; i <= n_seqs; ++i) starts[i] = static_cast<int32_t>(uint64_t{n_tokens} * i / n_seqs);
      for (uint32_t i = 0; i < n_seqs; ++i) slots[i] = static_cast<int32_t>(i), rows[i] = starts[i + 1] - 1;
      put(f.used, {static_cast<int32_t>(n_tokens), static_cast<int32_t>(n_seqs), static_cast<int32_t>(n_rows)});
      put(f.tokens, tokens), put(f.starts, starts), put(f.slots, slots), put(f.rows, rows);
      const duetp_ref x = buffer(4ull * n_tokens * C, DUET_F32), v_first = buffer(4ull * n_tokens * C, DUET_F32), logits = buffer(4ull * n_rows * kVocabulary, DUET_F32);
      const duet_mode mode = parallel ? DUET_MODE_PARALLEL : DUET_MODE_RECURRENT;
      const auto enqueue = [&] {
        duetp_stage e{};
        e.size = sizeof e, e.layer_index = m->layers, e.mode = mode, e.layer = layers[m->layers], e.frame = &f, e.state = state;
        e.out[DUETP_EMBED_OUT_X] = x;
        check(d->ops->embed(d->self, q, &e), "embed");
        duetp_step s{};
        s.size = sizeof s, s.n_layer = m->layers, s.mode = mode, s.layers = layers.data(), s.frame = &f, s.state = state, s.x = x, s.v_first = v_first;
        check(d->ops->layers(d->self, q, &s), "layers");
        duetp_stage h = e;
        h.in[DUETP_HEAD_IN_X] = x, h.out[DUETP_EMBED_OUT_X] = {}, h.out[DUETP_HEAD_OUT_LOGITS] = logits;
        check(d->ops->head(d->self, q, &h), "head");
      };
      enqueue();
      check(d->queue_wait(d->self, q), "first step");
      duetp_record* record = nullptr;
      if (!parallel) {
        check(d->record_begin(d->self, q), "record_begin");
        enqueue();
        check(d->record_end(d->self, q, &record), "record_end");
      }
      std::vector<double> times;
      const double begin = seconds();
      const int inner = parallel ? 1 : 8;
      while (times.size() < 5 || (seconds() - begin < 0.5 && times.size() < 100)) {
        const double t = seconds();
        for (int i = 0; i < inner; ++i) parallel ? enqueue() : check(d->record_run(d->self, q, record), "record_run");
        check(d->queue_wait(d->self, q), "steps");
        times.push_back((seconds() - t) / inner);
      }
      std::sort(times.begin(), times.end());
      const double t = times[times.size() / 2];
      std::vector<float> first(8);
      check(d->download(d->self, q, first.data(), logits, 32), "download");
      check(d->queue_wait(d->self, q), "download");
      if (!(std::fabs(first[0]) < 1e6f)) std::printf("WRONG: logits are %g %g\n", first[0], first[1]);
      if (parallel) {
        const double gemm = 2.0 * n_tokens * m->layers * (12.0 * C * C + 2.0 * C * (m->ranks[0] + m->ranks[1] + m->ranks[2] + m->ranks[3]));
        std::printf("%s prefill %u x %u: %9.0f tok/s, %8.3f ms, products at %.0f TFLOP/s of the whole time\n", m->name, n_seqs, n_tokens / n_seqs, n_tokens / t, t * 1e3, gemm / t / 1e12);
      } else {
        const double weights = m->layers * (layer_bytes - (n_seqs == 1 && dtype == DUET_BF16 ? zeros : 0) * value_bytes) + head_bytes;
        const double states = 2.0 * n_seqs * m->layers * (2.0 * C * 4 + 1.0 * C * N * (stored == DUET_F32 ? 4 : 2));
        std::printf("%s decode B=%-4u %9.1f tok/s, %8.1f us a step, %.2f + %.2f GB: %4.0f GB/s = %.1f %% of the read rate\n", m->name, n_seqs, n_seqs / t, t * 1e6, weights / 1e9, states / 1e9,
                    (weights + states) / t / 1e9, 100 * (weights + states) / t / rate);
      }
      if (record) d->record_free(d->self, record);
      for (duetp_buffer* b : buffers) d->buffer_free(d->self, b);
      d->state_free(d->self, state);
      d->queue_free(d->self, q);
    };
    for (const std::string& b : batches) run(std::stoul(b), std::stoul(b), false);
    for (const std::string& p : prompts) {  // T or BxT
      const size_t x = p.find('x');
      const uint32_t n = x == std::string::npos ? 1 : std::stoul(p.substr(0, x)), T = std::stoul(x == std::string::npos ? p : p.substr(x + 1));
      run(n * T, n, true);
    }
    for (duetp_layer* l : layers) d->layer_free(d->self, l);
  }
  return 0;
}
