# shellcheck shell=bash
# The programs of the cluster, built from the Go module proxy (and two small ones in C). Cached by what they are built from.

GO_FLAGS=(-trimpath)
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -modcacherw" GOWORK=off

build_programs() {
  export GOMODCACHE=$CACHE/go/mod GOCACHE=$CACHE/go/build
  build_go ETCD etcd
  build_go KUBECTL kubectl
  build_go COREDNS coredns
  build_go BENCH bench
  build_go MKIMAGE mkimage
  build_go KUBE "kube-$VERSION" kube
  build_c ENTER enter
  build_c PAUSE pause -static
}

# build_go VARIABLE FOLDER [PROGRAM]: the path of the program made of fixtures/cluster/FOLDER.
build_go() {
  local source=$FIXTURES/$2 program=${3:-$2} flags built
  flags="-s -w$(version_flags)"
  built=$CACHE/bin/$2-$(key "$(go version)" "${GO_FLAGS[*]}" "$flags" "$(contents "$source")")/$program
  printf -v "$1" %s "$built"
  [[ ! -x $built ]] || return 0
  announce "building $2"
  mkdir -p "${built%/*}"
  (cd "$source" && go build "${GO_FLAGS[@]}" -ldflags "$flags" -o "$built.new" .) >"$BOX/log/build.log" 2>&1
  mv "$built.new" "$built"
}

build_c() {
  local source=$FIXTURES/$2 built
  built=$CACHE/bin/$2-$(key "$(gcc --version)" "${@:3}" "$(contents "$source")")/$2
  printf -v "$1" %s "$built"
  [[ ! -x $built ]] || return 0
  mkdir -p "${built%/*}"
  gcc -Os -s -Wall "${@:3}" -o "$built.new" "$source/$2.c" >"$BOX/log/build.log" 2>&1
  mv "$built.new" "$built"
}

# contents FOLDER: names and sums of its files.
contents() {
  (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

# version_flags: what the release build of Kubernetes writes into its programs.
version_flags() {
  local package release
  release=$(awk '$1 == "k8s.io/kubernetes" {print $2; exit}' "$FIXTURES/kube-$VERSION/go.mod")
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf ' -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s' "$package" "$release" "$package" "$package" "${VERSION#1.}"
  done
}
