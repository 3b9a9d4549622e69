// chat MODEL: tells a story together with you. Each line that you type is added to it, then the model goes on. Ctrl-C stops
// the model's turn, an empty line (or the end of the input) ends the story.
#include <csignal>
#include <iostream>
#include <string>

#include "duet.hpp"

namespace {

duet::Cancel interrupt;

void chat(const char* path) {
  const duet::Library library;
  const auto model = duet::Model::load(library, path);
  const auto tokenizer = duet::Tokenizer::for_model(model);
  duet::State state(model);      // all that the model remembers of the story
  duet::Session session(model);  // reads your lines in parallel, goes on token by token
  duet::Sampler sampler({.temperature = 0.8f, .top_p = 0.7f, .seed = 1});

  std::vector<int32_t> unread = {0};  // what the state has not read yet: token 0 begins a text
  for (std::string line; std::cout << "> " << std::flush, std::getline(std::cin, line) && !line.empty();) {
    for (const int32_t token : tokenizer.encode(line)) unread.push_back(token);
    interrupt.clear();
    const auto turn = session.generate(state, sampler, unread,
                                       {.max_tokens = 60,
                                        .tokenizer = &tokenizer,
                                        .on_text = [](std::string_view text) { return !!(std::cout << text << std::flush); },
                                        .cancel = &interrupt});
    std::cout << '\n';
    unread.erase(unread.begin(), unread.begin() + static_cast<std::ptrdiff_t>(turn.n_prompt));
    if (!turn.tokens.empty()) unread.push_back(turn.tokens.back());
    if (turn.finish == duet::Finish::stop_token) {  // the story ended: the next line begins another
      state.reset();
      unread = {0};
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::cerr << "usage: chat MODEL\n", 2;
  std::signal(SIGINT, [](int) { interrupt.request(); });
  try {
    chat(argv[1]);
  } catch (const std::exception& e) {
    std::cerr << "chat: " << e.what() << '\n';
    return 1;
  }
}
