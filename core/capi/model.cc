// duet.h sections 3 and 4: files and model.
#include <cmath>
#include <cstddef>

#include "capi/argument.h"
#include "capi/handle.h"
#include "model/describe.h"

namespace duet {
namespace {

OpenOptions open_options(uint32_t flags) {
  if (flags & ~uint32_t{DUET_FILE_STRICT | DUET_FILE_VERIFY}) fail(DUET_E_INVALID, "flags {:#x}: only DUET_FILE_STRICT and DUET_FILE_VERIFY are known", flags);
  return {(flags & DUET_FILE_STRICT) != 0, (flags & DUET_FILE_VERIFY) != 0};
}

void check_weights(duet_dtype t) {
  if (t != 0 && t != DUET_F32 && t != DUET_F16 && t != DUET_BF16 && t != DUET_I8 && t != DUET_I4)
    fail(DUET_E_UNSUPPORTED, "weights of dtype {}: this version has f32, f16, bf16, q8 and q4", t);
}

duet_model* new_model(const std::shared_ptr<Library>& library, std::unique_ptr<WeightSource> source, const std::string& path, const duet_model_options& o) {
  check_weights(o.weights);
  if (o.trainable) fail(DUET_E_UNSUPPORTED, "training is not part of this version");
  return new_handle<duet_model>(std::make_shared<Model>(library, std::move(source), path, text_argument(o.device, "device", 256), o.weights, o.progress, o.progress_user));
}

}  // namespace
}  // namespace duet

using namespace duet;

duet_status duet_file_info(duet_library* library, const char* path, uint32_t flags, char* dst, size_t cap, size_t* out_size) {
  return guard([&] {
    const auto lib = object(library);
    const auto file = Checkpoint::open(path_argument(path, "path"), lib->log, open_options(flags));
    give_text(describe_checkpoint(file, lib->log, flags), dst, cap, out_size);
  });
}

duet_status duet_file_convert(duet_library* library, const char* in, const char* out, const duet_convert_options* options) {
  return guard([&] {
    const auto lib = object(library);
    const auto o = read_struct(options, "options");
    check_weights(o.weights);
    const std::string from = path_argument(in, "in"), to = path_argument(out, "out");
    const auto source = open_weights(from, lib->log, open_options(o.flags));
    save_weights(*source, to, o.overwrite != 0, o.weights, {}, o.progress, o.progress_user);
  });
}

duet_status duet_file_init(duet_library* library, const char* out, const duet_init_options* options) {
  return guard([&] {
    const auto lib = object(library);
    require(options, "options");
    auto o = read_struct(options, "options", offsetof(duet_init_options, progress));
    check_weights(o.weights);
    if (o.weights == DUET_I8 || o.weights == DUET_I4)
      fail(DUET_E_UNSUPPORTED, "a fresh model is made to be trained, in f32, f16 or bf16; convert it to {} afterwards", weights_name(o.weights));
    if (o.weights == 0) o.weights = DUET_F32;
    const std::string to = path_argument(out, "out");
    save_weights(*initial_weights(o), to, o.overwrite != 0, o.weights, {{"duet.seed", std::to_string(o.seed)}}, o.progress, o.progress_user);
  });
}

duet_status duet_model_load(duet_library* library, const char* path, const duet_model_options* options, duet_model** out_model) {
  return guard([&] {
    require(out_model, "out_model");
    const auto lib = object(library);
    lib->check_process();
    const auto o = read_struct(options, "options");
    const std::string file = path_argument(path, "path");
    *out_model = new_model(lib, open_weights(file, lib->log, open_options(o.flags)), file, o);
  });
}

duet_status duet_model_random(duet_library* library, const duet_random_options* random, const duet_model_options* options, duet_model** out_model) {
  return guard([&] {
    require(out_model, "out_model");
    require(random, "random");
    const auto lib = object(library);
    lib->check_process();
    auto o = read_struct(options, "options");
    const auto r = read_struct(random, "random");
    require(r.shape, "random->shape");
    (void)text_argument(r.shape, "random->shape", 64);
    if (!(r.relu2 >= 0 && r.relu2 < 1)) fail(DUET_E_INVALID, "random->relu2 is {}; it is a share in (0,1), or 0", r.relu2);
    if (o.weights == 0) o.weights = DUET_BF16;
    *out_model = new_model(lib, random_weights(r), "", o);
  });
}

duet_status duet_model_save(duet_model* model, const char* path) {
  return guard([&] { object(model)->save(path_argument(path, "path")); });
}

duet_status duet_model_get(duet_model* model, duet_model_info* out_info) {
  return guard([&] {
    require(out_info, "out_info");
    const auto m = object(model);
    const duetp_shape& s = m->shape();
    duet_model_info i{};
    i.n_layer = s.n_layer, i.n_embd = s.n_embd, i.n_head = s.n_head, i.head_size = s.head_size, i.n_ffn = s.n_ffn, i.n_vocab = s.n_vocab;
    i.rank_w = s.rank_w, i.rank_a = s.rank_a, i.rank_v = s.rank_v, i.rank_g = s.rank_g;
    i.weights = m->weights();
    i.n_params = m->n_params();
    i.weight_bytes = m->weight_bytes();
    i.bytes_per_token = m->bytes_per_token();
    i.state_bytes = m->state_bytes(DUET_F32);
    i.device = m->device().spec.c_str();
    write_struct(out_info, i, "out_info");
  });
}

void duet_model_free(duet_model* model) { free_handle(model); }
