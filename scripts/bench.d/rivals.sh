#!/bin/bash
# rivals.sh BOX: what the rivals need, from their own packages into the cache, nothing installed. Prints two folders:
#   1. image.tar, a pod image of Debian's openssh-server (with python3, which sshuttle needs there), and id, the key it lets in
#   2. sshuttle from PyPI: bin/sshuttle, to be run with PYTHONPATH set to the folder
# rivals.sh BOX server [SUITE]: only the first; SUITE is the Debian release it is from, else this machine's, and the image's tag, else 1.
# rivals.sh none sshuttle: only the second.
set -euo pipefail

PARTS=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")/cluster.d
# shellcheck source=../cluster.d/common.sh
. "$PARTS/common.sh"
part versions packages

SSHUTTLE_VERSION=2.0.0
SERVER_PACKAGES=(openssh-server python3 dash)

main() {
  if [[ ${2-} == sshuttle ]]; then
    with_lock "$CACHE/bench.lock" get_sshuttle
    echo "$SSHUTTLE"
    return
  fi
  choose_box "$1" 1.36
  load_programs
  if [[ ${2-} == server ]]; then
    with_lock "$CACHE/bench.lock" make_server_image "${3-}"
    echo "$SERVER"
    return
  fi
  with_lock "$CACHE/bench.lock" make_all
  printf '%s\n' "$SERVER" "$SSHUTTLE"
}

make_all() {
  get_sshuttle
  make_server_image
}

get_sshuttle() {
  SSHUTTLE=$CACHE/bench/sshuttle-$SSHUTTLE_VERSION
  [[ ! -d $SSHUTTLE ]] || return 0
  rm -rf "$SSHUTTLE.new"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$SSHUTTLE.new" "sshuttle==$SSHUTTLE_VERSION" >&2
  mv "$SSHUTTLE.new" "$SSHUTTLE"
}

make_server_image() {
  local suite packages root
  suite=${1:-$(. /etc/os-release && echo "${VERSION_CODENAME:?}")}
  packages=$CACHE/packages/sshd-$(key "${SERVER_PACKAGES[@]}" "$suite")
  SERVER=$CACHE/bench/sshd-$(key "$packages" "$MKIMAGE" "$(contents)" "${1-}")
  [[ ! -d $SERVER ]] || return 0
  if [[ ! -d $packages ]]; then
    private_apt "$suite"
    : >"$CACHE/apt/nothing-installed"
    APT_PRIVATE+=(-o "Dir::State::status=$CACHE/apt/nothing-installed") # so that the libraries come too
    unpack "$packages" resolve "${SERVER_PACKAGES[@]}"
  fi
  root=$SERVER.new/root
  rm -rf "$SERVER.new" && mkdir -p "$SERVER.new"
  cp -a "$packages" "$root"
  fill_server_root "$root"
  "$MKIMAGE" -o "$SERVER.new/image.tar" -ref "kshuttle.test/sshd:${1:-1}" -root "$root" -- /usr/sbin/sshd -D -e
  rm -r "$root"
  mv "$SERVER.new" "$SERVER"
}

contents() {
  cat "${BASH_SOURCE[0]}" "$FIXTURES/sshd/sshd_config"
}

# fill_server_root FOLDER: what the packages would do when installed; the keys of server and client.
fill_server_root() {
  local root=$1 folder
  for folder in bin sbin lib lib64; do
    [[ ! -d $root/usr/$folder ]] || ln -sfn "usr/$folder" "$root/$folder"
  done
  ln -sf dash "$root/usr/bin/sh"
  mkdir -p "$root"/{root,tmp,dev,proc,sys,run/sshd,etc/ssh}
  printf '%s\n' root:x:0:0:root:/root:/bin/sh sshd:x:100:65534::/run/sshd:/bin/false >"$root/etc/passwd"
  printf '%s\n' root:x:0: nogroup:x:65534: >"$root/etc/group"
  echo 'root:*:19000:0:99999:7:::' >"$root/etc/shadow"
  install -m 644 "$FIXTURES/sshd/sshd_config" "$root/etc/ssh/sshd_config"
  ssh-keygen -q -t ed25519 -N '' -C '' -f "$root/etc/ssh/host_key"
  ssh-keygen -q -t ed25519 -N '' -C '' -f "$root/../id"
  install -m 644 "$root/../id.pub" "$root/etc/ssh/authorized_keys"
}

main "${1:?usage: rivals.sh BOX [server [SUITE]|sshuttle]}" "${@:2}"
