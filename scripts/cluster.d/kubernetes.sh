# shellcheck shell=bash
# Certificates, configuration and the processes of the cluster. Addresses: node 10.250.0.2 and fd00:250::2, pods 10.244.0.0/16
# and fd00:10:244::/56, Services 10.96.0.0/12 and fd00:10:96::/112.

NODE_IP=10.250.0.2
SERVICE_RANGES=10.96.0.0/12,fd00:10:96::/112
POD_RANGES=10.244.0.0/16,fd00:10:244::/56
NEW_KEY=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

make_certificates() (
  mkdir -p "$BOX/pki" "$BOX/kubeconfig"
  cd "$BOX/pki" || exit
  openssl req -x509 "${NEW_KEY[@]}" -days 3650 -subj /CN=kubernetes -keyout ca.key -out ca.crt 2>openssl.log
  openssl genrsa -out sa.key 2048 2>openssl.log
  openssl rsa -in sa.key -pubout -out sa.pub 2>openssl.log
  printf 'subjectAltName=IP:%s,IP:fd00:250::2,IP:127.0.0.1,IP:10.96.0.1,IP:fd00:10:96::1,%s' "$NODE_IP" \
    DNS:localhost,DNS:node,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc >names
  make_certificate apiserver /CN=kube-apiserver
  make_certificate kubelet /CN=node
  make_user admin /O=system:masters/CN=admin default
  make_user limited /CN=limited locked
  make_user controller-manager /CN=system:kube-controller-manager default
  make_user scheduler /CN=system:kube-scheduler default
  make_user proxy /CN=system:kube-proxy default
  make_user node /O=system:nodes/CN=system:node:node default
)

make_certificate() {
  openssl req "${NEW_KEY[@]}" -subj "$2" -keyout "$1.key" -out "$1.csr" 2>openssl.log
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile names -out "$1.crt" 2>openssl.log
}

# make_user NAME SUBJECT NAMESPACE: a client certificate and its kubeconfig. Readable by all: the laptop's ordinary user needs it.
make_user() {
  make_certificate "$1" "$2"
  cat >"$BOX/kubeconfig/$1" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: box
  cluster: {server: "https://$NODE_IP:6443", certificate-authority-data: $(base64 -w0 ca.crt)}
users:
- name: $1
  user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}
contexts:
- name: $1@box
  context: {cluster: box, user: $1, namespace: $3}
current-context: $1@box
YAML
  chmod 644 "$BOX/kubeconfig/$1"
}

configure_node() {
  cat >"$BOX/etc/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_IP
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $BOX/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerLogMaxSize: 1Mi
# A full disk is the machine's affair, and so are its images.
evictionHard: {memory.available: "100Mi", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
failSwapOn: false
nodeStatusReportFrequency: 1s
nodeStatusUpdateFrequency: 1s
resolvConf: /etc/resolv.conf
tlsCertFile: $BOX/pki/kubelet.crt
tlsPrivateKeyFile: $BOX/pki/kubelet.key
$KUBELET_CONFIG
YAML
  cat >"$BOX/etc/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: $POD_RANGES
hostnameOverride: node
clientConnection: {kubeconfig: $BOX/kubeconfig/proxy}
# These limits are the machine's: leave them as they are.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
$PROXY_CONFIG
YAML
}

# shellcheck disable=SC2054 # commas within the options' values
# component_command NAME: COMMAND, what this component runs.
component_command() {
  local pki=$BOX/pki kubeconfig=$BOX/kubeconfig
  case $1 in
  containerd) COMMAND=("$RUNTIME/usr/bin/containerd" --config "$BOX/etc/containerd.toml") ;;
  etcd) # no fsync: nothing here outlives the box
    COMMAND=("$ETCD" --data-dir "$BOX/state/etcd" --listen-client-urls http://127.0.0.1:2379
      --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync --log-level warn) ;;
  apiserver)
    COMMAND=("$KUBE" kube-apiserver --advertise-address="$NODE_IP" --bind-address=:: --secure-port=6443
      --etcd-servers=http://127.0.0.1:2379 --service-cluster-ip-range="$SERVICE_RANGES"
      --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt"
      --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key"
      --kubelet-preferred-address-types=InternalIP --service-account-issuer=https://kubernetes.default.svc
      --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key"
      --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true
      --enable-priority-and-fairness=false "${COMPONENT_FLAGS[@]}") ;;
  controller-manager) # at the default client limits (20 requests/s) the Deployment controller starts five seconds later
    COMMAND=("$KUBE" kube-controller-manager --kubeconfig="$kubeconfig/controller-manager"
      --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" --use-service-account-credentials=true
      --leader-elect=false --kube-api-qps=500 --kube-api-burst=500 --allocate-node-cidrs=true --cluster-cidr="$POD_RANGES"
      --node-cidr-mask-size-ipv4=24 --node-cidr-mask-size-ipv6=64 --service-cluster-ip-range="$SERVICE_RANGES"
      "${COMPONENT_FLAGS[@]}") ;;
  scheduler) COMMAND=("$KUBE" kube-scheduler --kubeconfig="$kubeconfig/scheduler" --leader-elect=false) ;;
  kubelet)
    COMMAND=("$KUBE" kubelet --config="$BOX/etc/kubelet.yaml" --kubeconfig="$kubeconfig/node" --hostname-override=node
      --node-ip="$NODE_IP,fd00:250::2" --root-dir=/var/lib/kubelet --v=2 "${KUBELET_FLAGS[@]}") ;;
  proxy) COMMAND=("$KUBE" kube-proxy --config="$BOX/etc/proxy.yaml" --v=2) ;;
  *) die "no component $1; see scripts/cluster help" ;;
  esac
}

# start_component NAME: in the background inside the node; its pid there is in $BOX/run/NAME.pid. The script that starts it stays
# in $BOX/run/NAME.start, for the operator.
start_component() {
  local path=$RUNTIME/usr/bin:$RUNTIME/usr/sbin:$SYSTEM_PATH script=$BOX/run/$1.start
  component_command "$1"
  cat >"$script" <<SH
#!/bin/sh
echo \$\$ >'$BOX/run/$1.pid'
exec env -i PATH='$path' HOME=/root TMPDIR=/tmp $(printf "'%s' " "${COMMAND[@]}") </dev/null >>'$BOX/log/$1.log' 2>&1
SH
  chmod 700 "$script"
  start_in_node "$script"
}

# start_in_node COMMAND...: in the background.
start_in_node() {
  "$ENTER" -d -g "$BOX/cgroups" "$(first_process node)" "$@" </dev/null >>"$BOX/log/node.log" 2>&1 7>&- 8>&- 9>&-
}

# start_operator: who does to components inside the node what tests in the laptop ask for.
start_operator() {
  start_in_node env PATH="$SYSTEM_PATH" "$PARTS/node-operator" "$BOX/run"
}

# signal_component NAME SIGNAL: KILL, without warning, as a crash would; STOP and CONT, as a machine that hangs for a while.
signal_component() {
  [[ -s $BOX/run/$1.pid ]] || die "component $1 was never started; see scripts/cluster help"
  enter node kill "-$2" "$(<"$BOX/run/$1.pid")"
}

apiserver_ready() {
  [[ $(enter node curl -sS -m 2 --cacert "$BOX/pki/ca.crt" --cert "$BOX/pki/admin.crt" --key "$BOX/pki/admin.key" \
    "https://$NODE_IP:6443/readyz") == ok ]]
}

kubectl() {
  enter node "$KUBECTL" --kubeconfig "$BOX/kubeconfig/admin" "$@"
}
