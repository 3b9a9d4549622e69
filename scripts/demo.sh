#!/usr/bin/env bash
# scripts/demo.sh [PROMPT]: from a fresh clone to generated text. Builds what is missing, then lets the bundled model go on
# with the prompt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

prompt=${1:-Once upon a time there was a little fox who}
scripts/build.sh release duet_command duet_cpu
printf '%s' "$prompt"
build/release/bin/duet generate --prompt "$prompt"
