/* check MODEL PLUGIN [WORDS]: the default search finds the plugin beside the installed library, and both modes of it give the
 * logits of the reference; it refuses bf16 with these words, if there are any. The World vocabulary is found too. */
#include <duet.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 12 };

static void check(duet_status status, const char* what) {
  if (status == DUET_OK) return;
  fprintf(stderr, "%s: %s: %s\n", what, duet_status_name(status), duet_last_error());
  exit(1);
}

/* the logits of the last token; the caller frees them */
static float* logits_of(duet_library* library, const char* path, const char* device, duet_mode mode, uint32_t* out_width) {
  static const int32_t tokens[N_TOKENS] = {0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 11, 12};
  const uint32_t lengths[1] = {N_TOKENS};
  duet_model_options model_options = DUET_INIT(duet_model_options);
  duet_session_options session_options = DUET_INIT(duet_session_options);
  duet_batch batch = DUET_INIT(duet_batch);
  duet_model* model;
  duet_state* state;
  duet_session* session;
  const float* row;
  uint32_t n_rows;
  model_options.device = device;
  model_options.weights = DUET_F32;
  session_options.mode = mode;
  batch.n_seqs = 1;
  batch.tokens = tokens;
  batch.lengths = lengths;
  check(duet_model_load(library, path, &model_options, &model), device);
  check(duet_state_create(model, 1, NULL, &state), "state");
  check(duet_session_create(model, &session_options, &session), "session");
  check(duet_forward(session, state, &batch), "forward");
  check(duet_session_outputs(session, DUET_OUTPUT_LOGITS, &row, &n_rows, out_width), "logits");
  float* copy = malloc(*out_width * sizeof(float));
  memcpy(copy, row, *out_width * sizeof(float));
  duet_session_free(session);
  duet_state_free(state);
  duet_model_free(model);
  return copy;
}

int main(int argc, char** argv) {
  duet_library* library;
  duet_tokenizer* world;
  duet_model* model;
  duet_model_options model_options = DUET_INIT(duet_model_options);
  static char report[1 << 16];
  size_t size;
  if (argc < 3) return 2;
  check(duet_library_create(NULL, &library), "library");
  check(duet_library_report(library, report, sizeof report, &size), "report");
  puts(report);
  check(duet_tokenizer_load(library, NULL, &world), "the World vocabulary");
  duet_tokenizer_free(world);
  model_options.device = argv[2];
  model_options.weights = DUET_BF16;
  if (argc > 3 && (duet_model_load(library, argv[1], &model_options, &model) != DUET_E_UNSUPPORTED || !strstr(duet_last_error(), argv[3]))) return 1;
  for (duet_mode mode = DUET_MODE_RECURRENT; mode <= DUET_MODE_PARALLEL; ++mode) {
    uint32_t n;
    float *ours = logits_of(library, argv[1], argv[2], mode, &n), *theirs = logits_of(library, argv[1], "reference", mode, &n);
    double worst = 0;
    for (uint32_t i = 0; i < n; ++i) worst = fmax(worst, fabs(ours[i] - theirs[i]));
    printf("mode %d: %u logits, largest difference %.3g\n", mode, n, worst);
    free(ours);
    free(theirs);
    if (!(worst < 1e-4)) return 1;
  }
  duet_library_free(library);
  return 0;
}
