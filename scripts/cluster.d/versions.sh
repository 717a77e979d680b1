# shellcheck shell=bash disable=SC2034
# All that differs between the versions of Kubernetes; nothing else here asks which one it is. What stands before `case` is for
# the newest. Where a program's source differs, it has a folder of its own in fixtures/cluster.

choose_version() {
  # containerd 2 and its CNI plugins come from sid and still run on bookworm's C library; runc 1.3 of sid does not, bookworm's does.
  RUNTIME_PACKAGES=(containerd/sid containernetworking-plugins/sid runc/bookworm busybox-static/bookworm)
  COREDNS_SOURCE=coredns
  CONTAINERD_CONFIG=configure_containerd_2
  COMPONENT_FLAGS=() # API server's and controller manager's
  KUBELET_FLAGS=()
  KUBELET_CONFIG="containerRuntimeEndpoint: unix://$BOX/run/containerd.sock"$'\n''failCgroupV1: false'
  PROXY_CONFIG='mode: nftables'
  LACKS=() # what the newest has and this one does not: printed by `up`, and not checked by `selftest`
  case $VERSION in
  1.36 | 1.33) RELEASE=$(release_of "$VERSION") ;;
  1.20)
    RELEASE=v1.20.2
    LACKS=('port-forward by SPDY within WebSocket (since 1.31)' 'ServiceCIDR objects (since 1.33)'
      'Pod Security admission (since 1.23): the namespace "locked" refuses no pod' 'kube-proxy with nftables (since 1.29): it has iptables')
    RUNTIME_PACKAGES=(containerd/bookworm containernetworking-plugins/bookworm runc/bookworm busybox-static/bookworm) # CRI v1alpha2
    COREDNS_SOURCE=coredns-1.20 # the last that knows EndpointSlices v1beta1; v1 came with 1.21
    CONTAINERD_CONFIG=configure_containerd_1
    COMPONENT_FLAGS=(--feature-gates=IPv6DualStack=true)
    KUBELET_FLAGS=(--container-runtime=remote --container-runtime-endpoint="unix://$BOX/run/containerd.sock")
    KUBELET_CONFIG='featureGates: {IPv6DualStack: true}'
    PROXY_CONFIG=$'mode: iptables\nfeatureGates: {IPv6DualStack: true}'
    ;;
  *) die "no Kubernetes $VERSION here; there is 1.36, 1.33, 1.20" ;;
  esac
}

# release_of VERSION: of one whose source is in the Go module proxy.
release_of() {
  awk '$1 == "k8s.io/kubernetes" {print $2; exit}' "$FIXTURES/kube-$1/go.mod"
}
