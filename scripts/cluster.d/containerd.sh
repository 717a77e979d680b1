# shellcheck shell=bash
# The node's container runtime: the pods' network, its configuration, its images.

configure_containerd() {
  mkdir -p "$BOX/etc/cni"
  cat >"$BOX/etc/cni/10-pods.conflist" <<JSON
{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
  { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": { "type": "host-local", "dataDir": "$BOX/run/cni",
      "ranges": [[{ "subnet": "10.244.0.0/24" }], [{ "subnet": "fd00:10:244::/64" }]],
      "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } },
  { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true } ] }
JSON
  "$CONTAINERD_CONFIG"
}

configure_containerd_2() {
  cat >"$BOX/etc/containerd.toml" <<TOML
version = 3
root = '$BOX/state/containerd'
state = '$BOX/run/containerd'
disabled_plugins = [
  'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.devmapper',
  'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.erofs',
  'io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing', 'io.containerd.nri.v1.nri']
[grpc]
  address = '$BOX/run/containerd.sock'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'registry.k8s.io/pause:3.10'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true          # without CAP_SYS_RESOURCE no pod would start
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  enable_selinux = false
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = '$RUNTIME/usr/sbin/runc'
        SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['$RUNTIME/usr/lib/cni']
    conf_dir = '$BOX/etc/cni'
[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = '127.0.0.1'
  stream_server_port = '0'
  stream_idle_timeout = '${KSHUTTLE_BOX_STREAM_IDLE:-4h0m0s}' # containerd's own default
TOML
}

# The same for containerd before 2.
configure_containerd_1() {
  cat >"$BOX/etc/containerd.toml" <<TOML
version = 2
root = '$BOX/state/containerd'
state = '$BOX/run/containerd'
disabled_plugins = [
  'io.containerd.snapshotter.v1.aufs', 'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.zfs',
  'io.containerd.snapshotter.v1.devmapper', 'io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing']
[grpc]
  address = '$BOX/run/containerd.sock'
[plugins.'io.containerd.grpc.v1.cri']
  sandbox_image = 'registry.k8s.io/pause:3.10'
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  enable_selinux = false
  stream_server_address = '127.0.0.1'
  stream_server_port = '0'
  stream_idle_timeout = '${KSHUTTLE_BOX_STREAM_IDLE:-4h0m0s}'
  [plugins.'io.containerd.grpc.v1.cri'.containerd]
    snapshotter = 'overlayfs'
    default_runtime_name = 'runc'
    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
        BinaryName = '$RUNTIME/usr/sbin/runc'
        SystemdCgroup = false
  [plugins.'io.containerd.grpc.v1.cri'.cni]
    bin_dir = '$RUNTIME/usr/lib/cni'
    conf_dir = '$BOX/etc/cni'
TOML
}

containerd_answers() {
  enter node "$RUNTIME/usr/bin/ctr" -a "$BOX/run/containerd.sock" version
}

# import_images FILE...: OCI archives, for the kubelet to find.
import_images() {
  local file
  load_programs
  for file; do
    enter node "$RUNTIME/usr/bin/ctr" -a "$BOX/run/containerd.sock" -n k8s.io images import "$file"
  done
}
