# shellcheck shell=bash
# Checks that every object answers, with its own protocol, on all its addresses.

check_objects() {
  check 'hello' says 'hello from the cluster' page "$A" hello 80
  check 'hello6' says 'hello from the cluster' page "$A" hello6 80
  check 'hello6 has IPv6 only' says '["IPv6"]' node kubectl get service hello6 -o 'jsonpath={.spec.ipFamilies}'
  check 'web.shop' says 'web in shop' page "$A" web 80 shop
  check 'bench' says 'hello from bench' page "$A" bench 8080
  check 'a pod reaches a Service by name' says 'web in shop' node kubectl exec deploy/hello -- wget -q -O - http://web.shop/
  check 'a pod reaches its own Service' says 'hello from the cluster' node kubectl exec deploy/hello -- wget -q -O - http://hello/
  check 'hello-headless names the pod' says "$(pod_addresses 4)" resolve hello-headless A
  check 'hello-headless names the pod by IPv6' says "$(pod_addresses 6)" resolve hello-headless AAAA
  check 'an unknown name does not exist' mentions NXDOMAIN node dig @10.96.0.10 www.example.com
  check 'port-forward from the laptop' says 'hello from the cluster' forwarded
  check_bench
  check_udp_echo
  check_limited
  check_components
}

# page BOX SERVICE PORT [NAMESPACE]: what it answers on all its addresses, said once.
page() {
  local address
  for address in $(on "$1" exec node -- kubectl -n "${4-default}" get service "$2" -o 'jsonpath={.spec.clusterIPs[*]}'); do
    [[ $address != *:* ]] || address="[$address]"
    on "$1" exec node -- curl -sS -m 5 "http://$address:$3/"
  done | sort -u
}

resolve() { node dig +short @10.96.0.10 "$1.default.svc.cluster.local" "$2"; }

# pod_addresses 4|6: those of hello's pod.
pod_addresses() {
  node kubectl get pod -l app=hello -o 'jsonpath={.items[*].status.podIPs[*].ip}' | tr ' ' '\n' | if [[ $1 == 4 ]]; then grep -F .; else grep :; fi
}

forwarded() {
  # shellcheck disable=SC2016 # expanded inside
  laptop sh -c 'kubectl port-forward service/hello :80 >"$0" & pid=$!
    for _ in $(seq 100); do port=$(sed -n "s/.*127.0.0.1:\([0-9]*\) .*/\1/p" "$0"); [ -z "$port" ] || break; sleep 0.05; done
    curl -sS -m 5 "http://127.0.0.1:$port/"; kill $pid' "$WORK/forward"
}

check_bench() {
  local url=http://10.96.77.77:8080 sum zeros
  sum=$(node curl -sS -D - -o /dev/null $url/3M | tr -d '\r' | sed -n 's/^X-Sha256: //p')
  check 'bench: /3M has the sum it names' says "$sum  -" eval "node curl -sS $url/3M | sha256sum"
  check 'bench: /3M has that length' says 3145728 eval "node curl -sS $url/3M | wc -c"
  zeros=$(head -c 100000 /dev/zero | sha256sum | cut -d' ' -f1)
  check 'bench: /sink' says "$zeros 100000" eval "head -c 100000 /dev/zero | node curl -sS -T - $url/sink"
  check 'bench: /echo' says ping eval "echo ping | node curl -sS -T - $url/echo"
  check 'bench: /grpc-echo by HTTP/2' says 'ping2' eval "echo ping | node curl -sS --http2-prior-knowledge -w '%{http_version}' -T - $url/grpc-echo | tr -d '\n'"
  check 'bench: /slow' says 'after 50 ms' node curl -sS "$url/slow?ms=50"
  check 'bench: /ws' websocket_echoes
  check 'bench: 7003 echoes' says ping eval "echo ping | node nc -N 10.96.77.77 7003"
  check 'bench: 7004 answers after a half-close' sums_after_half_close
  check 'bench: 7005 resets after 64 bytes' says '64 ConnectionResetError' python "$RESET_CLIENT"
  check 'bench: 7006 holds' says 'timed out' python "$HOLD_CLIENT"
  check 'bench: 9999 is refused' mentions refused node nc -v -w 5 10.96.77.77 9999
  check 'bench: the client measures all' bench_measures
}

# The client from inside its own image's pod: it must reach the server by the Service.
bench_measures() {
  node kubectl exec deploy/bench -- /bench measure -host 10.96.77.77 -time 300ms -mib 16
}

RESET_CLIENT='
import socket
s, n = socket.create_connection(("10.96.77.77", 7005), 5), 0
s.send(b"x")
try:
    while data := s.recv(100): n += len(data)
    print(n, "end")
except Exception as e: print(n, type(e).__name__)'

HOLD_CLIENT='
import socket
s = socket.create_connection(("10.96.77.77", 7006), 5)
s.settimeout(0.5)
try: print(s.recv(1))
except Exception as e: print(e)'

# One masked text frame there and the same, unmasked, back (RFC 6455).
websocket_echoes() {
  python '
import socket
s = socket.create_connection(("10.96.77.77", 8080), 5)
s.sendall(b"GET /ws HTTP/1.1\r\nHost: b\r\nOrigin: http://b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
          b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
f = s.makefile("rb")
assert b" 101 " in f.readline()
while f.readline() != b"\r\n": pass
s.sendall(b"\x81\x84\0\0\0\0ping")
assert f.read(6) == b"\x81\x04ping"'
}

sums_after_half_close() {
  printf abc | node nc -N 10.96.77.77 7004 >"$WORK/answer"
  says "3 $(printf abc | sha256sum | cut -d' ' -f1)" head -n 1 "$WORK/answer" &&
    says "$(node curl -sS http://10.96.77.77:8080/10M | sha256sum)" eval "tail -n +2 $WORK/answer | sha256sum"
}

check_udp_echo() {
  local address
  for address in $(node kubectl get service udp-echo -o 'jsonpath={.spec.clusterIPs[*]}'); do
    check "udp-echo on $address" says ping python "
import socket
s = socket.socket(socket.AF_INET6 if ':' in '$address' else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5); s.connect(('$address', 9000)); s.send(b'ping'); print(s.recv(9).decode())"
  done
}

limited() { on "$A" exec --user dev laptop -- env KUBECONFIG="$(on "$A" kubeconfig limited)" kubectl "$@"; }

check_limited() {
  local verb
  for verb in 'create pods' 'get pods' 'list pods' 'watch pods' 'delete pods' 'get pods --subresource=portforward' \
    'create pods --subresource=portforward' 'create configmaps' 'get configmaps'; do
    # shellcheck disable=SC2086
    check "limited may $verb" limited auth can-i $verb
  done
  for verb in 'list services' 'get secrets' 'list nodes' 'list pods --namespace default' 'create pods --subresource=exec' 'list namespaces'; do
    # shellcheck disable=SC2086
    check_not "limited may not $verb" limited auth can-i $verb
  done
  check_since 23 'locked refuses an ordinary pod' mentions 'violates PodSecurity' \
    limited run plain --image=kshuttle.test/bench:1 --restart=Never
  check 'locked takes a restricted pod' limited run fine --image=kshuttle.test/bench:1 --restart=Never --dry-run=server \
    --overrides='{"spec": {"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
      "containers": [{"name": "fine", "image": "kshuttle.test/bench:1",
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}}'
}

check_components() {
  check 'kill apiserver' on "$A" kill apiserver
  check_not 'it is gone' node kubectl get --raw /readyz
  check 'start apiserver' on "$A" start apiserver
  check 'it is back' eventually node kubectl get --raw /readyz
  check 'pause apiserver' on "$A" pause apiserver
  check_not 'it does not answer' node kubectl --request-timeout=1s get --raw /readyz
  check 'resume apiserver' on "$A" resume apiserver
  check 'it answers' node kubectl get --raw /readyz
  check 'the operator takes orders in the laptop' says ok ordered pause scheduler
  check 'the operator says what it cannot do' mentions 'No such file' ordered kill nothing
  ordered resume scheduler >/dev/null
  check 'kill containerd' on "$A" kill containerd
  check 'start containerd' on "$A" start containerd
  check 'pods survived' says 'hello from the cluster' page "$A" hello 80
  check 'a pod can be entered again' eventually node kubectl exec deploy/hello -- true
}

# ordered VERB COMPONENT: what the node's operator answers to the laptop.
ordered() {
  # shellcheck disable=SC2016
  on "$A" exec laptop -- sh -c 'echo "$@" | nc -NU "$KSHUTTLE_BOX_OPERATOR"' sh "$@"
}

eventually() {
  for _ in $(seq 200); do
    ! "$@" || return 0
    sleep 0.1
  done
  return 1
}
