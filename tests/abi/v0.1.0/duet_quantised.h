/* duet_quantised.h - the one stored form of quantised matrices, DUET_I8 and DUET_I4, and the rounding of what they are
 * multiplied by. C99 and C++20. docs/quantisation.md gives the reasons.
 *
 * A matrix has `out` outputs and `in` inputs, whichever way round its float form lies. Inputs form groups of 64; each pair
 * of an output and a group has a scale, with DUET_I4 also a minimum, in bf16:
 *     DUET_I8  w = scale q,             q in [-127,127]
 *     DUET_I4  w = scale u + minimum,   u in [0,15]
 * Outputs form tiles of `width`: 16, and 1 for the embedding, of which single rows are read. `out` is padded to whole tiles
 * and `in` to whole groups, with zeros. In memory, last index fastest, with O = ceil(out / width) and G = ceil(in / 64):
 *     DUET_I8  q i8 [O, 16 G, width, 4]:                     tile, input / 4, output in its tile, input % 4
 *     DUET_I4  u u8 [O,  8 G, width, 4], two to a byte:      the low half is input 8 i + j, the high half 8 i + 4 + j
 *     scale, minimum  bf16 [O, G, width]
 * so that four inputs of 16 outputs are one vector of 64 bytes, and no sum runs across lanes. */
#ifndef DUET_QUANTISED_H
#define DUET_QUANTISED_H
#include <string.h>
#include "duet_plugin.h"
#ifdef __cplusplus
extern "C" {
#endif
/* Inputs of a group, and outputs of a tile. */
enum { DUETP_QUANTISED_GROUP = 64, DUETP_QUANTISED_TILE = 16 };

/* Whether matrices of this dtype have this form. */
static inline int duetp_is_quantised(duet_dtype t) { return t == DUET_I8 || t == DUET_I4; }
/* Whether the float form of this tensor is [in,out]: the low-rank pairs. Else [out,in]. */
static inline int duetp_is_in_major(uint32_t id) { return id >= DUETP_T_W1 && id <= DUETP_T_G2; }

/* The sizes of one matrix. */
typedef struct duetp_quantised_form {
  uint32_t out, in, width; /* as above, not padded */
  uint64_t tiles, groups;  /* O and G */
  uint64_t bytes;  /* of the integers */
  uint64_t scales; /* elements of `scale`, and of `minimum` */
} duetp_quantised_form;

/* Of the tensor `id` (DUETP_T_*) with so many outputs and inputs. */
static inline duetp_quantised_form duetp_form_of(uint32_t id, duet_dtype dtype, uint32_t out, uint32_t in) {
  duetp_quantised_form f;
  f.out = out;
  f.in = in;
  f.width = id == DUETP_T_EMB ? 1 : DUETP_QUANTISED_TILE;
  f.tiles = ((uint64_t)out + f.width - 1) / f.width;
  f.groups = ((uint64_t)in + DUETP_QUANTISED_GROUP - 1) / DUETP_QUANTISED_GROUP;
  f.scales = f.tiles * f.groups * f.width;
  f.bytes = f.scales * DUETP_QUANTISED_GROUP / (dtype == DUET_I4 ? 2 : 1);
  return f;
}
/* Of a tensor. */
static inline duetp_quantised_form duetp_form(const duetp_tensor* t) {
  const int in_major = duetp_is_in_major(t->id);
  return duetp_form_of(t->id, t->dtype, t->dim[in_major ? 1 : 0], t->dim[in_major ? 0 : 1]);
}

/* Element i of bf16 numbers. */
static inline float duetp_bf16(const void* p, uint64_t i) {
  const uint32_t bits = (uint32_t)((const uint16_t*)p)[i] << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

/* The weight of input i for output o, of a tensor of DUET_I8 or DUET_I4. */
static inline float duetp_quantised_weight(const duetp_tensor* t, const duetp_quantised_form* f, uint64_t o, uint64_t i) {
  const uint64_t tile = o / f->width, lane = o % f->width, group = i / DUETP_QUANTISED_GROUP;
  const uint64_t s = (tile * f->groups + group) * f->width + lane;
  if (t->dtype == DUET_I8) {
    const uint64_t at = ((tile * f->groups * 16 + i / 4) * f->width + lane) * 4 + i % 4;
    return duetp_bf16(t->scale, s) * (float)((const int8_t*)t->data)[at];
  }
  const uint64_t at = ((tile * f->groups * 8 + i / 8) * f->width + lane) * 4 + i % 4;
  const uint8_t pair = ((const uint8_t*)t->data)[at];
  return duetp_bf16(t->scale, s) * (float)(i % 8 < 4 ? pair & 15 : pair >> 4) + duetp_bf16(t->minimum, s);
}

/* Inputs of products with quantised matrices are rounded too, in groups of 64 from the first: x ~ *scale q with q in
 * [-127,127], *scale = max|x| / 127, q = x * (127 / max|x|) to the nearest, ties to even; all in f32. n <= 64; the rest of q
 * is zero. Groups below 1e-30 become zeros; values that are not finite make *scale so. */
static inline void duetp_round_input(const float* x, uint32_t n, int8_t q[DUETP_QUANTISED_GROUP], float* scale) {
  uint32_t largest = 0, i;
  float max, factor;
  for (i = 0; i < n; ++i) { /* bits of magnitudes sort as the magnitudes do, NaN last */
    uint32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffffu;
    if (bits > largest) largest = bits;
  }
  memcpy(&max, &largest, sizeof max);
  *scale = max / 127.0f;
  factor = max >= 1e-30f && largest < 0x7f800000u ? 127.0f / max : 0.0f;
  for (i = 0; i < DUETP_QUANTISED_GROUP; ++i) {
    volatile float v = i < n && factor > 0 ? x[i] * factor : 0.0f; /* volatile: neither fused nor kept wider */
    v = v + 12582912.0f;                                           /* 1.5 2^23: the sum has no bits after the point */
    q[i] = (int8_t)(v - 12582912.0f);
  }
}
#ifdef __cplusplus
}
#endif
#endif
