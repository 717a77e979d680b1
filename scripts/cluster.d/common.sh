# shellcheck shell=bash
# Where a box's things are, who its two first processes are, and how a command gets inside. Sourced by everything else.

export LC_ALL=C
umask 022 # the laptop's ordinary user reads what is made here
CHECKOUT=$(dirname "$(dirname "$PARTS")")
FIXTURES=$CHECKOUT/fixtures/cluster
CACHE=${XDG_CACHE_HOME:-${HOME:?}/.cache}/kshuttle
SYSTEM_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

die() {
  printf 'scripts/cluster: %s\n' "$*" >&2
  exit 1
}

# part NAME...: make the functions of cluster.d/NAME.sh known.
part() {
  local name
  for name; do
    # shellcheck disable=SC1090
    . "$PARTS/$name.sh"
  done
}

choose_box() {
  NAME=$1 VERSION=$2
  [[ $NAME =~ ^[a-z0-9][a-z0-9-]{0,30}$ ]] || die "a box's name is lower-case letters, digits and '-': '$NAME' is not"
  [[ $(id -u) == 0 ]] || die "needs root: namespaces, mounts and cgroups of a node cannot be made otherwise"
  BOX=$CACHE/box/$NAME
  choose_version
}

# box_lives node|laptop: true while its first process is the very one that `up` started (a pid alone may be somebody else's by now).
box_lives() {
  local pid start
  [[ -s $BOX/$1.pid ]] && read -r pid start <"$BOX/$1.pid" && [[ $(start_time "$pid") == "$start" ]]
}

# start_time PID: clock ticks from boot to its start (proc(5), field 22 of stat); empty if there is no such process or it is a zombie.
start_time() {
  local stat fields
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  read -ra fields <<<"${stat##*) }"
  [[ ${fields[0]} == [ZX] ]] || echo "${fields[19]}"
}

# need_up: ends the script unless the box is up; makes its programs known.
need_up() {
  { box_lives node && box_lives laptop; } || die "box '$NAME' is not up; scripts/cluster --name $NAME up"
  load_programs
}

# enter node|laptop COMMAND...: run it inside, in the box's cgroups.
enter() {
  "$ENTER" -g "$BOX/cgroups" "$(first_process "$1")" "${@:2}"
}

# first_process node|laptop: its pid as seen from here.
first_process() {
  local pid _
  read -r pid _ <"$BOX/$1.pid"
  echo "$pid"
}

# The environment a command inside begins with. The machine's proxies cannot be reached from inside.
set_inside_environment() {
  local place=$1
  unset LD_PRELOAD http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
  export KSHUTTLE_BOX_INSIDE=$place KSHUTTLE_BOX_VERSION=$VERSION KSHUTTLE_BOX_LIMITED=$BOX/kubeconfig/limited
  export KSHUTTLE_BOX_OPERATOR=$BOX/run/operator.sock
  KSHUTTLE_BOX_STREAM_IDLE=$(sed -n "s/^ *stream_idle_timeout = '\([^']*\)'.*/\1/p" "$BOX/etc/containerd.toml")
  export KSHUTTLE_BOX_STREAM_IDLE
  export KUBECONFIG=$BOX/kubeconfig/admin PATH=${KUBECTL%/*}:$SYSTEM_PATH:$PATH
  if [[ $place == node ]]; then
    export PATH=$RUNTIME/usr/bin:$PATH CONTAINERD_ADDRESS=$BOX/run/containerd.sock CONTAINERD_NAMESPACE=k8s.io
  fi
}

exec_inside() {
  local user=() place
  [[ ${1-} != --user ]] || { user=(-u "${2:?--user needs a name}") && shift 2; }
  place=${1-}
  [[ $place == laptop || $place == node ]] || die "exec where? laptop or node"
  [[ ${2-} == -- && $# -gt 2 ]] || die "exec $place -- COMMAND..."
  need_up
  set_inside_environment "$place"
  exec "$ENTER" -g "$BOX/cgroups" "${user[@]}" "$(first_process "$place")" "${@:3}"
}

# load_programs: what this box was built from, as `up` wrote it down: VERSION, and the paths KUBE ETCD KUBECTL ENTER PAUSE RUNTIME TOOLS ...
load_programs() {
  # shellcheck disable=SC1091
  . "$BOX/programs"
  choose_version
}

kubeconfig_path() {
  local who=${1:-admin}
  [[ $who == admin || $who == limited ]] || die "kubeconfig of whom? admin or limited"
  need_up
  echo "$BOX/kubeconfig/$who"
}

# wait_until SECONDS WHAT COMMAND...: polls COMMAND; a clear error when the time is over.
wait_until() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "scripts/cluster: $what: not in time" >&2 && return 1; }
    sleep 0.05
  done
}

# with_lock FILE COMMAND...: one at a time. The command's own children must not keep the lock, so what stays running closes descriptors 7 to 9.
with_lock() {
  mkdir -p "${1%/*}"
  exec 9>"$1"
  flock 9
  shift
  "$@"
  exec 9>&-
}
