package duet_test

import (
	"context"
	"fmt"
	"log"

	"duet"
)

func Example() {
	try := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}
	library, err := duet.NewLibrary(duet.LibraryOptions{})
	try(err)
	defer library.Close()
	model, err := library.Load("stories-7m.pth", duet.ModelOptions{})
	try(err)
	defer model.Close()
	tokenizer, err := model.NewTokenizer()
	try(err)
	defer tokenizer.Close()
	state, err := model.NewState(1, duet.StateOptions{}) // what the model remembers of a text
	try(err)
	defer state.Close()
	session, err := model.NewSession(duet.SessionOptions{}) // reads a prompt in parallel, goes on token by token
	try(err)
	defer session.Close()
	sampler, err := duet.NewSampler(duet.DefaultSamplerOptions())
	try(err)
	defer sampler.Close()

	prompt := []int32{0} // token 0 begins a text
	_, err = session.Generate(context.Background(), state, 0, sampler, prompt, duet.GenerateOptions{
		Tokenizer: tokenizer,
		OnText:    func(text string) error { _, err := fmt.Print(text); return err },
	})
	try(err)
}
