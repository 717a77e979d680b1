# shellcheck shell=bash
# The file system of the node and of the laptop: the machine's own, with everything written kept in memory. Sourced by node-init
# and laptop-init, which run in mount and process namespaces of their own. `mount -n`: else /run/mount appears on the machine.

# report_pid FILE: our pid as the outside knows it. /proc is still the outside's here; the shell itself must read it.
report_pid() {
  local pid _
  read -r pid _ </proc/self/stat
  echo "$pid" >"$1"
}

# make_root FOLDER...: builds the new root at $ROOT; the folders are shown in it at their own paths.
make_root() {
  local base=$BOX/root folder
  mount -n -t tmpfs -o mode=755 tmpfs "$base"
  mkdir "$base"/{upper,work,merged}
  cp -a "$TOOLS/." "$base/upper/" # as a lower layer it would overlap with /: ELOOP
  ROOT=$base/merged
  mount -n -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$ROOT"
  mount -n --rbind /dev "$ROOT/dev"
  mount -n -t proc proc "$ROOT/proc"
  mount -n -t sysfs sysfs "$ROOT/sys"
  mount -n -t tmpfs -o mode=755 run "$ROOT/run"
  mount -n -t tmpfs -o mode=1777 tmp "$ROOT/tmp"
  mkdir -p "$ROOT"/run/{lock,user}
  for folder; do
    mkdir -p "$ROOT$folder"
    let_pass "${folder%/*}"
  done
  for folder; do
    mount -n --bind "$folder" "$ROOT$folder"
  done
}

# let_pass FOLDER: an ordinary user inside may walk through it and what is above it (/root, for instance).
let_pass() {
  local folder=$1
  while [[ -n $folder ]]; do
    chmod o+x "$ROOT$folder"
    folder=${folder%/*}
  done
}

# name_host NAME [HOSTS-LINE...]
name_host() {
  echo "$1" >/proc/sys/kernel/hostname
  echo "$1" >"$ROOT/etc/hostname"
  printf '%s\n' '127.0.0.1 localhost' '::1 localhost' "${@:2}" >"$ROOT/etc/hosts"
}

# use_nameserver ADDRESS: the machine's file may be a link into /run.
use_nameserver() {
  rm -f "$ROOT/etc/resolv.conf"
  echo "nameserver $1" >"$ROOT/etc/resolv.conf"
}

enter_root() {
  cd "$ROOT" || exit
  mkdir .old
  pivot_root . .old
  cd /
  umount -n -l /.old
  rmdir /.old
}
