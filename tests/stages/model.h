// Random weights of one small shape, in canonical tensors that lie at addresses aligned to their element and no better.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "device.h"

namespace stages {

// Reproducible numbers: the n-th of a stream, uniform in [-1, 1)
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  float next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<float>(static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-52 - 1);
  }

 private:
  uint64_t state_;
};

inline uint16_t bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline float from_bf16(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint16_t f16(float f) {  // |f| < 2; truncates
  if (std::fabs(f) < 0x1p-14f) return 0;
  int e;
  const float m = std::frexp(std::fabs(f), &e);  // m in [0.5, 1)
  return static_cast<uint16_t>((f < 0 ? 0x8000 : 0) | (e + 14) << 10 | (static_cast<int>(m * 2048) & 1023));
}

inline size_t bytes_of(duet_dtype t) { return t == DUET_F32 ? 4 : 2; }
inline duet_dtype matrix_input(duet_dtype weights) { return weights == DUET_BF16 ? DUET_BF16 : DUET_F32; }

// `values` as dtype at p
inline void encode(const std::vector<float>& values, duet_dtype dtype, unsigned char* p) {
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = dtype == DUET_BF16 ? bf16(values[i]) : dtype == DUET_F16 ? f16(values[i]) : 0;
    std::memcpy(p + i * bytes_of(dtype), dtype == DUET_F32 ? static_cast<const void*>(&values[i]) : &half, bytes_of(dtype));
  }
}
inline std::vector<float> decode(const std::vector<unsigned char>& bytes, duet_dtype dtype) {
  std::vector<float> out(bytes.size() / bytes_of(dtype));
  for (size_t i = 0; i < out.size(); ++i) {
    if (dtype == DUET_F32) {
      std::memcpy(&out[i], &bytes[4 * i], 4);
    } else {
      uint16_t half;
      std::memcpy(&half, &bytes[2 * i], 2);
      out[i] = from_bf16(half);
    }
  }
  return out;
}

inline duetp_shape shape_of(uint32_t n_layer, uint32_t n_head, uint32_t head_size, uint32_t n_ffn, uint32_t n_vocab) {
  return {sizeof(duetp_shape), n_layer, n_head * head_size, n_head, head_size, n_ffn, n_vocab, 8, 32, 5, 40, 1e-5f, 64e-5f};
}

class Model {
 public:
  Model(const duetp_shape& shape, duet_dtype weights, uint64_t seed = 1) : shape(shape), weights(weights), random_(seed) {
    for (uint32_t i = 0; i <= shape.n_layer; ++i) blocks_.push_back(block(i));
  }

  // The layers of a device, freed with it
  class Layers {
   public:
    Layers(Device& d, const Model& m) : device_(d) {
      for (const auto& b : m.blocks_) {
        const duetp_tensor* by_id[DUETP_T_COUNT] = {};
        for (const duetp_tensor& t : b->tensors) by_id[t.id] = &t;
        const duetp_layer_desc desc{sizeof desc, b->index, &m.shape, by_id, DUETP_T_COUNT, m.weights, 0};
        duetp_layer* l = nullptr;
        d.check(d->layer_new(d.self(), &desc, &l));
        layers_.push_back(l);
      }
    }
    ~Layers() {
      for (duetp_layer* l : layers_) device_->layer_free(device_.self(), l);
    }
    Layers(const Layers&) = delete;
    Layers& operator=(const Layers&) = delete;
    const duetp_layer* operator[](uint32_t i) const { return layers_[i]; }

   private:
    Device& device_;
    std::vector<duetp_layer*> layers_;
  };

  const duetp_shape shape;
  const duet_dtype weights;

 private:
  struct Block {
    uint32_t index;
    std::vector<std::vector<unsigned char>> data;
    std::vector<duetp_tensor> tensors;
  };

  void add(Block& b, uint32_t id, std::vector<uint32_t> dim, float center, float spread, bool matrix = false) {
    size_t n = 1;
    for (uint32_t d : dim) n *= d;
    std::vector<float> values(n);
    for (float& v : values) v = center + spread * random_.next();
    const duet_dtype dtype = matrix ? weights : DUET_F32;
    b.data.emplace_back(n * bytes_of(dtype) + 64);
    unsigned char* at = b.data.back().data();
    at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64 + bytes_of(dtype);  // one element after a multiple of 64
    if (reinterpret_cast<uintptr_t>(at) % bytes_of(dtype)) throw std::logic_error("unaligned");
    encode(values, dtype, at);
    duetp_tensor t{};
    t.size = sizeof t;
    t.id = id;
    t.name = "test";
    t.data = at;
    t.bytes = n * bytes_of(dtype);
    t.dtype = dtype;
    t.n_dim = static_cast<uint32_t>(dim.size());
    std::copy(dim.begin(), dim.end(), t.dim);
    b.tensors.push_back(t);
  }

  std::unique_ptr<Block> block(uint32_t index) {
    auto b = std::make_unique<Block>();
    const uint32_t C = shape.n_embd, F = shape.n_ffn, V = shape.n_vocab;
    b->index = index;
    const auto vectors = [&](std::initializer_list<uint32_t> ids, float center, float spread) {
      for (uint32_t id : ids) add(*b, id, {C}, center, spread);
    };
    const auto matrix = [&](uint32_t id, uint32_t rows, uint32_t columns, uint32_t in) { add(*b, id, {rows, columns}, 0, std::sqrt(3.0f / static_cast<float>(in)), true); };
    if (index == shape.n_layer) {
      matrix(DUETP_T_EMB, V, C, 3);
      matrix(DUETP_T_HEAD, V, C, C);
      vectors({DUETP_T_LN0_W, DUETP_T_LN_OUT_W}, 1, 0.5f);
      vectors({DUETP_T_LN0_B, DUETP_T_LN_OUT_B}, 0, 0.5f);
      return b;
    }
    vectors({DUETP_T_LN1_W, DUETP_T_LN2_W, DUETP_T_LN_X_W}, 1, 0.5f);
    vectors({DUETP_T_LN1_B, DUETP_T_LN2_B, DUETP_T_LN_X_B}, 0, 0.5f);
    vectors({DUETP_T_X_R, DUETP_T_X_W, DUETP_T_X_K, DUETP_T_X_V, DUETP_T_X_A, DUETP_T_X_G, DUETP_T_FFN_X_K}, 0.5f, 0.5f);
    vectors({DUETP_T_W0, DUETP_T_A0, DUETP_T_K_K, DUETP_T_K_A, DUETP_T_R_K}, 0, 1);
    const uint32_t rank[] = {shape.rank_w, shape.rank_a, shape.rank_v, shape.rank_g};
    for (uint32_t i = 0; i < 4; ++i) {
      if (index == 0 && i == 2) continue;  // layer 0 has no v0, v1, v2
      matrix(DUETP_T_W1 + i, C, rank[i], C);
      matrix(DUETP_T_W2 + i, rank[i], C, rank[i]);
    }
    if (index > 0) vectors({DUETP_T_V0}, 0, 1);
    for (uint32_t id : {DUETP_T_RECEPTANCE, DUETP_T_KEY, DUETP_T_VALUE, DUETP_T_OUTPUT}) matrix(id, C, C, C);
    matrix(DUETP_T_FFN_KEY, F, C, C);
    matrix(DUETP_T_FFN_VALUE, C, F, F);
    return b;
  }

  Random random_;
  std::vector<std::unique_ptr<Block>> blocks_;
};

}  // namespace stages
