#!/usr/bin/env bash
# scripts/build.sh [PRESET [TARGET...]]: packages, configuration, build. The preset is `release` unless given; programs land
# in build/PRESET/bin. What is up to date is left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=${1:-release}
targets=("${@:2}")
scripts/packages.sh
if [[ ! build/$preset/build.ninja -nt CMakePresets.json ]]; then
  cmake --preset "$preset" >&2
fi
cmake --build --preset "$preset" ${targets:+--target "${targets[@]}"} >&2
