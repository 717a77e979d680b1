# shellcheck shell=bash
# Checks of up, down, and what remains.

# note_machine FILE: all that a box could leave: mounts, links, network namespaces, rules, settings, and cgroups, processes and
# folders that bear a name of ours.
note_machine() {
  {
    cut -d' ' -f4- /proc/self/mountinfo
    ip -o link | sed 's/^[0-9]*: //'
    ls /run/netns 2>/dev/null
    ip route
    ip -6 route
    ! command -v nft >/dev/null || nft list ruleset
    for setting in net/ipv4/ip_forward net/ipv6/conf/all/forwarding vm/overcommit_memory vm/panic_on_oom kernel/panic \
      kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes kernel/hostname; do
      echo "$setting $(cat /proc/sys/$setting)"
    done
    find /sys/fs/cgroup -type d -name "kshuttle-selftest-$$-*"
    processes_of "selftest-$$-"
    find "$BOXES" -maxdepth 1 -type d -name "selftest-$$-[abc]*"
  } >"$1"
}

# processes_of TEXT: those with TEXT in their cgroup's path, but not zombies: when they are reaped is up to the machine's init.
processes_of() {
  local file
  grep -ls "/kshuttle-$1" /proc/[0-9]*/cgroup | while read -r file; do
    ! grep -qs '^State:.[^ZX]' "${file%cgroup}status" || tr '\0' ' ' <"${file%cgroup}cmdline"
  done
}

check_up() {
  check 'up' on "$A" up
  check 'up again says so' mentions "'$A' is up" on "$A" up
  check 'status' mentions '^node +Ready' on "$A" status
  check 'kubeconfig is a readable file' test -r "$(on "$A" kubeconfig)"
  check 'kubeconfig limited is another' test -r "$(on "$A" kubeconfig limited)" -a "$(on "$A" kubeconfig limited)" != "$(on "$A" kubeconfig admin)"
  check_not 'kubeconfig of anybody else' on "$A" kubeconfig nobody
}

check_two_boxes() {
  check 'a second box beside the first' on "$B" up
  check 'its node answers' mentions '^node +Ready' on "$B" status
  node kubectl create configmap mark >/dev/null
  check_not 'it is another cluster' on "$B" exec node -- kubectl get configmap mark
  check 'the first still answers' says 'hello from the cluster' page "$A" hello 80
  check 'down of the second' on "$B" down
  check 'the first still answers' says 'hello from the cluster' page "$A" hello 80
}

check_down() {
  "$CLUSTER" --name "$A" exec laptop -- sh -c "echo ready >$WORK/ready; exec sleep 1000" &
  local running=$!
  appears "$WORK/ready"
  check 'down' on "$A" down
  check 'it ends commands that still ran inside' mentions 137 ends_with "$running"
  check_not 'status afterwards' on "$A" status
  check 'down again' on "$A" down
  check_not 'no process is left' mentions . processes_of "$A"
}

ends_with() {
  wait "$1"
  echo $?
}

# `up` is killed the moment the node's first process lives.
check_half_up() {
  local pid folder=$BOXES/$A
  "$CLUSTER" --name "$A" up >"$WORK/half" 2>&1 &
  pid=$!
  for _ in $(seq 500); do
    [[ ! -s $folder/node.pid ]] || break
    sleep 0.02
  done
  kill -KILL "$pid"
  wait "$pid" 2>/dev/null
  check 'a killed up left a box' mentions . processes_of "$A"
  check_not 'which is not "up"' on "$A" status
  check 'down of half a box' on "$A" down
  check_not 'no process is left' mentions . processes_of "$A"
}

# The same scripts with an object the API server refuses.
check_failed_up() {
  cp -r "${HERE%/*/*}/fixtures" "$WORK/" && mkdir "$WORK/scripts" && cp -r "$HERE" "$CLUSTER" "$WORK/scripts/"
  echo '{apiVersion: v1, kind: Service, metadata: {name: wrong}, spec: {clusterIP: 1.2.3.4, ports: [{port: 1}]}}' \
    >"$WORK/fixtures/cluster/manifests/wrong.yaml"
  check 'a failing up says what failed' mentions 'up failed at: objects' "$WORK/scripts/cluster" --name "$BROKEN" up
  check 'and shows the reason' grep -q 'Service "wrong" is invalid' "$WORK/text"
  check_not 'and leaves nothing' mentions . processes_of "$BROKEN"
  rm -rf "$BOXES/$BROKEN.failed"
}
