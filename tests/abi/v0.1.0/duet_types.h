/* duet_types.h - types shared by the user API (duet.h) and the plugin API (duet_plugin.h).
 * C99 and C++20; includes nothing but stddef.h and stdint.h. */
#ifndef DUET_TYPES_H
#define DUET_TYPES_H
#include <stddef.h>
#include <stdint.h>

/* Result of every call that can fail. Codes are part of the ABI: never renumbered, only appended.
 * 0 is success, all failures are negative. */
typedef int32_t duet_status;
/* Values of duet_status. */
enum {
  DUET_OK = 0,
  DUET_E_INVALID = -1,     /* the caller broke the contract; the same call will fail again       */
  DUET_E_NOT_FOUND = -2,   /* a file, device, plugin or tensor that was named is not there       */
  DUET_E_UNSUPPORTED = -3, /* valid, but this plugin, device or build cannot do it               */
  DUET_E_MEMORY = -4,      /* host or device memory exhausted                                    */
  DUET_E_FORMAT = -5,      /* bytes are not what they claim to be (file, state, manifest)        */
  DUET_E_ABI = -6,         /* struct or plugin of a version that this library has no way to read */
  DUET_E_DEVICE = -7,      /* driver or device fault; the device object is dead                  */
  DUET_E_SMALL = -8,       /* the caller's buffer is too small; the required size was written    */
  DUET_E_CANCELLED = -9,   /* a user callback or flag asked to stop                              */
  DUET_E_IO = -10,         /* the operating system refused; its reason is in the message         */
  DUET_E_BUSY = -11,       /* used from two threads at once, or from inside its own callback     */
  DUET_E_HANDLE = -12,     /* not a live object of this kind (freed, or another's)               */
  DUET_E_LIMIT = -13,      /* over a stated limit; the message names it                          */
  DUET_E_NUMERIC = -14,    /* not finite where it must be                                        */
  DUET_E_EXISTS = -15,     /* the output exists and overwriting was not asked for                */
  DUET_E_INTERNAL = -100   /* a bug in Duet                                                      */
};

/* Storage type of one element or, for quantised weights, of one block. */
typedef int32_t duet_dtype;
/* Values of duet_dtype. Those from 16 on are reserved for quantised weights. */
enum {
  DUET_F32 = 1,
  DUET_F16 = 2,  /* IEEE binary16 */
  DUET_BF16 = 3, /* upper half of binary32 */
  DUET_I8 = 16, /* quantised weights, "q8" and "q4": docs/quantisation.md */
  DUET_I4 = 17,
  DUET_FP8_E4M3 = 24
};

/* How a run of tokens is computed. Both modes read and leave the same state. */
typedef int32_t duet_mode;
/* Values of duet_mode. */
enum {
  DUET_MODE_AUTO = 0,      /* parallel for runs of tokens, recurrent for single tokens */
  DUET_MODE_RECURRENT = 1, /* one token per sequence and step */
  DUET_MODE_PARALLEL = 2   /* whole (packed) sequences at once */
};

/* Levels of log messages. */
enum { DUET_LOG_DEBUG = 1, DUET_LOG_INFO = 2, DUET_LOG_WARNING = 3, DUET_LOG_ERROR = 4, DUET_LOG_OFF = 5 };
#endif
