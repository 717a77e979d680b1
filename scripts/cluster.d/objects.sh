# shellcheck shell=bash
# What runs in the cluster (fixtures/cluster/manifests), and the requests that show that it does.

apply_objects() {
  kubectl apply -f "$FIXTURES/manifests" >"$BOX/log/objects.log" 2>&1
}

node_ready() {
  [[ $(kubectl get node node -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}') == True ]]
}

# wait_for_answers: real requests from the node, over both address families.
wait_for_answers() {
  local address
  for address in 10.96.0.10 fd00:10:96::a; do
    wait_until 60 "CoreDNS answers on $address" name_resolves "$address"
  done
  wait_for_page default hello 80 'hello from the cluster'
  wait_for_page default hello6 80 'hello from the cluster'
  wait_for_page shop web 80 'web in shop'
  wait_for_page default bench 8080 'hello from bench'
}

name_resolves() {
  [[ $(enter node dig +short +tries=1 +time=1 @"$1" kubernetes.default.svc.cluster.local) == 10.96.0.1 ]]
}

# wait_for_page NAMESPACE SERVICE PORT TEXT: on every address the Service has.
wait_for_page() {
  local addresses address
  addresses=$(kubectl -n "$1" get service "$2" -o 'jsonpath={.spec.clusterIPs[*]}')
  [[ -n $addresses ]]
  for address in $addresses; do
    [[ $address != *:* ]] || address="[$address]"
    wait_until 60 "$2.$1 answers on $address" page_is "http://$address:$3/" "$4"
  done
}

page_is() {
  [[ $(enter node curl -fsS -m 2 "$1") == "$2" ]]
}
