package duet

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"runtime/cgo"
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
	FinishNumeric   Finish = -2                       // as little: a sequence of GenerateBatch had no logits to draw from, and its slot is undefined
)

func (f Finish) String() string {
	return named(int(f)+2, "numeric", "cancelled", "length", "stop token", "stop text", "callback")
}

// A GenerateResult is what was generated.
type GenerateResult struct {
	Finish     Finish
	NPrompt    uint64        // tokens read
	NNew       uint64        // tokens drawn, a stop token included
	PromptTime time.Duration // of prompts that are read together, until this one was
	NewTime    time.Duration
	Tokens     []int32 // drawn, without a stop token. If none came, the slot has read all of them but the last: feed that one to go on
	Text       string  // of these tokens, up to a stop text; "" without a tokenizer
}

// A Prompt is a sequence of GenerateBatch.
type Prompt struct {
	Tokens  []int32  // 1 or more
	Sampler *Sampler // its own: no two sequences share one
	Options GenerateOptions
}

// A stream is what the callbacks of a sequence need.
type stream struct {
	*call
	options GenerateOptions
	tokens  []int32
	shown   []byte
}

func (s *stream) token(token int32) C.duet_status {
	if s.over { // a callback of another sequence failed
		return C.DUET_E_CANCELLED
	}
	s.tokens = append(s.tokens, token)
	if s.options.OnToken == nil {
		return C.DUET_OK
	}
	return s.ask(func() error { return s.options.OnToken(token) })
}

func (s *stream) text(text string) C.duet_status {
	if s.over { // OnToken failed: the library shows the text of its token all the same
		return C.DUET_E_CANCELLED
	}
	s.shown = append(s.shown, text...)
	if s.options.OnText == nil {
		return C.DUET_OK
	}
	return s.ask(func() error { return s.options.OnText(text) })
}

// A generation is a call of C that generates: what its sequences need, in memory that C may have.
type generation struct {
	call
	prompts   []Prompt
	sequences []C.duetgo_sequence
	streams   []*stream
	tokens    []int32
	lengths   []C.uint32_t
	stops     []int32
	stopTexts []byte
	results   []C.duet_generate_result
}

// add copies what another goroutine could write to.
func (g *generation) add(p Prompt) error {
	if p.Sampler == nil {
		return &Error{ErrInvalid, fmt.Sprintf("sequence %d has no sampler; each needs one of its own", len(g.prompts))}
	}
	options := p.Options
	if options.OnText != nil && options.Tokenizer == nil {
		return &Error{ErrInvalid, "OnText needs a tokenizer: set it in the options"}
	}
	length, err := count(len(p.Tokens), "the prompt")
	if err != nil {
		return err
	}
	stops := options.Stops
	if stops == nil {
		stops = []int32{0}
	}
	nStops, err := count(len(stops), "Stops")
	if err != nil {
		return err
	}
	nStopTexts, err := count(len(options.StopTexts), "StopTexts")
	if err != nil {
		return err
	}
	for _, text := range options.StopTexts {
		if strings.IndexByte(text, 0) >= 0 {
			return holdsNUL("a stop text")
		}
		g.stopTexts = append(append(g.stopTexts, text...), 0)
	}
	g.tokens, g.lengths = append(g.tokens, p.Tokens...), append(g.lengths, length)
	g.stops = append(g.stops, stops...)
	g.sequences = append(g.sequences, C.duetgo_sequence{max_tokens: C.uint32_t(options.MaxTokens), n_stops: nStops, n_stop_texts: nStopTexts})
	g.streams = append(g.streams, &stream{call: &g.call, options: options})
	g.prompts, g.results = append(g.prompts, p), append(g.results, C.duet_generate_result{})
	return nil
}

// run makes the call, with the session and the state. ran: the library was called, and filled the results unless it returned an
// error. failed: what a callback returned.
func (g *generation) run(ctx context.Context, s *Session, state *State, enterC func() C.duetgo_outcome) (ran bool, failed, err error) {
	owners := []*owner{s.owner, state.owner}
	for _, p := range g.prompts {
		owners = append(owners, p.Sampler.owner)
		if p.Options.Tokenizer != nil {
			owners = append(owners, p.Options.Tokenizer.owner)
		}
	}
	leave, err := enter(owners...)
	if err != nil {
		return false, nil, err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		for i := range g.results {
			g.results[i].status = C.DUET_E_CANCELLED
		}
		return false, nil, err
	}
	for i, p := range g.prompts {
		handle := cgo.NewHandle(g.streams[i])
		defer handle.Delete()
		g.sequences[i].stream, g.sequences[i].sampler = C.duetgo(handle), p.Sampler.owner.handle
		if p.Options.Tokenizer != nil {
			g.sequences[i].tokenizer = p.Options.Tokenizer.owner.handle
		}
	}
	var o C.duetgo_outcome
	failed = g.call.run(ctx, func() { o = enterC() })
	return true, failed, check(o)
}

// result is that of one sequence, which ended by this status.
func (g *generation) result(i int, status C.duet_status) GenerateResult {
	r, s := g.results[i], g.streams[i]
	result := GenerateResult{
		Finish: Finish(r.finish), NPrompt: uint64(r.n_prompt), NNew: uint64(r.n_new), PromptTime: seconds(r.prompt_s), NewTime: seconds(r.new_s),
		Tokens: s.tokens, Text: string(s.shown),
	}
	switch status {
	case C.DUET_E_CANCELLED:
		result.Finish = FinishCancelled
	case C.DUET_E_NUMERIC:
		result.Finish = FinishNumeric
	}
	return result
}

// Generate reads the prompt in the session's mode, then draws tokens recurrently. An empty prompt is an error: token 0 begins a
// text. A context that is cancelled ends it between tokens, and between pieces of the prompt: Generate then returns ctx.Err().
// The result tells, with an error too, how far it came.
func (s *Session) Generate(ctx context.Context, state *State, slot uint32, sampler *Sampler, prompt []int32, options GenerateOptions) (GenerateResult, error) {
	g := &generation{}
	if err := g.add(Prompt{prompt, sampler, options}); err != nil {
		return GenerateResult{}, err
	}
	ran, failed, err := g.run(ctx, s, state, func() C.duetgo_outcome {
		return C.duetgo_generate(s.owner.handle, state.owner.handle, C.uint32_t(slot), &g.sequences[0], pointer[C.int32_t](g.tokens),
			C.size_t(len(g.tokens)), pointer[C.int32_t](g.stops), pointer[C.char](g.stopTexts), (*C.int32_t)(&g.stop), &g.results[0])
	})
	if !ran {
		return g.result(0, g.results[0].status), err
	}
	status := C.duet_status(C.DUET_OK)
	if errors.Is(err, ErrCancelled) { // by the context, and nobody else
		status, err = C.DUET_E_CANCELLED, ctx.Err()
	}
	if failed != nil && failed != Stop {
		err = failed
	}
	return g.result(0, status), err
}

// GenerateBatch generates many sequences at once, on slots of the state that are distinct; nil = 0, 1, 2 ... Prompts are read
// together, then a token of every sequence is drawn in each step. One that ends drops out, and the others go on; so does one that
// has no logits to draw from, which is no error but FinishNumeric. Callbacks of one sequence come in order, those of several are
// mixed. A callback's Stop ends its sequence; another error of one ends all and is returned, as is ctx.Err() of a context that was
// cancelled: with the results, which tell how far each came.
func (s *Session) GenerateBatch(ctx context.Context, state *State, slots []uint32, prompts []Prompt) ([]GenerateResult, error) {
	n, err := count(len(prompts), "prompts")
	if err != nil {
		return nil, err
	}
	if slots != nil {
		if err := sameLength(len(slots), len(prompts), "slots"); err != nil {
			return nil, err
		}
		slots = append([]uint32{}, slots...)
	}
	g := &generation{}
	for _, p := range prompts {
		if err := g.add(p); err != nil {
			return nil, err
		}
	}
	_, failed, err := g.run(ctx, s, state, func() C.duetgo_outcome {
		return C.duetgo_generate_batch(s.owner.handle, state.owner.handle, n, pointer[C.duetgo_sequence](g.sequences), pointer[C.int32_t](g.tokens),
			pointer[C.uint32_t](g.lengths), orNULL[C.uint32_t](slots), pointer[C.int32_t](g.stops), pointer[C.char](g.stopTexts),
			(*C.int32_t)(&g.stop), pointer[C.duet_generate_result](g.results))
	})
	cancelled, numeric := false, false
	for _, r := range g.results {
		cancelled = cancelled || r.status == C.DUET_E_CANCELLED
		numeric = numeric || r.status == C.DUET_E_NUMERIC
	}
	switch {
	case cancelled: // by the context, and nobody else
		err = ctx.Err()
	case numeric:
		err = nil
	}
	if failed != nil && failed != Stop {
		err = failed
	} else if err != nil && !cancelled {
		return nil, err
	}
	results := make([]GenerateResult, len(prompts))
	for i := range results {
		results[i] = g.result(i, g.results[i].status)
	}
	return results, err
}

func seconds(s C.double) time.Duration { return time.Duration(float64(s) * float64(time.Second)) }
