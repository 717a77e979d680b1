# shellcheck shell=bash
# The laptop: a machine beside the node that reaches the API server and nothing else.

start_laptop() {
  start_first_process laptop
  connect_laptop
}

# connect_laptop: a cable from the laptop's eth0 to the node's bridge. Made inside the node: no link of it is ever on the machine.
connect_laptop() {
  local node laptop
  node=$(first_process node) laptop=$(first_process laptop)
  nsenter -t "$node" -n ip link add laptop type veth peer name eth0 netns "$laptop"
  nsenter -t "$node" -n ip link set laptop master eth0 up
  nsenter -t "$laptop" -n ip link set eth0 up
  nsenter -t "$laptop" -n ip addr add 10.250.0.10/24 dev eth0
  nsenter -t "$laptop" -n ip addr add fd00:250::10/64 dev eth0 nodad
}
