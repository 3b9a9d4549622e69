"""chat.py MODEL: tells a story together with you. Each line that you type is added to it, then the model goes on. Ctrl-C
stops the model's turn, an empty line (or the end of the input) ends the story."""

import sys

import duet


def main(path):
    with duet.Library() as library, library.load(path) as model:
        tokenizer = model.tokenizer()
        state = model.state()  # all that the model remembers of the story
        session = model.session()  # reads your lines in parallel, goes on token by token
        sampler = duet.Sampler(temperature=0.8, top_p=0.7, seed=1)
        unread = [0]  # what the state has not read yet: token 0 begins a text
        for line in lines():
            unread += tokenizer.encode(line).tolist()
            with session.stream(state, sampler, unread, max_tokens=60, tokenizer=tokenizer) as turn:
                try:
                    for piece in turn:
                        print(piece, end="", flush=True)
                except KeyboardInterrupt:
                    turn.close()
            print()
            unread = unread[turn.result.n_prompt:] + turn.result.tokens[-1:]
            if turn.result.finish == "stop token":  # the story ended: the next line begins another
                state.reset()
                unread = [0]


def lines():
    """What is typed, up to an empty line."""
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if not line:
            return
        yield line


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: chat.py MODEL")
    try:
        main(sys.argv[1])
    except duet.Error as error:
        sys.exit(f"chat.py: {error}")
