#!/usr/bin/env bash
# scripts/bench_vs_llamacpp.sh LLAMA_BENCH MODEL.gguf... [--runs N] [--only PART,..]: Duet beside somebody's own llama.cpp.
# For each GGUF file of RWKV-7, llama-bench on that file and `duet bench` on random weights of the same shape and format take
# turns, on the same pinned cores. What lies beside LLAMA_BENCH is used too: llama-batched-bench, llama-completion.
# Nothing is downloaded or built. Other cores than all: taskset -c LIST scripts/bench_vs_llamacpp.sh ...
set -euo pipefail

parts=generation,prompt,batch,memory,first-token
fail() { echo "bench_vs_llamacpp.sh: $*" >&2; exit 1; }
usage() {
  echo "Usage: $0 LLAMA_BENCH MODEL.gguf... [--runs N (default: 5)] [--only PART,.. (default: $parts)]"
  exit "$1"
}

runs=5 only=$parts files=()
while (($#)); do
  case $1 in
    --help) usage 0 ;;
    --runs | --only) (($# > 1)) || fail "$1 needs a value"; printf -v "${1#--}" %s "$2"; shift ;;
    -*) fail "unknown option $1" ;;
    *) files+=("$1") ;;
  esac
  shift
done
((${#files[@]} > 1)) || usage 2 >&2
[[ $runs =~ ^[1-9][0-9]{0,2}$ ]] || fail "--runs is '$runs'; it must be a number from 1 to 999"
[[ $only ]] || fail "--only names no part; there are ${parts//,/, }"
for part in ${only//,/ }; do
  [[ ,$parts, == *,$part,* ]] || fail "--only names '$part'; there are ${parts//,/, }"
done
[[ -f ${files[0]} && -x ${files[0]} ]] || fail "${files[0]} is no program; give the path of your llama-bench"
here=$(dirname "${BASH_SOURCE[0]}")
duet=${DUET:-$here/../build/release/bin/duet}
[[ -x $duet ]] || fail "no $duet: run scripts/build.sh, or set DUET to your duet"
command -v python3 >/dev/null || fail "needs python3"

exec python3 "$here/bench_vs_llamacpp.py" "$duet" "$runs" "$only" "${files[@]}"
