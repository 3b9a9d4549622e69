#!/usr/bin/env bash
# Installs what Duet is built from, on Debian 12 or 13. Asks apt-get only for what is missing.
set -euo pipefail

packages=(g++ cmake ninja-build pkg-config libboost-dev libboost-program-options-dev libspdlog-dev nlohmann-json3-dev catch2 libdnnl-dev libhwy-dev
  python3-numpy)  # only for the tests of the Python binding, which are left out without it; 5 MB

if ! command -v dpkg-query >/dev/null; then
  echo "packages.sh: not a Debian system; install the counterparts of: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null || true) == *installed* ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || { echo "packages.sh: as root, run: apt-get install ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update -q >&2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
