#!/usr/bin/env bash
# tests/apps/bench_vs_llamacpp.sh DUET: the comparison against programs that answer as llama.cpp's do, without computing.
set -euo pipefail

script=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../../scripts/bench_vs_llamacpp.sh")
export DUET=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

wrong() { echo "$*" >&2; exit 1; }
# refused WHY ARGUMENT...: the script ends with an error that says why
refused() {
  local why=$1
  shift
  "$script" "$@" >out 2>error && wrong "taken: $*"
  grep -q -e "$why" error || wrong "'$*' gave no '$why' but: $(<error)"
  ! grep -q Traceback error || wrong "$(<error)"
}

# gguf FILE ARCHITECTURE LAYERS WIDTH FILE_TYPE WORDS: the head of a GGUF file
gguf() {
  python3 - "$@" <<'PYTHON'
import struct, sys
path, architecture, *numbers, words = sys.argv[1:]
text = lambda s: struct.pack("<Q", len(s)) + s.encode()
head = b"GGUF" + struct.pack("<IQQ", 3, 0, 6) + text("general.architecture") + struct.pack("<I", 8) + text(architecture)
for key, value in zip(("rwkv7.block_count", "rwkv7.embedding_length", "general.file_type"), numbers):
    head += text(key) + struct.pack("<II", 4, int(value))
head += text("rwkv7.attention.layer_norm_epsilon") + struct.pack("<If", 6, 1e-5)
head += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, int(words)) + text("a") * int(words)
open(path, "wb").write(head)
PYTHON
}

mkdir bin
cat >bin/llama-bench <<'SH'
#!/bin/sh
echo '[{"n_gen": 64, "avg_ts": 50.0}]'
SH
cat >bin/llama-batched-bench <<'SH'
#!/bin/sh
echo 'a line of the log'
echo '{"pl": 8, "speed_tg": 200.0}'
echo '{"pl": 32, "speed_tg": 400.0}'
SH
chmod +x bin/*
gguf good.gguf rwkv7 12 768 32 65536

"$script" bin/llama-bench good.gguf --runs 1 --only generation,batch >out
# each line: name, llama.cpp's figure, duet's, their ratio
for line in 'generation, tok/s:50' '8 sequences, tok/s in all:200' '32 sequences, tok/s in all:400'; do
  grep -F "  ${line%:*} " out | awk -v theirs="${line#*:}" '{ r = $NF * theirs / $(NF - 1) } END { exit !(NR == 1 && $(NF - 2) == theirs && r > 0.97 && r < 1.03) }' ||
    wrong "no figures for ${line%:*}: $(<out)"
done
grep -q 'the memory streams at [0-9.]* in the same runs: [0-9]*%' out || wrong "no limit: $(<out)"

refused 'Usage' bin/llama-bench
refused 'is no program' nowhere good.gguf
refused '--runs is' bin/llama-bench good.gguf --runs 0
refused "'speed'; there are generation" bin/llama-bench good.gguf --only speed
refused 'nowhere.gguf: No such file' bin/llama-bench nowhere.gguf
refused 'not a GGUF file' bin/llama-bench "$script"
head -c 1000 good.gguf >short.gguf
refused 'short.gguf: damaged' bin/llama-bench short.gguf
gguf other.gguf llama 12 768 32 65536
refused 'architecture is llama' bin/llama-bench other.gguf
gguf other.gguf rwkv7 12 1024 32 65536
refused '12 layers of width 1024.*0.1b' bin/llama-bench other.gguf
gguf other.gguf rwkv7 12 768 15 65536
refused 'file_type is 15.*BF16' bin/llama-bench other.gguf
gguf other.gguf rwkv7 12 768 32 300
refused 'a vocabulary of 300' bin/llama-bench other.gguf
printf '#!/bin/sh\necho no memory >&2\nexit 3\n' >bin/llama-bench
refused 'ended with 3: no memory' bin/llama-bench good.gguf --only generation
printf '#!/bin/sh\necho hello\n' >bin/llama-bench
refused 'is it llama-bench' bin/llama-bench good.gguf --only generation
