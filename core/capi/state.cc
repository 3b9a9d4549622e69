// duet.h section 5: state.
#include "base/file.h"
#include "capi/argument.h"
#include "capi/handle.h"

namespace duet {
namespace {

constexpr uint32_t kMaxSlots = 1u << 20;
constexpr uint64_t kMaxStateFile = 1ull << 32;

}  // namespace
}  // namespace duet

using namespace duet;

duet_status duet_state_create(duet_model* model, uint32_t n_slots, const duet_state_options* options, duet_state** out_state) {
  return guard([&] {
    require(out_state, "out_state");
    const auto m = device_object(model);
    const auto o = read_struct(options, "options");
    if (n_slots == 0 || n_slots > kMaxSlots) fail(DUET_E_LIMIT, "n_slots is {}; a state has 1 to {}", n_slots, kMaxSlots);
    *out_state = new_handle<duet_state>(std::make_shared<State>(m, n_slots, o.wkv));
  });
}

duet_status duet_state_reset(duet_state* state, uint32_t slot) {
  return guard([&] {
    const auto s = device_object(state);
    Exclusive lock(s->busy, "state");
    s->reset(slot);
  });
}

duet_status duet_state_copy(duet_state* dst, uint32_t dst_slot, duet_state* src, uint32_t src_slot) {
  return guard([&] {
    const auto to = device_object(dst), from = device_object(src);
    Exclusive lock(to->busy, "state");
    if (to == from) return to->copy_from(dst_slot, *from, src_slot);
    Exclusive lock_from(from->busy, "source state");
    to->copy_from(dst_slot, *from, src_slot);
  });
}

duet_status duet_state_get(duet_state* state, uint32_t slot, float* att_x, float* wkv, float* ffn_x) {
  return guard([&] {
    const auto s = device_object(state);
    Exclusive lock(s->busy, "state");
    const StateArrays a = s->get(slot);
    if (att_x) std::copy(a.att_x.begin(), a.att_x.end(), att_x);
    if (wkv) std::copy(a.wkv.begin(), a.wkv.end(), wkv);
    if (ffn_x) std::copy(a.ffn_x.begin(), a.ffn_x.end(), ffn_x);
  });
}

duet_status duet_state_set(duet_state* state, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x) {
  return guard([&] {
    const auto s = device_object(state);
    Exclusive lock(s->busy, "state");
    StateArrays a = s->get(slot);
    if (att_x) std::copy_n(att_x, a.att_x.size(), a.att_x.begin());
    if (wkv) std::copy_n(wkv, a.wkv.size(), a.wkv.begin());
    if (ffn_x) std::copy_n(ffn_x, a.ffn_x.size(), a.ffn_x.begin());
    s->set(slot, a);
  });
}

duet_status duet_state_save(duet_state* state, uint32_t slot, void* dst, size_t cap, size_t* out_size) {
  return guard([&] {
    const auto s = device_object(state);
    Exclusive lock(s->busy, "state");
    const std::string text = serialise_state(*s->model(), s->get(slot));
    give(text.data(), text.size(), static_cast<char*>(dst), cap, out_size);
  });
}

duet_status duet_state_load(duet_state* state, uint32_t slot, const void* src, size_t size) {
  return guard([&] {
    require(src, "src");
    const auto s = device_object(state);
    if (size > kMaxStateFile) fail(DUET_E_LIMIT, "a state of {} bytes; at most {}", size, kMaxStateFile);
    Exclusive lock(s->busy, "state");
    s->check_slot(slot);
    s->set(slot, parse_state(*s->model(), {static_cast<const std::byte*>(src), size}, "state"));
  });
}

duet_status duet_state_save_file(duet_state* state, uint32_t slot, const char* path) {
  return guard([&] {
    const std::string to = path_argument(path, "path");
    const auto s = device_object(state);
    Exclusive lock(s->busy, "state");
    const std::string text = serialise_state(*s->model(), s->get(slot));
    AtomicFile file(to, true);
    file.write(as_bytes(text));
    file.commit();
  });
}

duet_status duet_state_load_file(duet_state* state, uint32_t slot, const char* path) {
  return guard([&] {
    const std::string from = path_argument(path, "path");
    const auto s = device_object(state);
    Exclusive lock(s->busy, "state");
    s->check_slot(slot);
    const MappedFile file(from);
    s->set(slot, parse_state(*s->model(), file.bytes(), from));
  });
}

void duet_state_free(duet_state* state) { free_handle(state); }
