// What a product does with its sums.
#pragma once
#include "product.h"

namespace duet_cuda {

template <class T>
__device__ __forceinline__ void finish(const Product& p, uint64_t at, float sum) {  // T: of matrix inputs
  float* y = static_cast<float*>(p.y) + at;
  T* input = static_cast<T*>(p.y) + at;
  switch (p.finish) {
    case Finish::store: *y = sum; break;
    case Finish::add: *y += sum; break;
    case Finish::input: *input = duet_gpu::from_f32<T>(sum); break;
    case Finish::tanh_input: *input = duet_gpu::from_f32<T>(tanhf(sum)); break;
    case Finish::sigmoid_input: *input = duet_gpu::from_f32<T>(1.0f / (1.0f + expf(-sum))); break;
    case Finish::relu_squared_input: sum = fmaxf(sum, 0.0f), *input = duet_gpu::from_f32<T>(sum * sum); break;
  }
}

}  // namespace duet_cuda
