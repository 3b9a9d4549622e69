#include "cublas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <string>

#include "device.h"

namespace duet_cuda {

struct Cublas::Library {
#define DUET_CUBLAS_FUNCTIONS(X)                                                                                                            \
  X(cublasLtCreate) X(cublasLtDestroy) X(cublasLtMatmul) X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescDestroy)                            \
  X(cublasLtMatmulDescSetAttribute) X(cublasLtMatrixLayoutCreate) X(cublasLtMatrixLayoutDestroy) X(cublasLtMatrixLayoutSetAttribute)         \
  X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceDestroy) X(cublasLtMatmulPreferenceSetAttribute) X(cublasLtMatmulAlgoGetHeuristic)
#define DUET_CUBLAS_MEMBER(name) decltype(&::name) name = nullptr;
  DUET_CUBLAS_FUNCTIONS(DUET_CUBLAS_MEMBER)
#undef DUET_CUBLAS_MEMBER
  cublasLtHandle_t handle = nullptr;
  ~Library() {
    if (handle) cublasLtDestroy(handle);
  }
};

struct Cublas::Plan {
  Library& lt;
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulHeuristicResult_t choice{};
  explicit Plan(Library& l) : lt(l) {}
  ~Plan() {
    for (cublasLtMatrixLayout_t m : {w, x, y})
      if (m) lt.cublasLtMatrixLayoutDestroy(m);
    if (product) lt.cublasLtMatmulDescDestroy(product);
  }
};

namespace {

void check(cublasStatus_t s, const char* what) {
  if (s != CUBLAS_STATUS_SUCCESS)
    throw Failure(s == CUBLAS_STATUS_ALLOC_FAILED ? DUET_E_MEMORY : DUET_E_DEVICE, std::string("cuBLASLt: ") + what + " failed with status " + std::to_string(s));
}

cudaDataType type(duet_dtype t) { return t == DUET_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

}  // namespace

Cublas::Cublas() = default;
Cublas::~Cublas() = default;

std::string Cublas::open() {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  void* so = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!so) return dlerror();
  auto lt = std::make_unique<Library>();
#define DUET_CUBLAS_LOOK_UP(function)                                                \
  lt->function = reinterpret_cast<decltype(lt->function)>(dlsym(so, #function));     \
  if (!lt->function) return name + " has no function " #function;
  DUET_CUBLAS_FUNCTIONS(DUET_CUBLAS_LOOK_UP)
#undef DUET_CUBLAS_LOOK_UP
  if (const cublasStatus_t s = lt->cublasLtCreate(&lt->handle); s != CUBLAS_STATUS_SUCCESS) return name + " failed to start with status " + std::to_string(s);
  library_ = std::move(lt);
  return "";
}

bool Cublas::available(const duetp_host& host) {
  std::call_once(opened_, [&] {
    if (const std::string why = open(); !why.empty()) host.log(host.self, DUET_LOG_INFO, ("prompts are slower without cuBLASLt: " + why).c_str());
  });
  return library_ != nullptr;
}

// cuBLAS counts columns first, so it sees the transposes: y^T = op(W) x^T.
const Cublas::Plan& Cublas::plan(const Gemm& g, uint64_t workspace_bytes) {
  std::lock_guard lock(mutex_);
  std::unique_ptr<Plan>& slot = plans_[Key(g.rows, g.n_in, g.n_out, g.batch, g.input, g.output, g.in_major, g.add)];
  if (slot) return *slot;
  Library& lt = *library_;
  auto p = std::make_unique<Plan>(lt);
  check(lt.cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  const cublasOperation_t op = g.in_major ? CUBLAS_OP_N : CUBLAS_OP_T;
  check(lt.cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &op, sizeof op), "describing a product");
  const auto layout = [&](cublasLtMatrixLayout_t& m, duet_dtype t, uint64_t height, uint64_t width) {
    check(lt.cublasLtMatrixLayoutCreate(&m, type(t), height, width, static_cast<int64_t>(height)), "describing a matrix");
    const int32_t n = static_cast<int32_t>(g.batch);
    const int64_t stride = static_cast<int64_t>(height * width);
    check(lt.cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &n, sizeof n), "describing a batch");
    check(lt.cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride), "describing a batch");
  };
  layout(p->w, g.input, g.in_major ? g.n_out : g.n_in, g.in_major ? g.n_in : g.n_out);
  layout(p->x, g.input, g.n_in, g.rows);
  layout(p->y, g.output, g.n_out, g.rows);
  cublasLtMatmulPreference_t preference = nullptr;
  check(lt.cublasLtMatmulPreferenceCreate(&preference), "choosing an algorithm");
  const size_t bytes = workspace_bytes;
  // a product split along n_in adds its parts up in place and in any order: not the same bits every time
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK & ~CUBLASLT_REDUCTION_SCHEME_INPLACE;
  const uint32_t alignment = g.n_in % 64 == 0 && g.n_out % 64 == 0 ? 64 : 16;  // a duetp_ref's, but matrices that follow others lie as their sizes let them
  int found = 0;
  cublasStatus_t s = lt.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
  if (s == CUBLAS_STATUS_SUCCESS) s = lt.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
  for (const cublasLtMatmulPreferenceAttributes_t of : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    if (s == CUBLAS_STATUS_SUCCESS) s = lt.cublasLtMatmulPreferenceSetAttribute(preference, of, &alignment, sizeof alignment);
  if (s == CUBLAS_STATUS_SUCCESS) s = lt.cublasLtMatmulAlgoGetHeuristic(lt.handle, p->product, p->w, p->x, p->y, p->y, preference, 1, &p->choice, &found);
  lt.cublasLtMatmulPreferenceDestroy(preference);
  check(s, "choosing an algorithm");
  if (found == 0) throw Failure(DUET_E_UNSUPPORTED, "cuBLASLt has no algorithm for a product of this shape");
  slot = std::move(p);
  return *slot;
}

void Cublas::run(const Gemm& g, void* workspace, uint64_t workspace_bytes, cudaStream_t stream) {
  const Plan& p = plan(g, workspace_bytes);
  const float one = 1, beta = g.add ? 1 : 0;
  check(library_->cublasLtMatmul(library_->handle, p.product, &one, g.w, p.w, g.x, p.x, &beta, g.y, p.y, g.y, p.y, &p.choice.algo, workspace, workspace_bytes, stream), "a product");
}

}  // namespace duet_cuda
