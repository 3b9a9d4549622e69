#include <duet.h>
#include <stdio.h>
#include <string.h>

static duet_status show(void* out, const char* text, size_t n) { return fwrite(text, 1, n, out) == n ? DUET_OK : DUET_E_IO; }

int main(int argc, char** argv) {
  const char* text = "Once upon a time";
  int32_t tokens[64] = {0}; /* token 0 begins a text */
  size_t n = 0;
  duet_library* library = NULL;
  duet_model* model = NULL;
  duet_tokenizer* tokenizer = NULL;
  duet_state* state = NULL;     /* what the model remembers of a text: of one size, however long the text */
  duet_session* session = NULL; /* reads a prompt in parallel, then goes on token by token */
  duet_sampler* sampler = NULL;
  duet_generate_options options = DUET_INIT(duet_generate_options);

  int failed = duet_library_create(NULL, &library) || duet_model_load(library, argc > 1 ? argv[1] : "", NULL, &model) ||
               duet_tokenizer_for_model(model, &tokenizer) || duet_tokenizer_encode(tokenizer, text, strlen(text), tokens + 1, 63, &n) ||
               duet_state_create(model, 1, NULL, &state) || duet_session_create(model, NULL, &session) || duet_sampler_create(NULL, &sampler);
  if (!failed) {
    options.tokenizer = tokenizer;
    options.on_text = show;
    options.user = stdout;
    failed = duet_generate(session, state, 0, sampler, tokens, n + 1, &options, NULL);
  }
  if (failed) fprintf(stderr, "%s\n", duet_last_error());

  duet_library_free(library); /* in any order: what is still needed stays */
  duet_model_free(model);
  duet_tokenizer_free(tokenizer);
  duet_state_free(state);
  duet_session_free(session);
  duet_sampler_free(sampler);
  return failed != 0;
}
