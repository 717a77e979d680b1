# shellcheck shell=bash
# `up`: the order of the steps, their times, and what happens when one fails.

# shellcheck disable=SC2153 # NAME is choose_box's
part packages programs images cgroups node containerd kubernetes laptop objects down

up() {
  with_lock "$CACHE/box/$NAME.lock" up_alone
}

up_alone() {
  if box_lives node && [[ -e $BOX/complete ]]; then
    local asked=$VERSION
    load_programs
    [[ $VERSION == "$asked" ]] || die "box '$NAME' is up with Kubernetes $VERSION, not $asked: take it down first"
    echo "box '$NAME' is up"
    return
  fi
  take_down # what an interrupted `up` or a restart of the machine left
  begin
  [[ $(stat -fc %T "$BOX") != overlayfs ]] ||
    die "$BOX is on an overlay, where containers cannot have theirs: let XDG_CACHE_HOME name a folder on a disk"

  get_parts
  step node node start_node
  step apiserver 'etcd, API server starting' start_control_plane
  step containerd 'container runtime, images' start_runtime
  step apiserver 'API server' wait_until 60 'the API server says it is ready' apiserver_ready
  step kubelet 'controllers, kubelet, kube-proxy' start_node_components
  step laptop laptop start_laptop
  step objects objects apply_objects
  step kubelet 'node ready' wait_until 60 'the node is Ready' node_ready
  step pods 'answers on Service addresses' wait_for_answers
  : >"$BOX/complete"
  rm -rf "$BOX.failed"
  trap - EXIT INT TERM HUP
  printf '%6s s  box %s is up with Kubernetes %s\n' "$(seconds_since "$STARTED")" "'$NAME'" "$RELEASE"
  [[ ${#LACKS[@]} == 0 ]] || printf '          it has no %s\n' "${LACKS[@]}"
}

# prepare: everything that needs the network or minutes, and nothing that runs.
prepare() {
  with_lock "$CACHE/box/$NAME.lock" prepare_alone
}

prepare_alone() {
  if box_lives node; then
    echo "box '$NAME' is up"
    return
  fi
  take_down
  begin
  get_parts
  trap - EXIT INT TERM HUP
  take_down
}

begin() {
  CULPRIT=packages
  exec 7>&2 # a signal may come while a command's own output is thrown away
  STARTED=${EPOCHREALTIME//./}
  trap 'give_up $?' EXIT
  trap 'exit 130' INT TERM HUP
  mkdir -p "$BOX"/{etc,log,run} "$BOX"/state/{containerd,etcd,kubelet,pods}
  chmod 700 "$BOX"/{run,state}
}

get_parts() {
  step packages 'commands this script needs' get_needed_commands
  step packages packages get_packages
  step build programs build_programs
  step images 'image archives' with_lock_on_cache images make_images
  write_programs
}

# step CULPRIT WHAT COMMAND...: one line with its seconds; CULPRIT's log is shown if it fails.
step() {
  local start=${EPOCHREALTIME//./} what=$2
  CULPRIT=$1
  shift 2
  "$@"
  printf '%6s s  %s\n' "$(seconds_since "$start")" "$what"
}

announce() {
  printf '          %s\n' "$*"
}

seconds_since() {
  local milliseconds=$(((${EPOCHREALTIME//./} - $1) / 1000))
  printf '%d.%01d' $((milliseconds / 1000)) $((milliseconds % 1000 / 100))
}

give_up() {
  trap - EXIT INT TERM HUP
  {
    echo "scripts/cluster: up failed at: $CULPRIT"
    rm -rf "$BOX.failed"
    [[ ! -d $BOX/state/pods ]] || cp -r "$BOX/state/pods" "$BOX/log/pods"
    find "$BOX/log" \( -name "$CULPRIT.log" -o -path "*/log/$CULPRIT/*.log" \) -exec tail -v -n 15 {} + | cut -c1-800
    [[ ! -d $BOX/log ]] || { mv "$BOX/log" "$BOX.failed" && echo "all logs, those of the pods too: $BOX.failed"; }
  } >&7
  take_down
  exit "$(($1 ? $1 : 1))"
}

# with_lock_on_cache PART COMMAND...: one box at a time fills this part. A build may take minutes and needs packages, so each
# program is a part of its own, and nobody who wants another waits.
with_lock_on_cache() {
  local lock
  mkdir -p "$CACHE/locks"
  exec {lock}>"$CACHE/locks/$1"
  flock "$lock"
  "${@:2}"
  exec {lock}>&-
}

# write_programs: for the commands that follow `up`, load_programs.
write_programs() {
  local name
  for name in VERSION KUBE ETCD KUBECTL ENTER PAUSE RUNTIME TOOLS MKIMAGE BENCH; do
    printf '%s=%q\n' "$name" "${!name}"
  done >"$BOX/programs"
}

start_node() {
  make_cgroups
  start_first_process node
  divide_cgroup
}

start_control_plane() {
  make_certificates
  start_component etcd
  start_component apiserver
}

start_runtime() {
  configure_containerd
  start_component containerd
  wait_until 20 'the container runtime answers' containerd_answers
  import_images "${IMAGES[@]}" >"$BOX/log/images.log" 2>&1
}

start_node_components() {
  configure_node
  local name
  for name in controller-manager scheduler kubelet proxy; do
    start_component "$name"
  done
  start_operator
}
