# shellcheck shell=bash
# Container images, made here as OCI archives out of the programs; nothing is pulled. Cached by what they are made of.

BUSYBOX_COMMANDS=(cat df echo env grep hostname httpd id ip kill ls mount nc nslookup ps sh sleep test touch wget)

# make_images: IMAGES, the archives that a new node is given.
make_images() {
  IMAGES=()
  make_image pause registry.k8s.io/pause:3.10 '' "$PAUSE" /pause
  make_image coredns registry.k8s.io/coredns/coredns:v1.15.0 '' "$COREDNS" /coredns
  make_image bench kshuttle.test/bench:1 65532:65532 "$BENCH" /bench serve
  make_image busybox kshuttle.test/busybox:1 '' "$RUNTIME/usr/bin/busybox" /bin/sh
}

# make_image NAME REFERENCE USER PROGRAM ENTRYPOINT...
make_image() {
  local name=$1 reference=$2 user=$3 program=$4 archive root
  archive=$CACHE/images/$name-$(key "$@" "$MKIMAGE" "${BUSYBOX_COMMANDS[*]}" "$(declare -f fill_image)").tar
  IMAGES+=("$archive")
  [[ ! -e $archive ]] || return 0
  mkdir -p "$CACHE/images"
  root=$(mktemp -d "$CACHE/images/root.XXXXXX")
  fill_image "$root" "$name" "$program"
  "$MKIMAGE" -o "$archive.new" -ref "$reference" -user "$user" -root "$root" -- "${@:5}"
  mv "$archive.new" "$archive"
  rm -r "$root"
}

fill_image() {
  local root=$1 name=$2 program=$3 command
  chmod 755 "$root"
  mkdir "$root/etc" && mkdir -m 1777 "$root/tmp"
  printf '%s\n' root:x:0:0:root:/:/bin/sh nobody:x:65532:65532:nobody:/:/bin/false >"$root/etc/passwd"
  printf '%s\n' root:x:0: nobody:x:65532: >"$root/etc/group"
  if [[ $name != busybox ]]; then
    cp "$program" "$root/$name"
    return
  fi
  mkdir -p "$root/bin" "$root"/www/{hello,web}
  cp "$program" "$root/bin/busybox"
  for command in "${BUSYBOX_COMMANDS[@]}"; do
    ln -s busybox "$root/bin/$command"
  done
  echo 'hello from the cluster' >"$root/www/hello/index.html"
  echo 'web in shop' >"$root/www/web/index.html"
}
