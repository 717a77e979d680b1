# shellcheck shell=bash
# Checks of `exec`, of the laptop's user and tools, and of the leak meter.

check_inside() {
  local place
  for place in laptop node; do
    check "exec $place: exit code" says 7 code_of on "$A" exec "$place" -- sh -c 'exit 7'
    check "exec $place: stdin and stdout" says 'abc' eval "echo abc | on $A exec $place -- cat"
    check "exec $place: working folder" says "$HERE" eval "cd $HERE && on $A exec $place -- pwd"
    check "exec $place: env overrides" says / on "$A" exec "$place" -- env KUBECONFIG=/ printenv KUBECONFIG
    check "exec $place: a kubectl of the newest version" mentions 'gitVersion: v1[.]36' \
      on "$A" exec "$place" -- kubectl version --client -o yaml
    check "exec $place: it talks to this version" mentions "\"gitVersion\": \"v$KSHUTTLE_BOX_VERSION[.]" \
      on "$A" exec "$place" -- kubectl get --raw /version
    check "exec $place: not found is 127" says 127 code_of on "$A" exec "$place" -- no-such-program
    check "exec $place: a signal reaches the command" says 42 signalled "$place"
    check "exec $place: the command dies with exec" dies_with_exec "$place"
  done
  check 'laptop: host name' says laptop laptop uname -n
  for program in conntrack curl dig ip iptables nc nft python3 ssh sudo; do
    check "laptop: $program" laptop sh -c "command -v $program"
  done
  check 'laptop: nft works' laptop sh -c 'nft add table inet probe && nft delete table inet probe'
  check 'laptop: iptables works' laptop iptables -t nat -S
  check 'laptop: dev is an ordinary user' says 'uid=1001(dev) gid=1001(dev) groups=1001(dev),1002(devs)' dev id
  check 'laptop: dev has a home' dev sh -c 'touch ~/file && rm ~/file'
  check 'laptop: dev may sudo' says 0 dev sudo id -u
  check 'laptop: root may sudo -u dev' says 1001 laptop sudo -u dev id -u
  check 'laptop: dev reads the kubeconfig' dev kubectl get nodes
  check 'laptop: /tmp is its own' laptop mountpoint -q /tmp
  check 'laptop: the checkout is there' dev test -x "$CLUSTER"
  check 'laptop: a default route for IPv6 with a global source' mentions 'src 2001:db8:51::2' laptop ip route get fd00:10:96::1
  check_leak_meter
}

code_of() {
  "$@" 2>/dev/null
  echo $?
}

# signalled PLACE: TERM to the `exec` outside; the command inside answers it with exit code 42.
signalled() {
  local pid
  "$CLUSTER" --name "$A" exec "$1" -- python3 -c "
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
print('ready', file=open('$WORK/ready', 'w'), flush=True)
signal.pause()" &
  pid=$!
  appears "$WORK/ready"
  rm "$WORK/ready"
  kill -TERM "$pid"
  wait "$pid"
  echo $?
}

dies_with_exec() {
  local pid inside
  "$CLUSTER" --name "$A" exec "$1" -- sh -c "echo ready >$WORK/ready; exec sleep 997" &
  pid=$!
  appears "$WORK/ready"
  rm "$WORK/ready"
  kill -KILL "$pid"
  wait "$pid" 2>/dev/null
  for _ in $(seq 100); do
    inside=$(on "$A" exec "$1" -- sh -c "grep -lsz '^997' /proc/[0-9]*/cmdline")
    [[ -n $inside ]] || return 0
    sleep 0.02
  done
  return 1
}

appears() {
  for _ in $(seq 250); do
    [[ ! -s $1 ]] || return 0
    sleep 0.02
  done
  return 1
}

leaked() { laptop cat /sys/class/net/wan0/statistics/tx_packets; }

# Idle it stays; whatever goes to the cluster's addresses is counted.
check_leak_meter() {
  local before after to
  before=$(leaked)
  laptop kubectl get pods >/dev/null
  check 'leak meter: API traffic is not on it' says "$before" leaked
  for to in 10.96.0.10 10.244.0.2 fd00:10:96::a fd00:10:244::2; do
    before=$(leaked)
    check_not "leak meter: $to is not reachable" laptop timeout 0.3 bash -c "</dev/tcp/$to/53"
    after=$(leaked)
    check "leak meter: $to was counted" test "$after" -gt "$before"
    before=$after
    check_not "leak meter: name query to $to is not answered" laptop dig +time=1 +tries=1 @"$to" kubernetes.default
    after=$(leaked)
    check "leak meter: it was counted" test "$after" -gt "$before"
  done
}
