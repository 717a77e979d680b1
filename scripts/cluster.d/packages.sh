# shellcheck shell=bash
# Debian packages: downloaded from the machine's own mirror and unpacked, never installed.
#   RUNTIME  containerd, CNI plugins, runc, a static busybox (versions.sh): the same on every machine
#   TOOLS    what the machine itself lacks of the commands used inside, with libraries; laid over / inside

TOOL_PACKAGES=(bind9-dnsutils conntrack curl iproute2 iptables netcat-openbsd nftables openssh-client procps python3 sudo)
# What this script itself calls, and the package that has it.
declare -A NEEDED=([openssl]=openssl [ip]=iproute2 [unshare]=util-linux [flock]=util-linux [python3]=python3 [gcc]=gcc [ar]=binutils)

get_needed_commands() {
  local command missing=()
  [[ -e /usr/include/stdio.h ]] || missing+=(libc6-dev)
  for command in "${!NEEDED[@]}"; do
    command -v "$command" >/dev/null || missing+=("${NEEDED[$command]}")
  done
  command -v go >/dev/null || die "the Go toolchain is needed (go.dev/dl, or the package golang-go where it is recent)"
  command -v apt-get >/dev/null || die "apt-get is needed: the container runtime comes from Debian packages"
  ((${#missing[@]})) || return 0
  echo "installing ${missing[*]} (needed by this script)"
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >"$BOX/log/packages.log" 2>&1 || {
    apt-get -qq update >>"$BOX/log/packages.log" 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >>"$BOX/log/packages.log" 2>&1
  }
}

get_packages() {
  local suite host
  suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  host=$(dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n')
  RUNTIME=$CACHE/packages/runtime-$(key "${RUNTIME_PACKAGES[@]}")
  TOOLS=$CACHE/packages/tools-$(key "${TOOL_PACKAGES[@]}" "$suite" "$host" "$(declare -f link_alternatives unpack_merged)")
  [[ -d $RUNTIME && -d $TOOLS ]] || with_lock_on_cache packages get_missing_packages "$suite"
}

get_missing_packages() {
  local suite=$1
  private_apt "${suite:?this machine is not Debian-like: no VERSION_CODENAME in /etc/os-release}"
  if [[ ! -d $RUNTIME ]]; then unpack "$RUNTIME" download "${RUNTIME_PACKAGES[@]}"; fi
  if [[ ! -d $TOOLS ]]; then unpack "$TOOLS" resolve "${TOOL_PACKAGES[@]}"; fi
}

# get_build_packages LIST FOLDER: those in LIST, unpacked; of one marked as source, the tarball.
get_build_packages() {
  local package kind
  private_apt "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
  # shellcheck disable=SC2046
  unpack "$2" download $(awk 'NF == 1' "$1")
  while read -r package kind; do
    [[ $kind != source ]] || download_source "$2" "$package" >>"$BOX/log/packages.log" 2>&1
  done <"$1"
}

# key TEXT...: a short name for these inputs.
key() {
  printf '%s\n' "$@" | sha256sum | cut -c1-16
}

# private_apt SUITE: APT_PRIVATE, the options of a package manager with lists of its own; the machine's stay as they are.
private_apt() {
  local home=$CACHE/apt mirror suite
  APT_PRIVATE=(-qq -y -o "Dir::Etc::SourceList=$home/sources.list" -o Dir::Etc::SourceParts=/nonexistent
    -o "Dir::State::Lists=$home/lists" -o "Dir::Cache=$home/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none
    -o "APT::Default-Release=$1" -o APT::Install-Recommends=false)
  mkdir -p "$home/lists/partial" "$home/cache/archives/partial"
  ! grep -qs " $1 main" "$home/sources.list" || return 0
  mirror=$(debian_mirror)
  for suite in $(printf '%s\n' "$1" bookworm sid | sort -u); do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
  done >"$home/sources.list.new"
  apt-get "${APT_PRIVATE[@]}" -o "Dir::Etc::SourceList=$home/sources.list.new" update >"$BOX/log/packages.log" 2>&1
  mv "$home/sources.list.new" "$home/sources.list"
}

# The address the machine itself gets Debian from: KSHUTTLE_DEBIAN_MIRROR, or the one in its apt configuration.
debian_mirror() {
  local found
  [[ -z ${KSHUTTLE_DEBIAN_MIRROR-} ]] || { echo "$KSHUTTLE_DEBIAN_MIRROR" && return; }
  # shellcheck disable=SC2016 # these are apt's variables
  # The origin is known only once the machine's lists were fetched; the path tells before.
  found=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
    awk '($1 == "Debian" || $1 !~ /^[A-Z]/) && $NF ~ /\/debian\/?$/ {print $NF; exit}')
  [[ -n $found ]] || die "no Debian mirror in this machine's apt configuration; give one in KSHUTTLE_DEBIAN_MIRROR"
  echo "$found"
}

# unpack FOLDER download|resolve PACKAGE...: fetch and unpack them; the folder appears when it is complete.
unpack() {
  local folder=$1 how=$2 new=$1.new
  shift 2
  rm -rf "$new" && mkdir -p "$new/debs" "$new/root"
  "$how" "$new/debs" "$@" >>"$BOX/log/packages.log" 2>&1 || {
    # The lists may be older than the mirror.
    if [[ $how == resolve ]]; then apt-get -qq update; else apt-get "${APT_PRIVATE[@]}" update; fi >>"$BOX/log/packages.log" 2>&1
    "$how" "$new/debs" "$@" >>"$BOX/log/packages.log" 2>&1
  }
  unpack_merged "$new/debs" "$new/root"
  [[ $how == download ]] || link_alternatives "$new/root"
  mv "$new/root" "$folder"
  rm -rf "$new"
}

download() {
  (cd "$1" && apt-get "${APT_PRIVATE[@]}" download "${@:2}")
}

# download_source FOLDER PACKAGE/SUITE: as Debian has it. The lists of sources are not fetched for anything else.
download_source() {
  local home=$CACHE/apt apt=(apt-get "${APT_PRIVATE[@]}")
  apt+=(-o "Dir::Etc::SourceList=$home/$2.list" -o "Dir::State::Lists=$home/lists-of-sources")
  mkdir -p "$home/${2%/*}" "$home/lists-of-sources/partial"
  sed -n "/ ${2#*/} /s/^deb /deb-src /p" "$home/sources.list" >"$home/$2.list"
  "${apt[@]}" update
  (cd "$1" && "${apt[@]}" --download-only source "${2%/*}")
}

# resolve FOLDER PACKAGE...: those the machine does not have installed, and the libraries they miss, from its own sources: what is
# installed may be newer than the main archive has.
resolve() {
  apt-get -qq -y -o APT::Sandbox::User=root -o APT::Install-Recommends=false -o "Dir::Cache::archives=$1" --download-only install "${@:2}"
}

# unpack_merged DEBS ROOT: as on a machine where /bin, /sbin and /lib are links into /usr; a real /lib would hide the machine's.
unpack_merged() {
  local deb folder
  mkdir -p "$2/usr"
  for deb in "$1"/*.deb; do
    [[ ! -e $deb ]] || dpkg -x "$deb" "$2"
  done
  for folder in bin sbin lib lib32 lib64 libx32; do
    [[ -d $2/$folder && ! -L $2/$folder ]] || continue
    mkdir -p "$2/usr/$folder"
    cp -a "$2/$folder/." "$2/usr/$folder/"
    rm -r "${2:?}/$folder"
  done
  rm -rf "$2"/usr/share/{doc,man,locale,lintian,bash-completion}
}

# link_alternatives ROOT: the links that packages would make when installed.
link_alternatives() {
  local program form
  for program in iptables ip6tables; do
    for form in '' -save -restore; do
      [[ ! -e $1/usr/sbin/$program-nft$form ]] || ln -sf "$program-nft$form" "$1/usr/sbin/$program$form"
    done
  done
  [[ ! -e $1/usr/bin/nc.openbsd ]] || ln -sf nc.openbsd "$1/usr/bin/nc"
}
