# shellcheck shell=bash
# The first processes of node and laptop, each in its own namespaces.

# start_first_process node|laptop: in new namespaces; $BOX/NAME.pid when it is ready.
start_first_process() {
  local place=$1 folders parent
  mapfile -t folders < <(visible_folders)
  mkdir -p "$BOX/root"
  rm -f "$BOX/$place".{outside,ready,pid}
  (
    exec 7>&- 8>&- 9>&-
    while read -r cgroup; do
      echo "$BASHPID" >"$cgroup/cgroup.procs"
    done <"$BOX/cgroups"
    cd /
    exec setsid env -i PATH="$SYSTEM_PATH" HOME=/root BOX="$BOX" TOOLS="$TOOLS" PAUSE="$PAUSE" \
      unshare --mount --propagation private --net --pid --fork --kill-child --ipc --uts --cgroup \
      "$PARTS/$place-init" "${folders[@]}"
  ) </dev/null >"$BOX/log/$place.log" 2>&1 &
  parent=$!
  disown "$parent"
  wait_until 20 "the $place's file system and network" first_process_ready "$place" "$parent"
  [[ -e $BOX/$place.ready ]] || return 1
  local pid
  pid=$(<"$BOX/$place.outside")
  echo "$pid $(start_time "$pid")" >"$BOX/$place.pid"
}

# True also when it ended without having become ready: then there is nothing to wait for.
first_process_ready() {
  [[ -e $BOX/$1.ready || ! -e /proc/$2 ]]
}

# visible_folders: what is shown inside at its own path, outer folders before inner ones.
visible_folders() {
  local folders folder
  IFS=: read -ra folders <<<"$CACHE:$CHECKOUT:${CARGO_TARGET_DIR-}:${KSHUTTLE_BOX_FOLDERS-}"
  for folder in "${folders[@]}"; do
    [[ ! -d $folder ]] || readlink -f "$folder"
  done | sort -u
}
