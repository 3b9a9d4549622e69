// Handles across the C ABI are not pointers: they name an entry of one table by index and generation, so that a freed,
// foreign or forged one is an error. The table holds the object; who uses it holds it too, so frees may come in any order.
#pragma once
#include <memory>

#include "duet.h"
#include "exec/generate.h"

namespace duet {

enum class Kind : uint8_t { library = 1, model, state, session, tokenizer, sampler };

// What a handle of the C API stands for.
struct SamplerObject {
  explicit SamplerObject(SamplerOptions o) : sampler(std::move(o)) {}
  Sampler sampler;
  std::atomic<bool> busy{false};
};
template <class Handle>
struct HandleTraits;
#define DUET_HANDLE(handle, type, name) \
  template <>                           \
  struct HandleTraits<handle> {         \
    using Object = type;                \
    static constexpr Kind kind = Kind::name; \
    static constexpr const char* text = #name; \
  }
DUET_HANDLE(duet_library, Library, library);
DUET_HANDLE(duet_model, Model, model);
DUET_HANDLE(duet_state, State, state);
DUET_HANDLE(duet_session, Session, session);
DUET_HANDLE(duet_tokenizer, const Tokenizer, tokenizer);
DUET_HANDLE(duet_sampler, SamplerObject, sampler);
#undef DUET_HANDLE

void* add_handle(Kind kind, std::shared_ptr<const void> object);             // never NULL
std::shared_ptr<const void> find_handle(Kind kind, const void* handle);      // empty if it is not a live one of this kind
std::shared_ptr<const void> remove_handle(Kind kind, const void* handle) noexcept;

template <class Handle>
std::shared_ptr<typename HandleTraits<Handle>::Object> object(Handle* handle) {
  using Traits = HandleTraits<Handle>;
  auto found = find_handle(Traits::kind, handle);
  if (!found) fail(DUET_E_HANDLE, "the {} handle {}", Traits::text, handle ? "is not live: it was freed, or never was one" : "is NULL");
  return std::static_pointer_cast<typename Traits::Object>(std::const_pointer_cast<void>(found));
}
// The same for work on the device, which no forked child of the library's process can do.
inline const Library& library_of(const Model& m) { return m.library(); }
template <class Object>
const Library& library_of(const Object& o) {
  return o.model()->library();
}
template <class Handle>
std::shared_ptr<typename HandleTraits<Handle>::Object> device_object(Handle* handle) {
  auto o = object(handle);
  library_of(*o).check_process();
  return o;
}
template <class Handle>
Handle* new_handle(std::shared_ptr<typename HandleTraits<Handle>::Object> o) {
  return static_cast<Handle*>(add_handle(HandleTraits<Handle>::kind, std::move(o)));
}
template <class Handle>
void free_handle(Handle* handle) noexcept {
  (void)remove_handle(HandleTraits<Handle>::kind, handle);
}

// One caller at a time: a second one, or a call from inside the object's own callback, gets DUET_E_BUSY.
class Exclusive {
 public:
  Exclusive(std::atomic<bool>& busy, const char* what) : busy_(busy) {
    if (busy_.exchange(true)) fail(DUET_E_BUSY, "the {} is in use by another call", what);
  }
  ~Exclusive() { busy_.store(false); }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  std::atomic<bool>& busy_;
};

}  // namespace duet
