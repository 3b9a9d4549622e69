package duet

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"strings"
	"time"
)

// GenerateOptions say how to generate.
type GenerateOptions struct {
	MaxTokens uint32     // new tokens; 0 = 256
	Tokenizer *Tokenizer // needed for text
	Stops     []int32    // tokens that end the text; nil = token 0, an empty slice = none
	StopTexts []string   // texts that end the text, and that are not shown

	// OnToken is told each token that is drawn, OnText shown whole characters, never part of a stop text. An error ends the
	// generation, which returns it, unless it is Stop.
	OnToken func(token int32) error
	OnText  func(text string) error
}

// A Finish says why a generation ended.
type Finish int32

const (
	FinishLength    Finish = C.DUET_FINISH_LENGTH     // MaxTokens were drawn
	FinishStopToken Finish = C.DUET_FINISH_STOP_TOKEN // a token of Stops was drawn
	FinishStopText  Finish = C.DUET_FINISH_STOP_TEXT  // a text of StopTexts came
	FinishCallback  Finish = C.DUET_FINISH_CALLBACK   // a callback returned an error, Stop perhaps
	FinishCancelled Finish = -1                       // not of the library: the context was cancelled
)

func (f Finish) String() string {
	return named(int(f)+1, "cancelled", "length", "stop token", "stop text", "callback")
}

// A GenerateResult is what was generated.
type GenerateResult struct {
	Finish     Finish
	NPrompt    uint64 // tokens read
	NNew       uint64 // tokens drawn, a stop token included
	PromptTime time.Duration
	NewTime    time.Duration
	Tokens     []int32 // drawn, without a stop token. If none came, the slot has read all of them but the last: feed that one to go on
	Text       string  // of these tokens, up to a stop text; "" without a tokenizer
}

// A stream is what the callbacks of a generation need.
type stream struct {
	call
	options GenerateOptions
	tokens  []int32
	shown   []byte
}

func (s *stream) token(token int32) C.duet_status {
	s.tokens = append(s.tokens, token)
	if s.options.OnToken == nil {
		return C.DUET_OK
	}
	return s.ask(func() error { return s.options.OnToken(token) })
}

func (s *stream) text(text string) C.duet_status {
	if !s.over { // OnToken failed: the library shows the text of its token all the same
		s.shown = append(s.shown, text...)
	}
	if s.options.OnText == nil {
		return C.DUET_OK
	}
	return s.ask(func() error { return s.options.OnText(text) })
}

// Generate reads the prompt in the session's mode, then draws tokens recurrently. An empty prompt is an error: token 0 begins a
// text. A context that is cancelled ends it between tokens, and between pieces of the prompt: Generate then returns ctx.Err().
// The result tells, with an error too, how far it came.
func (s *Session) Generate(ctx context.Context, state *State, slot uint32, sampler *Sampler, prompt []int32, options GenerateOptions) (GenerateResult, error) {
	owners := []*owner{s.owner, state.owner, sampler.owner}
	if options.Tokenizer != nil {
		owners = append(owners, options.Tokenizer.owner)
	} else if options.OnText != nil {
		return GenerateResult{}, &Error{ErrInvalid, "OnText needs a tokenizer: set it in the options"}
	}
	nStops, err := count(len(options.Stops), "Stops")
	if err != nil {
		return GenerateResult{}, err
	}
	nStopTexts, err := count(len(options.StopTexts), "StopTexts")
	if err != nil {
		return GenerateResult{}, err
	}
	var stopTexts []byte
	for _, text := range options.StopTexts {
		if strings.IndexByte(text, 0) >= 0 {
			return GenerateResult{}, holdsNUL("a stop text")
		}
		stopTexts = append(append(stopTexts, text...), 0)
	}
	leave, err := enter(owners...)
	if err != nil {
		return GenerateResult{}, err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return GenerateResult{Finish: FinishCancelled}, err
	}
	var tokenizer C.duetgo
	if options.Tokenizer != nil {
		tokenizer = options.Tokenizer.owner.handle
	}
	prompt = copied(prompt)
	generation := &stream{options: options}
	var o C.duetgo_outcome
	var r C.duet_generate_result
	failed := generation.run(ctx, generation, func(user C.duetgo) {
		o = C.duetgo_generate(s.owner.handle, state.owner.handle, C.uint32_t(slot), sampler.owner.handle,
			pointer[C.int32_t](prompt), C.size_t(len(prompt)), C.uint32_t(options.MaxTokens), tokenizer, orNULL[C.int32_t](options.Stops), nStops,
			pointer[C.char](stopTexts), nStopTexts, user, (*C.int32_t)(&generation.stop), &r)
	})
	result := GenerateResult{
		Finish: Finish(r.finish), NPrompt: uint64(r.n_prompt), NNew: uint64(r.n_new), PromptTime: seconds(r.prompt_s), NewTime: seconds(r.new_s),
		Tokens: generation.tokens, Text: string(generation.shown),
	}
	err = check(o)
	switch {
	case failed != nil && failed != Stop:
		err = failed
	case errors.Is(err, ErrCancelled): // by nobody else
		result.Finish, err = FinishCancelled, ctx.Err()
	}
	return result, err
}

func seconds(s C.double) time.Duration { return time.Duration(float64(s) * float64(time.Second)) }
