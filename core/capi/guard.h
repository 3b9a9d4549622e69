// The C border: every function of duet.h runs its body through guard(), which lets no exception out and keeps the
// sentence of a failure for duet_last_error.
#pragma once
#include <new>
#include <string>
#include <string_view>

#include "base/error.h"

namespace duet {

duet_status remember_failure(duet_status code, std::string_view sentence) noexcept;  // returns code

template <class F>
duet_status guard(F&& body) noexcept {
  try {
    body();
    return DUET_OK;
  } catch (const Error& e) {
    return remember_failure(e.code(), e.what());
  } catch (const std::bad_alloc&) {
    return remember_failure(DUET_E_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return remember_failure(DUET_E_INTERNAL, e.what());
  } catch (...) {
    return remember_failure(DUET_E_INTERNAL, "an exception of unknown type, from a plugin or a callback");
  }
}

}  // namespace duet
