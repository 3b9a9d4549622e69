package duet

// #include "shim.h"
import "C"

// A Tokenizer has a World vocabulary, and takes the greedy longest match over bytes. Token 0 ends a text, and begins one; text
// never becomes token 0.
type Tokenizer struct{ owner *owner }

// NewTokenizer reads a vocabulary file in the World format; "" is the World vocabulary that ships with Duet.
func (l *Library) NewTokenizer(path string) (*Tokenizer, error) {
	file, err := optional(path, "path")
	if err != nil {
		return nil, err
	}
	return newTokenizer(l.owner, func(out *C.duetgo) C.duetgo_outcome { return C.duetgo_tokenizer_load(l.owner.handle, file, out) })
}

// NewTokenizer takes vocab.txt beside the model, else the World vocabulary where V = 65536.
func (m *Model) NewTokenizer() (*Tokenizer, error) {
	return newTokenizer(m.owner, func(out *C.duetgo) C.duetgo_outcome { return C.duetgo_tokenizer_for_model(m.owner.handle, out) })
}

func newTokenizer(from *owner, create func(out *C.duetgo) C.duetgo_outcome) (*Tokenizer, error) {
	leave, err := enter(from)
	if err != nil {
		return nil, err
	}
	defer leave()
	o, err := own("tokenizer", from.log, func(tokenizer C.duetgo) { C.duetgo_tokenizer_free(tokenizer) }, func(out *C.duetgo) error { return check(create(out)) })
	if err != nil {
		return nil, err
	}
	return &Tokenizer{o}, nil
}

// Close frees the tokenizer. It returns nil.
func (t *Tokenizer) Close() error { return t.owner.close() }

// Size is the largest id + 1.
func (t *Tokenizer) Size() (uint32, error) {
	leave, err := enter(t.owner)
	if err != nil {
		return 0, err
	}
	defer leave()
	var n C.uint32_t
	err = check(C.duetgo_tokenizer_size(t.owner.handle, &n))
	return uint32(n), err
}

// Encode gives the tokens of a text, or of any bytes.
func (t *Tokenizer) Encode(text string) ([]int32, error) {
	leave, err := enter(t.owner)
	if err != nil {
		return nil, err
	}
	defer leave()
	bytes := []byte(text)
	tokens := make([]int32, len(bytes)) // a token has at least one byte
	var n C.size_t
	o := C.duetgo_tokenizer_encode(t.owner.handle, pointer[C.char](bytes), C.size_t(len(bytes)), pointer[C.int32_t](tokens), C.size_t(len(tokens)), &n)
	if err := check(o); err != nil {
		return nil, err
	}
	return tokens[:n], nil
}

// Decode gives the bytes of tokens: a token may hold a part of a character.
func (t *Tokenizer) Decode(tokens []int32) (string, error) {
	leave, err := enter(t.owner)
	if err != nil {
		return "", err
	}
	defer leave()
	tokens = copied(tokens)
	bytes, err := sized(func(dst *C.char, cap C.size_t, size *C.size_t) C.duetgo_outcome {
		return C.duetgo_tokenizer_decode(t.owner.handle, pointer[C.int32_t](tokens), C.size_t(len(tokens)), dst, cap, size)
	})
	return string(bytes), err
}
