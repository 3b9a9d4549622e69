#include "formats/checkpoint.h"

namespace duet {

size_t dtype_bytes(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16: return 2;
    case DType::i8:
    case DType::u8:
    case DType::boolean: return 1;
  }
  return 1;
}

const char* dtype_name(DType t) {
  switch (t) {
    case DType::f64: return "F64";
    case DType::f32: return "F32";
    case DType::f16: return "F16";
    case DType::bf16: return "BF16";
    case DType::i64: return "I64";
    case DType::i32: return "I32";
    case DType::i16: return "I16";
    case DType::i8: return "I8";
    case DType::u8: return "U8";
    case DType::boolean: return "BOOL";
  }
  return "?";
}

duet_dtype to_duet(DType t) {
  switch (t) {
    case DType::f32: return DUET_F32;
    case DType::f16: return DUET_F16;
    case DType::bf16: return DUET_BF16;
    case DType::i8: return DUET_I8;
    default: return 0;
  }
}

}  // namespace duet
