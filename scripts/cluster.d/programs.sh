# shellcheck shell=bash
# The programs of the cluster, built from the Go module proxy (two small ones are in C, and some have a `build` of their own). Cached by what they are built from.

GO_FLAGS=(-trimpath)
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -modcacherw" GOWORK=off
unset GOOS GOARCH GOEXPERIMENT # the programs run here

build_programs() {
  export GOMODCACHE=$CACHE/go/mod GOCACHE=$CACHE/go/build
  build_go ETCD etcd
  build_go KUBECTL kubectl
  build_go COREDNS "$COREDNS_SOURCE" coredns
  build_go BENCH bench
  build_go MKIMAGE mkimage
  build_go KUBE "kube-$VERSION" kube "$RELEASE"
  build_c ENTER enter
  build_c PAUSE pause -static
}

# build_go VARIABLE FOLDER [PROGRAM [RELEASE]]: the path of the program made of fixtures/cluster/FOLDER.
build_go() {
  local source=$FIXTURES/$2 program=${3:-$2} flags built
  flags="-s -w$(version_flags "${4:-$(release_of 1.36)}")" # kubectl is of the newest, whatever it talks to
  built=$CACHE/bin/$2-$(key "$(go version)" "${GO_FLAGS[*]}" "$flags" "$(contents "$source")")/$program
  printf -v "$1" %s "$built"
  [[ -x $built ]] || with_lock_on_cache "$2" build_go_alone "$source" "$flags" "$built"
}

# build_go_alone SOURCE LDFLAGS OUTPUT: unless somebody else did it meanwhile.
build_go_alone() {
  [[ ! -x $3 ]] || return 0
  announce "building ${1##*/}"
  mkdir -p "${3%/*}"
  if [[ -x $1/build ]]; then
    build_itself "$1" "$2" "$3.new" >"$BOX/log/build.log" 2>&1
  else
    (cd "$1" && go build "${GO_FLAGS[@]}" -ldflags "$2" -o "$3.new" .) >"$BOX/log/build.log" 2>&1
  fi
  mv "$3.new" "$3"
}

# build_itself SOURCE LDFLAGS OUTPUT: by SOURCE/build, in a folder that is taken away, with the Debian packages of SOURCE/packages.
build_itself() {
  local work=$CACHE/build-${1##*/} # under the lock; one that was broken off may have left it
  rm -rf "$work" && mkdir "$work"
  [[ ! -e $1/packages ]] || with_lock_on_cache packages get_build_packages "$1/packages" "$work/packages"
  "$1/build" "$work" "$2" "$3"
  rm -rf "$work"
}

build_c() {
  local source=$FIXTURES/$2 built
  built=$CACHE/bin/$2-$(key "$(gcc --version)" "${@:3}" "$(contents "$source")")/$2
  printf -v "$1" %s "$built"
  [[ -x $built ]] || with_lock_on_cache "$2" build_c_alone "$source/$2.c" "$built" "${@:3}"
}

build_c_alone() {
  mkdir -p "${2%/*}"
  gcc -Os -s -Wall "${@:3}" -o "$2.new" "$1" >"$BOX/log/build.log" 2>&1
  mv "$2.new" "$2"
}

# contents FOLDER: names and sums of its files, links followed.
contents() {
  (cd "$1" && find -L . -type f -print0 | sort -z | xargs -0 sha256sum)
}

# version_flags RELEASE: what the release build of Kubernetes writes into its programs.
version_flags() {
  local package minor=${1#v1.}
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf ' -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s' "$package" "$1" "$package" "$package" "${minor%%.*}"
  done
}
