# shellcheck shell=bash
# `down`: kill the first processes, and the kernel ends every process, mount and link of their namespaces; then remove the cgroups.

down() {
  with_lock "$CACHE/box/$NAME.lock" take_down
  echo "box '$NAME' is down"
}

# take_down: also for a box that is half up, or whose machine was restarted.
take_down() {
  local place pid
  for place in laptop node; do
    if box_lives "$place"; then
      pid=$(first_process "$place")
      kill -KILL "$pid" 2>/dev/null || true # gone in the meantime is as good
    fi
  done
  if [[ -s $BOX/cgroups-made ]]; then
    wait_until 30 "the processes of box '$NAME' end" cgroups_empty
    remove_cgroups
  fi
  rm -rf --one-file-system "$BOX"
}

# cgroups_empty: kills what is in our cgroups (only the box's processes ever are); true once nothing is.
cgroups_empty() {
  local folder pids=
  while read -r folder; do
    [[ ! -d $folder ]] || pids+=$(find "$folder" -name cgroup.procs -exec cat {} + | sort -u)$'\n'
  done <"$BOX/cgroups-made"
  pids=$(sort -u <<<"$pids" | grep -v '^0*$') || return 0
  # shellcheck disable=SC2086
  kill -KILL $pids 2>/dev/null || true
  return 1
}

remove_cgroups() {
  local folder
  while read -r folder; do
    wait_until 10 "cgroup $folder goes away" cgroup_removed "$folder"
  done <"$BOX/cgroups-made"
}

cgroup_removed() {
  [[ -d $1 ]] || return 0
  find "$1" -depth -type d -exec rmdir {} + 2>/dev/null
  [[ ! -d $1 ]]
}
