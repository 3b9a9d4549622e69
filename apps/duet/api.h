// duet.h for C++: handles that free themselves, and check(), which turns a failed call into a Failure.
#pragma once
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "duet.h"
#include "terminal.h"

namespace duet {

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Library = std::unique_ptr<duet_library, Freed<duet_library_free>>;
using Model = std::unique_ptr<duet_model, Freed<duet_model_free>>;
using State = std::unique_ptr<duet_state, Freed<duet_state_free>>;
using Session = std::unique_ptr<duet_session, Freed<duet_session_free>>;
using Tokenizer = std::unique_ptr<duet_tokenizer, Freed<duet_tokenizer_free>>;
using Sampler = std::unique_ptr<duet_sampler, Freed<duet_sampler_free>>;

inline void check(duet_status status) {
  if (status == DUET_OK) return;
  if (status == DUET_E_CANCELLED) check_interrupted();
  const std::string sentence = duet_last_error();
  throw Failure(sentence.empty() ? duet_status_name(status) : sentence);
}

// The handle that `create(arguments..., &handle)` returns.
template <class Handle, class Create, class... Arguments>
Handle make(Create create, Arguments... arguments) {
  typename Handle::pointer object = nullptr;
  check(create(arguments..., &object));
  return Handle(object);
}

// The text that `get(arguments..., dst, cap, &size)` returns. Not asked for its size first: the call may read a whole file for it,
// and warn of what it finds there.
template <class Get, class... Arguments>
std::string get_text(Get get, Arguments... arguments) {
  constexpr size_t kMostTexts = size_t{1} << 20;
  std::string out(kMostTexts, '\0');
  for (bool whole = false; !whole;) {  // it may have grown in between
    size_t size = 0;
    const duet_status status = get(arguments..., out.data(), out.size(), &size);
    if (status != DUET_E_SMALL) check(status);
    whole = size <= out.size();
    out.resize(size);
  }
  return out;
}

// Keeps an exception of a callback from crossing the C interface: run() inside it, rethrow() after the call.
class Callback {
 public:
  template <class F>
  duet_status run(F&& body) noexcept {
    try {
      body();
      return DUET_OK;
    } catch (...) {
      error_ = std::current_exception();
      return DUET_E_CANCELLED;
    }
  }
  void rethrow() {
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  std::exception_ptr error_;
};

}  // namespace duet
