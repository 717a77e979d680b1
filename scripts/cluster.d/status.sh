# shellcheck shell=bash
# `status`: for people and for scripts (exit code 3: not up).

part kubernetes

show_status() {
  if ! box_lives node; then
    echo "box '$NAME' is down"
    exit 3
  fi
  load_programs
  if [[ -e $BOX/complete ]]; then echo "box '$NAME' is up"; else echo "box '$NAME' is half up"; fi
  kubectl get nodes -o wide
  kubectl get pods -A -o wide
  [[ -e $BOX/complete ]] || exit 3
}
