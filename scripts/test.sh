#!/usr/bin/env bash
# scripts/test.sh [PRESET...]: packages, configuration, build and tests: everything as released, everything under the address
# and undefined-behaviour sanitizers, and the tests that use threads under the thread sanitizer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

presets=("$@")
((${#presets[@]})) || presets=(release asan tsan)

failed=()
for preset in "${presets[@]}"; do
  echo "== $preset"
  scripts/build.sh "$preset" && ctest --preset "$preset" -j "$(nproc)" </dev/null || failed+=("$preset")
done

if ((${#failed[@]})); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all tests passed: ${presets[*]}"
