# Shared by the scripts beside it; sourced, not run.
# shellcheck shell=bash

REPOSITORY=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/kshuttle
mkdir -p "$CACHE"

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# step WORDS: one line that says what the next, possibly long, part is, with the seconds so far.
step() {
  printf '\033[1m[%4d s] %s\033[0m\n' "$SECONDS" "$*"
}

# Compiled dependencies outlive a checkout: one folder for each compiler. Cargo itself knows what in it is of other versions.
if [[ -z ${CARGO_TARGET_DIR-} ]]; then
  command -v cargo >/dev/null || die "cargo is missing: install Rust 1.89 or newer with rustup"
  content=$(rustc -vV | sha256sum)
  CARGO_TARGET_DIR=$CACHE/target-${content:0:16}
  # Those of other compilers are dead weight after a while.
  find "$CACHE" -maxdepth 1 -name 'target-*' -mtime +14 ! -path "$CARGO_TARGET_DIR" -exec rm -rf {} + 2>/dev/null || true
fi
export CARGO_TARGET_DIR
mkdir -p "$CARGO_TARGET_DIR"
touch "$CARGO_TARGET_DIR"

# need PROGRAM PACKAGE: installs a missing Debian package when that is possible, else says what to do.
need() {
  command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 ]] && return
  [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || die "$1 is missing: apt-get install $2"
  step "installing the Debian package $2"
  apt-get install -y -qq --no-install-recommends "$2" >/dev/null 2>&1 || {
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2" >/dev/null
  } || die "cannot install $2"
}
