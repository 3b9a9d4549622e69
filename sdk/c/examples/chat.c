/* chat MODEL: tells a story together with you. Each line that you type is added to it, then the model goes on. Ctrl-C stops
 * the model's turn, an empty line (or the end of the input) ends the story. */
#include <duet.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

enum { LINE = 4096 };

static volatile int32_t cancel;

static void interrupt(int number) {
  (void)number;
  cancel = 1;
}

static duet_status show(void* last, const char* text, size_t n) {
  (void)last;
  return fwrite(text, 1, n, stdout) == n && fflush(stdout) == 0 ? DUET_OK : DUET_E_IO;
}

static duet_status keep(void* last, int32_t token) { return *(int32_t*)last = token, DUET_OK; }

/* What is typed, up to an empty line. What does not fit is left for the next turn. */
static int read_line(char* line) {
  fputs("> ", stdout);
  fflush(stdout);
  if (fgets(line, LINE, stdin) == NULL) return 0;
  line[strcspn(line, "\n")] = '\0';
  return *line != '\0';
}

static duet_status talk(duet_session* session, duet_state* state, duet_tokenizer* tokenizer, duet_sampler* sampler) {
  int32_t unread[2 * LINE] = {0}; /* what the state has not read yet: token 0 begins a text */
  int32_t last = 0;
  size_t n_unread = 1, n = 0;
  char line[LINE];
  duet_status s = DUET_OK;
  duet_generate_options options = DUET_INIT(duet_generate_options);
  options.max_tokens = 60;
  options.tokenizer = tokenizer;
  options.on_token = keep;
  options.on_text = show;
  options.user = &last;
  options.cancel = &cancel;
  while ((s == DUET_OK || s == DUET_E_CANCELLED) && read_line(line)) {
    duet_generate_result turn = DUET_INIT(duet_generate_result);
    /* a turn that was cancelled early leaves some unread: then there may be no room, which is DUET_E_SMALL */
    if ((s = duet_tokenizer_encode(tokenizer, line, strlen(line), unread + n_unread, 2 * LINE - n_unread, &n)) != DUET_OK) break;
    n_unread += n;
    cancel = 0;
    s = duet_generate(session, state, 0, sampler, unread, n_unread, &options, &turn);
    putchar('\n');
    n_unread -= (size_t)turn.n_prompt;
    memmove(unread, unread + turn.n_prompt, n_unread * sizeof *unread);
    if (turn.n_new > 0) unread[n_unread++] = last;
    if (s == DUET_OK && turn.finish == DUET_FINISH_STOP_TOKEN) { /* the story ended: the next line begins another */
      s = duet_state_reset(state, 0);
      unread[0] = 0;
      n_unread = 1;
    }
  }
  return s == DUET_E_CANCELLED ? DUET_OK : s;
}

int main(int argc, char** argv) {
  duet_library* library = NULL;
  duet_model* model = NULL;
  duet_tokenizer* tokenizer = NULL;
  duet_state* state = NULL;     /* all that the model remembers of the story */
  duet_session* session = NULL; /* reads your lines in parallel, goes on token by token */
  duet_sampler* sampler = NULL;
  duet_sampler_options options = DUET_INIT(duet_sampler_options);
  if (argc != 2) return fputs("usage: chat MODEL\n", stderr), 2;
  signal(SIGINT, interrupt);

  duet_sampler_options_default(&options);
  options.temperature = 0.8f;
  options.top_p = 0.7f;
  options.seed = 1;
  int failed = duet_library_create(NULL, &library) || duet_model_load(library, argv[1], NULL, &model) || duet_tokenizer_for_model(model, &tokenizer) ||
               duet_state_create(model, 1, NULL, &state) || duet_session_create(model, NULL, &session) || duet_sampler_create(&options, &sampler) ||
               talk(session, state, tokenizer, sampler);
  if (failed) fprintf(stderr, "chat: %s\n", duet_last_error());

  duet_library_free(library); /* in any order: what is still needed stays */
  duet_model_free(model);
  duet_tokenizer_free(tokenizer);
  duet_state_free(state);
  duet_session_free(session);
  duet_sampler_free(sampler);
  return failed != 0;
}
