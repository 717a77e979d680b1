# shellcheck shell=bash
# The box's cgroups: $BOX/cgroups lists the folders a process of the box joins, $BOX/cgroups-made those that `down` removes.

make_cgroups() {
  : >"$BOX/cgroups"
  : >"$BOX/cgroups-made"
  if cgroups_unified; then
    make_unified_cgroup
  else
    make_separate_cgroups
  fi
}

cgroups_unified() {
  [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]]
}

# Version 1, one hierarchy per controller: a child below the caller's own group, so that nothing escapes its accounting.
make_separate_cgroups() {
  local controllers path mount folder file
  while IFS=: read -r _ controllers path; do
    case $controllers in
    '') mount=/sys/fs/cgroup/unified ;;
    name=*) mount=/sys/fs/cgroup/${controllers#name=} ;;
    *) mount=/sys/fs/cgroup/$controllers ;;
    esac
    [[ -d $mount ]] || continue
    folder=$mount${path%/}/kshuttle-$NAME
    mkdir -p "$folder"
    echo "$folder" | tee -a "$BOX/cgroups-made" >>"$BOX/cgroups"
    [[ $controllers != cpuset ]] || for file in cpuset.cpus cpuset.mems; do
      cat "${folder%/*}/$file" >"$folder/$file"
    done
  done </proc/self/cgroup
}

# Version 2: a group with processes of its own cannot hand controllers down, so the box's group is a child of the topmost.
make_unified_cgroup() {
  local top=/sys/fs/cgroup controller
  for controller in cpu cpuset memory pids; do
    grep -qw "$controller" "$top/cgroup.subtree_control" || echo "+$controller" >"$top/cgroup.subtree_control" ||
      die "the cgroup controller $controller cannot be used in $top"
  done
  mkdir -p "$top/kshuttle-$NAME"
  echo "$top/kshuttle-$NAME" | tee -a "$BOX/cgroups-made" >>"$BOX/cgroups"
}

# divide_cgroup: version 2 again. The cgroup namespace was made in the box's group; now its processes move into a child, and
# the group may hand its controllers to those that kubelet makes beside it.
divide_cgroup() {
  local folder pid
  cgroups_unified || return 0
  folder=$(<"$BOX/cgroups")
  mkdir "$folder/box"
  echo "$folder/box" >"$BOX/cgroups"
  while read -r pid; do
    echo "$pid" >"$folder/box/cgroup.procs"
  done <"$folder/cgroup.procs"
  sed -E 's/(^| )/ +/g' "$folder/cgroup.controllers" >"$folder/cgroup.subtree_control"
}
