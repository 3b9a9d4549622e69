#include "conform/model.h"

#include <algorithm>
#include <cmath>

#include "model/quantise.h"

namespace conform {

duetp_shape shape_of(uint32_t n_layer, uint32_t n_head, uint32_t head_size, uint32_t n_ffn, uint32_t n_vocab) {
  return {sizeof(duetp_shape), n_layer, n_head * head_size, n_head, head_size, n_ffn, n_vocab, 8, 32, n_layer > 1 ? 5u : 0u, 40, 1e-5f, 64e-5f};
}

Model::Model(const duetp_shape& shape, duet_dtype weights, uint64_t seed) : shape(shape), weights(weights), random_(seed) {
  for (uint32_t i = 0; i <= shape.n_layer; ++i) blocks_.push_back(block(i));
}

Model::Layers::Layers(Device& d, const Model& m, bool prepared) : device_(d) {
  for (const Block& b : m.blocks_) {
    const duetp_tensor* by_id[DUETP_T_COUNT] = {};
    for (const duetp_tensor& t : b.tensors) by_id[t.id] = &t;
    const duetp_layer_desc desc{sizeof desc, b.index, &m.shape, by_id, DUETP_T_COUNT, m.weights, 0};
    duetp_layer* l = nullptr;
    d.check(d->layer_new(d.self(), &desc, &l));
    layers_.push_back(l);
    if (prepared) prepare(b.index, DUET_MODE_PARALLEL), prepare(b.index, DUET_MODE_RECURRENT);
  }
}

uint64_t Model::Layers::prepare(uint32_t i, duet_mode mode) {
  uint64_t copied = 0;
  if (device_->layer_prepare) device_.check(device_->layer_prepare(device_.self(), layers_[i], mode, &copied));
  return copied;
}

Model::Layers::~Layers() {
  for (duetp_layer* l : layers_) device_->layer_free(device_.self(), l);
}

const duetp_tensor& Model::tensor(uint32_t layer, uint32_t id) const {
  const std::vector<duetp_tensor>& all = blocks_.at(layer).tensors;
  return *std::find_if(all.begin(), all.end(), [=](const duetp_tensor& t) { return t.id == id; });
}

void Model::add(Block& b, uint32_t id, std::vector<uint32_t> dim, float center, float spread, bool matrix) {
  size_t n = 1;
  for (uint32_t d : dim) n *= d;
  std::vector<float> values(n);
  for (float& v : values) v = center + spread * random_.next();
  duetp_tensor t{};
  t.size = sizeof t;
  t.id = id;
  t.name = "random";
  t.dtype = matrix ? weights : DUET_F32;
  t.n_dim = static_cast<uint32_t>(dim.size());
  std::copy(dim.begin(), dim.end(), t.dim);
  const bool quantised = duetp_is_quantised(t.dtype);
  const duetp_quantised_form form = quantised ? duetp_form(&t) : duetp_quantised_form();
  t.bytes = quantised ? form.bytes : n * bytes_of(t.dtype);
  b.data.emplace_back((quantised ? duet::quantised_block_bytes(form, t.dtype) : t.bytes) + 64 + 4);
  unsigned char* at = b.data.back().data();
  at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64 + (quantised ? 2 : bytes_of(t.dtype));  // one element after a multiple of 64
  t.data = at;
  if (quantised) {
    duet::quantise(id, t.dtype, form, 0, form.tiles, values.data(), at);
    const duet::QuantisedMatrix parts = duet::quantised_parts(form, t.dtype, at);
    t.scale = parts.scale;
    t.scale_bytes = form.scales * 2;
    t.minimum = parts.minimum;
    t.minimum_bytes = parts.minimum ? form.scales * 2 : 0;
    t.group = DUETP_QUANTISED_GROUP;
    t.scale_dtype = DUET_BF16;
  } else {
    encode(values, t.dtype, at);
  }
  b.tensors.push_back(t);
}

Model::Block Model::block(uint32_t index) {
  Block b;
  const uint32_t C = shape.n_embd, F = shape.n_ffn, V = shape.n_vocab;
  b.index = index;
  const auto vectors = [&](std::initializer_list<uint32_t> ids, float center, float spread) {
    for (uint32_t id : ids) add(b, id, {C}, center, spread);
  };
  const auto matrix = [&](uint32_t id, uint32_t rows, uint32_t columns, uint32_t in) {
    add(b, id, {rows, columns}, 0, std::sqrt(3.0f / static_cast<float>(in)), true);
  };
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

}  // namespace conform
