// chat MODEL: tells a story together with you. Each line that you type is added to it, then the model goes on. Ctrl-C stops
// the model's turn, an empty line (or the end of the input) ends the story.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"duet"
)

func chat(path string) error {
	library, err := duet.NewLibrary(duet.LibraryOptions{})
	if err != nil {
		return err
	}
	defer library.Close()
	model, err := library.Load(path, duet.ModelOptions{})
	if err != nil {
		return err
	}
	defer model.Close()
	tokenizer, err := model.NewTokenizer()
	if err != nil {
		return err
	}
	defer tokenizer.Close()
	state, err := model.NewState(1, duet.StateOptions{}) // all that the model remembers of the story
	if err != nil {
		return err
	}
	defer state.Close()
	session, err := model.NewSession(duet.SessionOptions{}) // reads your lines in parallel, goes on token by token
	if err != nil {
		return err
	}
	defer session.Close()
	options := duet.DefaultSamplerOptions()
	options.Temperature, options.TopP, options.Seed = 0.8, 0.7, 1
	sampler, err := duet.NewSampler(options)
	if err != nil {
		return err
	}
	defer sampler.Close()

	show := func(text string) error {
		_, err := fmt.Print(text)
		return err
	}
	unread := []int32{0} // what the state has not read yet: token 0 begins a text
	lines := bufio.NewScanner(os.Stdin)
	for {
		fmt.Print("> ")
		if !lines.Scan() || lines.Text() == "" {
			return lines.Err()
		}
		typed, err := tokenizer.Encode(lines.Text())
		if err != nil {
			return err
		}
		unread = append(unread, typed...)
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		turn, err := session.Generate(ctx, state, 0, sampler, unread, duet.GenerateOptions{MaxTokens: 60, Tokenizer: tokenizer, OnText: show})
		stop()
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		fmt.Println()
		unread = unread[turn.NPrompt:]
		if n := len(turn.Tokens); n > 0 {
			unread = append(unread, turn.Tokens[n-1])
		}
		if turn.Finish == duet.FinishStopToken { // the story ended: the next line begins another
			if err := state.Reset(0); err != nil {
				return err
			}
			unread = []int32{0}
		}
	}
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chat MODEL")
		os.Exit(2)
	}
	if err := chat(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}
