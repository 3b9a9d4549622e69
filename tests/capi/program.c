/* A pure C program on the user ABI: loads a model, reads a prompt in parallel, goes on recurrently, prints the text. It also
 * includes the plugin headers, so that they too are compiled as C. */
#include <stdio.h>
#include <string.h>

#include "duet.h"
#include "duet_plugin.h"
#include "duet_stage.h"

static duet_status print(void* user, const char* text, size_t n) {
  *(size_t*)user += n;
  fwrite(text, 1, n, stdout);
  return DUET_OK;
}

#define TRY(call)                                                         \
  do {                                                                    \
    if ((call) != DUET_OK) {                                              \
      fprintf(stderr, "%s: %s\n", #call, duet_last_error());              \
      return 1;                                                           \
    }                                                                     \
  } while (0)

int main(int argc, char** argv) {
  static const char prompt[] = "Once upon a time";
  duet_library* library = NULL;
  duet_model* model = NULL;
  duet_tokenizer* tokenizer = NULL;
  duet_state* state = NULL;
  duet_session* session = NULL;
  duet_sampler* sampler = NULL;
  duet_generate_options options = DUET_INIT(duet_generate_options);
  duet_generate_result result = DUET_INIT(duet_generate_result);
  int32_t tokens[64] = {0}; /* token 0 begins a text */
  size_t n = 0, written = 0;
  if (argc != 2) return 2;
  if (duet_api_version() >> 16 != DUET_API_VERSION >> 16) return 1;
  TRY(duet_library_create(NULL, &library));
  TRY(duet_model_load(library, argv[1], NULL, &model));
  TRY(duet_tokenizer_for_model(model, &tokenizer));
  TRY(duet_tokenizer_encode(tokenizer, prompt, strlen(prompt), tokens + 1, 63, &n));
  TRY(duet_state_create(model, 1, NULL, &state));
  TRY(duet_session_create(model, NULL, &session));
  TRY(duet_sampler_create(NULL, &sampler));
  options.max_tokens = 16;
  options.tokenizer = tokenizer;
  options.on_text = print;
  options.user = &written;
  TRY(duet_generate(session, state, 0, sampler, tokens, n + 1, &options, &result));
  printf("\n%llu tokens read, %llu drawn\n", (unsigned long long)result.n_prompt, (unsigned long long)result.n_new);
  /* the order of frees is free */
  duet_library_free(library);
  duet_model_free(model);
  duet_session_free(session);
  duet_state_free(state);
  duet_sampler_free(sampler);
  duet_tokenizer_free(tokenizer);
  return written > 0 ? 0 : 1;
}
