// What a product does with its sums.
#pragma once
#include "product.h"

namespace duet_cuda {

__device__ __forceinline__ float finished(Finish f, float sum) {
  switch (f) {
    case Finish::tanh_input: return tanhf(sum);
    case Finish::sigmoid_input: return 1.0f / (1.0f + expf(-sum));
    case Finish::relu_squared_input: sum = fmaxf(sum, 0.0f); return sum * sum;
    default: return sum;
  }
}

template <class T>
__device__ __forceinline__ void finish(const Product& p, uint64_t at, float sum) {  // T: of matrix inputs
  float* y = static_cast<float*>(p.y) + at;
  switch (p.finish) {
    case Finish::store: *y = sum; break;
    case Finish::add: *y += sum; break;
    default: static_cast<T*>(p.y)[at] = duet_gpu::from_f32<T>(finished(p.finish, sum));
  }
}

}  // namespace duet_cuda
