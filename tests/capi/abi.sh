#!/usr/bin/env bash
# abi.sh check|update LOCK FOLDER LIBRARY CC SOURCE [PLUGIN...]: compares LOCK (api/abi.lock) with what the headers of SOURCE
# mean to the compiler CC and with what LIBRARY and the PLUGINs export; or writes it. FOLDER is for what is made on the way.
set -euo pipefail
export LC_ALL=C
action=$1 lock=$2 folder=$3 library=$4 cc=$5 source=$6
plugins=("${@:7}")
includes=(-I"$source/api" -I"$source/sdk/include")
mkdir -p "$folder"

exports() { nm -D --defined-only "$1" | awk '$2 ~ /[A-Ziu]/ && $3 !~ /^(__asan|__odr_asan|__ubsan|__tsan|__sanitizer|_init$|_fini$)/ { print $3 }' | sort; }

# A plugin that holds no more than the headers make of it, and knows the type of each function of the library.
{
  echo '#include <duet.h>'
  echo '#include <duet_host_memory.h>'
  echo '#include <duet_interpose.h>'
  echo 'static const duetp_plugin plugin = {sizeof(duetp_plugin), DUETP_ABI, "probe", 0, 0, 0, DUETP_SANITIZER, 0, 0, 0, 0, 0, 0, 0, 0};'
  echo 'DUETP_DEFINE(plugin);'
  exports "$library" | sed 's/.*/__typeof__(\&&) function_&;/'
} >"$folder/probe.c"
"$cc" -std=c99 -g -fno-eliminate-unused-debug-types -fPIC -shared -fvisibility=hidden "${includes[@]}" -o "$folder/probe.so" "$folder/probe.c"
readelf --debug-dump=info "$folder/probe.so" | awk -f "$(dirname "${BASH_SOURCE[0]}")/abi.awk" >"$folder/types"

{
  echo '# The binary interface of api/ and of sdk/include/duet_host_memory.h, on 64-bit systems. docs/abi.md says what may change and'
  echo '# how this file is written.'
  "$cc" -std=c99 -E -dM "${includes[@]}" "$folder/probe.c" | sed -nE 's/^#define (DUETP?_[A-Z_]+) ([("0-9].*)/macro \1 = \2/p' | sort
  sort -s -k1,2 "$folder/types"  # compilers differ in the order of names, not of a struct's fields
  exports "$folder/probe.so" | sed 's/^/a plugin exports /'
} >"$folder/abi.lock"

for plugin in ${plugins[@]+"${plugins[@]}"}; do
  if ! diff <(exports "$folder/probe.so") <(exports "$plugin"); then
    echo "abi.sh: $plugin exports (>) other symbols than a plugin must (<)" >&2
    exit 1
  fi
done

if [[ $action == update ]]; then
  cp "$folder/abi.lock" "$lock"
elif ! diff -U0 "$lock" "$folder/abi.lock"; then
  echo "abi.sh: the binary interface is not that of $lock: lines with - are gone, lines with + are new." >&2
  echo "If only that was added which docs/abi.md allows, write the file anew: cmake --build BUILD --target abi_lock" >&2
  exit 1
fi
