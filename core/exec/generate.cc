#include "exec/generate.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <optional>
#include <utility>

#include "text/stream.h"

namespace duet {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kLongestBlock = 16;  // steps on a device that draws by itself, before the host looks at the tokens
constexpr size_t kPromptsAtOnce = 64;   // whose last logits come to the host together

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A generation under way.
class Running {
 public:
  explicit Running(Generation& g) : generation(g), rest(g.prompt), stream_(g.options.stop_texts) {}

  // False: it has ended, or is cancelled now. To be asked before the last token is fed.
  bool goes_on() {
    const auto* cancel = generation.options.cancel;
    if (!ended && cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED) != 0) end(DUET_E_CANCELLED, duet::format("generation was cancelled after {} tokens", result.n_new));
    return !ended;
  }
  // Draws with the host's sampler, in any thread; take_own() follows.
  void draw(std::span<const float> logits) noexcept {
    try {
      own_ = generation.sampler->draw(logits);
    } catch (...) {
      failure_ = std::current_exception();
    }
  }
  void take_own() {
    or_end([&] {
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      generation.sampler->accept(own_);
      return own_;
    });
  }
  // A token that the device has drawn, or what it says in place of one.
  void take_drawn(int32_t token, uint32_t n_vocab) {
    or_end([&] {
      if (token < 0) fail_draw(token, n_vocab);
      generation.sampler->accept(token);
      return token;
    });
  }
  // Whether something may end it before max_tokens.
  bool may_stop() const {
    const GenerateOptions& o = generation.options;
    return !o.stops.empty() || !o.stop_texts.empty() || o.on_token || o.on_text || o.cancel;
  }
  uint32_t n_left() const { return generation.options.max_tokens - static_cast<uint32_t>(result.n_new); }

  Generation& generation;
  duet_generate_result& result = generation.result;
  std::span<const int32_t> rest;  // of the prompt
  Clock::time_point start;        // of drawing
  int32_t last = 0;               // the token drawn last: not fed yet
  bool ended = false;

 private:
  template <class Token>
  void or_end(Token&& token) {
    int32_t drawn = 0;
    try {
      drawn = token();
    } catch (const Error& e) {
      if (e.code() != DUET_E_NUMERIC) throw;
      return end(e.code(), e.what());
    }
    take(drawn);
  }
  void end(duet_status status, std::string failure) {
    result.status = status;
    generation.failure = std::move(failure);
    ended = true;
  }
  bool show(const std::string& text) { return text.empty() || !generation.options.on_text || generation.options.on_text(text); }
  void finish(uint32_t how, bool show_rest) {
    result.finish = how;
    ended = true;
    if (show_rest && generation.options.tokenizer && !show(stream_.finish())) result.finish = DUET_FINISH_CALLBACK;
  }
  void take(int32_t token) {
    const GenerateOptions& o = generation.options;
    last = token;
    ++result.n_new;
    result.new_s = seconds_since(start);
    if (std::find(o.stops.begin(), o.stops.end(), token) != o.stops.end()) return finish(DUET_FINISH_STOP_TOKEN, true);
    bool go_on = !o.on_token || o.on_token(token);
    // a model's vocabulary may have rows that no token uses: they have no text
    if (o.tokenizer && static_cast<uint32_t>(token) < o.tokenizer->size()) go_on = show(stream_.push(o.tokenizer->bytes(token))) && go_on;
    if (stream_.stopped()) return finish(DUET_FINISH_STOP_TEXT, false);
    if (!go_on) return finish(DUET_FINISH_CALLBACK, false);
    if (n_left() == 0) finish(DUET_FINISH_LENGTH, true);
  }

  TextStream stream_;
  int32_t own_ = 0;             // what draw() has drawn,
  std::exception_ptr failure_;  // or why not
};

using Runnings = std::vector<Running*>;
struct Drawer {
  Running* running;
  size_t row;  // of the logits
};

// Feeds tokens to the slots of some, all at once.
class Feed {
 public:
  void add(const Running& r, std::span<const int32_t> tokens) {
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    batch_.lengths.push_back(static_cast<uint32_t>(tokens.size()));
    batch_.slots.push_back(r.generation.slot);
  }
  void run(Session& session, const std::shared_ptr<State>& state, uint32_t outputs, std::optional<duet_mode> mode = std::nullopt) {
    batch_.tokens = tokens_;
    batch_.outputs = outputs;
    session.forward(state, batch_, mode);
  }

 private:
  std::vector<int32_t> tokens_;
  Batch batch_;
};

// Draws of the host's samplers from the logits of the last forward, divided among the threads: a draw depends on its own row only.
// Then each is taken, in their order, by the caller's thread, whose callbacks those are.
void pick(const Session& session, const std::vector<Drawer>& all) {
  constexpr size_t kWorthIt = 1 << 14;  // logits, which take about as long as having a thread begin
  struct Work {
    const Output& logits;
    const std::vector<Drawer>& all;
    std::atomic<size_t> next{0};
  } work{session.output(DUET_OUTPUT_LOGITS), all};
  const auto share = [](void* ctx, uint32_t, uint32_t) {
    Work& w = *static_cast<Work*>(ctx);
    for (size_t i; (i = w.next.fetch_add(1, std::memory_order_relaxed)) < w.all.size();)
      w.all[i].running->draw({w.logits.data + w.all[i].row * w.logits.width, w.logits.width});
  };
  if (all.size() > 1 && all.size() * work.logits.width >= kWorthIt)
    session.model()->library().team.run(share, &work);
  else
    share(&work, 0, 1);
  for (const Drawer& d : all) d.running->take_own();
}

// Prompts are fed in pieces, so that a cancel is seen soon: a full pass, or a few single tokens of each. Who comes to an end
// draws the first token from its logits.
void read_prompts(Session& session, const std::shared_ptr<State>& state, const Runnings& all) {
  const Clock::time_point start = Clock::now();
  const bool single = session.mode() == DUET_MODE_RECURRENT;
  while (true) {
    Feed feed;
    Runnings fed;
    size_t room = single ? 16 * kPromptsAtOnce : session.max_tokens();
    bool some_end = false;
    for (Running* r : all) {
      if (room == 0 || fed.size() == kPromptsAtOnce) break;
      if (r->rest.empty() || !r->goes_on()) continue;
      const auto piece = r->rest.first(std::min(r->rest.size(), single ? 16 : room));
      r->rest = r->rest.subspan(piece.size());
      feed.add(*r, piece);
      fed.push_back(r);
      room -= piece.size();
      some_end |= r->rest.empty();
    }
    if (fed.empty()) return;
    feed.run(session, state, some_end ? DUET_OUT_LAST_LOGITS : DUET_OUT_NO_LOGITS);
    std::vector<Drawer> drawers;
    for (size_t i = 0; i < fed.size(); ++i) {
      Running& r = *fed[i];
      r.result.n_prompt = r.generation.prompt.size() - r.rest.size();
      r.result.prompt_s = seconds_since(start);
      r.start = Clock::now();
      if (r.rest.empty()) drawers.push_back({&r, i});
    }
    pick(session, drawers);
  }
}

// One step with the host's samplers.
void step(Session& session, const std::shared_ptr<State>& state, const Runnings& active) {
  Feed feed;
  std::vector<Drawer> drawers;
  for (Running* r : active) {
    feed.add(*r, {&r->last, 1});
    drawers.push_back({r, drawers.size()});
  }
  feed.run(session, state, DUET_OUT_LAST_LOGITS, DUET_MODE_RECURRENT);
  pick(session, drawers);
}

// Steps on a device that draws. Who ends inside of them has been fed tokens that do not count: its slot goes back to where it
// was, and is fed again what counts.
void block(Session& session, const std::shared_ptr<State>& state, const Runnings& active, uint32_t longest) {
  const uint32_t V = session.model()->shape().n_vocab;
  uint32_t n_steps = longest;
  bool may_stop = false;
  std::vector<Draw> rows;
  for (const Running* r : active) {
    n_steps = std::min(n_steps, r->n_left());
    may_stop |= r->may_stop();
    rows.push_back({r->generation.slot, r->last, r->generation.sampler});
  }
  if (may_stop && n_steps > 1 && !session.reserve_undo(*state, static_cast<uint32_t>(rows.size()))) n_steps = 1;
  const bool can_undo = may_stop && n_steps > 1;
  const std::vector<int32_t> tokens = session.draw(state, rows, n_steps, can_undo);
  std::vector<uint32_t> n_counted(rows.size());
  const auto settle = [&](bool all) {
    Feed feed;
    bool some = false;
    for (uint32_t r = 0; r < rows.size(); ++r) {
      if (!can_undo || n_counted[r] == n_steps || !(all || active[r]->ended)) continue;
      session.undo(state, r, rows[r].slot);
      if (n_counted[r] == 0) continue;
      std::vector<int32_t> fed(tokens.begin() + r * n_steps, tokens.begin() + r * n_steps + n_counted[r] - 1);
      fed.insert(fed.begin(), rows[r].token);
      feed.add(*active[r], fed);
      some = true;
    }
    if (some) feed.run(session, state, DUET_OUT_NO_LOGITS, DUET_MODE_RECURRENT);
  };
  try {
    for (uint32_t i = 0; i < n_steps; ++i)
      for (size_t r = 0; r < rows.size(); ++r) {
        if (i > 0 && !active[r]->goes_on()) continue;
        ++n_counted[r];
        active[r]->take_drawn(tokens[r * n_steps + i], V);
      }
  } catch (...) {  // of a callback: as if the steps had been single ones
    settle(true);
    throw;
  }
  settle(false);
}

}  // namespace

void generate(Session& session, const std::shared_ptr<State>& state, std::span<Generation> generations) {
  std::vector<Running> running(generations.begin(), generations.end());
  Runnings active;
  for (Running& r : running) active.push_back(&r);
  read_prompts(session, state, active);
  for (uint32_t longest = 4;; longest = std::min(2 * longest, kLongestBlock)) {  // the first tokens soon
    std::erase_if(active, [](Running* r) { return !r->goes_on(); });
    if (active.empty()) return;
    if (session.draws())
      block(session, state, active, longest);
    else
      step(session, state, active);
  }
}

}  // namespace duet
