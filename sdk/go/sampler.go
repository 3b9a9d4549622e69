package duet

// #include "shim.h"
import "C"

// SamplerOptions say how to draw tokens. Every value is literal: begin with DefaultSamplerOptions.
type SamplerOptions struct {
	TopK        uint32            // 0 = no cut
	Temperature float32           // 0 = greedy
	TopP        float32           // from 1: no cut; 0 = only the most probable
	MinP        float32           // drops tokens below this share of the largest probability; 0 = no cut
	Presence    float32           // taken from the logit of a token that was drawn before
	Frequency   float32           // the same, for each time that it was drawn
	Decay       float32           // what counts are multiplied by at each step
	Seed        uint64            // the draw depends on seed, sequence and the number of tokens drawn alone
	Sequence    uint64            // tells sequences of one seed apart
	Bias        map[int32]float32 // added to the logits of tokens; negative infinity bans one
	Tokenizer   *Tokenizer        // if given, digits and blanks count 0 in the penalties; the sampler keeps it alive
}

// DefaultSamplerOptions are temperature 1, no cuts, no penalties, decay 0.996.
func DefaultSamplerOptions() SamplerOptions {
	o := C.duet_sampler_options{size: C.sizeof_duet_sampler_options}
	C.duet_sampler_options_default(&o) // cannot fail: the size is right
	return SamplerOptions{
		TopK: uint32(o.top_k), Temperature: float32(o.temperature), TopP: float32(o.top_p), MinP: float32(o.min_p),
		Presence: float32(o.presence), Frequency: float32(o.frequency), Decay: float32(o.decay), Seed: uint64(o.seed), Sequence: uint64(o.sequence),
	}
}

// A Sampler draws tokens, and remembers them for the penalties.
type Sampler struct{ owner *owner }

// NewSampler makes a sampler.
func NewSampler(options SamplerOptions) (*Sampler, error) {
	values := C.duet_sampler_options{
		top_k: C.uint32_t(options.TopK), temperature: C.float(options.Temperature), top_p: C.float(options.TopP), min_p: C.float(options.MinP),
		presence: C.float(options.Presence), frequency: C.float(options.Frequency), decay: C.float(options.Decay),
		seed: C.uint64_t(options.Seed), sequence: C.uint64_t(options.Sequence),
	}
	nBias, err := count(len(options.Bias), "Bias")
	if err != nil {
		return nil, err
	}
	var tokens []int32
	var bias []float32
	for token, b := range options.Bias {
		tokens, bias = append(tokens, token), append(bias, b)
	}
	var tokenizer C.duetgo
	var log *logger
	if options.Tokenizer != nil {
		leave, err := enter(options.Tokenizer.owner)
		if err != nil {
			return nil, err
		}
		defer leave()
		tokenizer, log = options.Tokenizer.owner.handle, options.Tokenizer.owner.log
	}
	o, err := own("sampler", log, func(sampler C.duetgo) { C.duetgo_sampler_free(sampler) }, func(out *C.duetgo) error {
		return check(C.duetgo_sampler_create(values, nBias, pointer[C.int32_t](tokens), pointer[C.float](bias), tokenizer, out))
	})
	if err != nil {
		return nil, err
	}
	return &Sampler{o}, nil
}

// Close frees the sampler. It returns nil.
func (s *Sampler) Close() error { return s.owner.close() }

// Probs gives [V], what Pick would draw from, for logits [V].
func (s *Sampler) Probs(logits []float32) ([]float32, error) {
	probs := make([]float32, len(logits))
	if err := s.ProbsInto(probs, logits); err != nil {
		return nil, err
	}
	return probs, nil
}

// ProbsInto is Probs to the caller's memory.
func (s *Sampler) ProbsInto(probs, logits []float32) error {
	if err := sameLength(len(probs), len(logits), "probs"); err != nil {
		return err
	}
	n, err := count(len(logits), "logits")
	if err != nil {
		return err
	}
	leave, err := enter(s.owner)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_sampler_probs(s.owner.handle, pointer[C.float](logits), n, pointer[C.float](probs)))
}

// Pick draws a token from logits [V], and accepts it.
func (s *Sampler) Pick(logits []float32) (int32, error) {
	n, err := count(len(logits), "logits")
	if err != nil {
		return 0, err
	}
	leave, err := enter(s.owner)
	if err != nil {
		return 0, err
	}
	defer leave()
	var token C.int32_t
	err = check(C.duetgo_sampler_pick(s.owner.handle, pointer[C.float](logits), n, &token))
	return int32(token), err
}

// Accept counts a token that was chosen elsewhere.
func (s *Sampler) Accept(token int32) error {
	leave, err := enter(s.owner)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_sampler_accept(s.owner.handle, C.int32_t(token)))
}

// Reset makes the sampler as it was when fresh.
func (s *Sampler) Reset() error {
	leave, err := enter(s.owner)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_sampler_reset(s.owner.handle))
}
