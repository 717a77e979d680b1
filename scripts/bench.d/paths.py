"""The ways from the laptop into the cluster: what starts each, where the server is found through it, and what it is compared with."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from box import LOOK_AGAIN, Box, Process
from rivals import Rivals

SERVICE = "10.96.77.77"  # fixtures/cluster/manifests: the Service `bench`
PORTS = ("7001", "7002", "7003", "8080")  # source, sink, echo, HTTP
RANGES = ("10.96.0.0/12", "10.244.0.0/16")
LOOPBACK = "127.0.0.1"
SOCKS = f"{LOOPBACK}:1080"  # fixed: the laptop's loopback belongs to this run alone
READY_LIMIT = 60.0  # seconds
GONE_LIMIT = 15.0  # seconds for what a stopped path may still be taking away: processes, rules, its pod

PORT_FORWARDED = "kubectl-ws"
TUNNELLED = "ssh-L"


@dataclass(frozen=True)
class Step:
    """One program of a path. The next one is started when it has said `ready`."""

    argv: tuple[str, ...]
    ready: str = ""


@dataclass(frozen=True)
class Way:
    """`slow` ones carry less in bulk, so that a round does not wait for them."""

    name: str
    title: str
    steps: Callable[[Rivals], list[Step]]
    host: str = SERVICE
    socks: str = ""
    place: str = "laptop"
    baseline: str = ""
    slow: bool = False


def _kubectl(websockets: bool, target: str, *ports: str) -> Step:
    choice = f"KUBECTL_PORT_FORWARD_WEBSOCKETS={str(websockets).lower()}"
    argv = ("env", choice, "kubectl", "port-forward", "--address", LOOPBACK, target, *ports)
    return Step(argv, rf"Forwarding from .* -> {ports[-1]}\b")


def _ssh(rivals: Rivals) -> tuple[str, ...]:
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ExitOnForwardFailure=yes")
    words = ["ssh", "-F", "none", "-c", "aes128-gcm@openssh.com", "-i", str(rivals.key)]
    for option in options:
        words += ["-o", option]
    return tuple(words)


def _ssh_step(rivals: Rivals, *arguments: str) -> list[Step]:
    ssh = (*_ssh(rivals), "-p", "2222", "-N", *arguments, f"root@{LOOPBACK}")
    return [_kubectl(True, "pod/sshd", "2222"), Step(ssh)]


def _sshuttle(rivals: Rivals) -> list[Step]:
    program = ("env", f"PYTHONPATH={rivals.sshuttle}", "python3", str(rivals.sshuttle / "bin/sshuttle"))
    remote = ("--method", "nft", "--ssh-cmd", " ".join(_ssh(rivals)), "-r", f"root@{LOOPBACK}:2222")
    return [_kubectl(True, "pod/sshd", "2222"), Step((*program, *remote, *RANGES))]


def _port_forward(transport: str) -> Callable[[Rivals], list[Step]]:
    arguments = ("port-forward", "--transport", transport, "deployment/bench", *PORTS)
    return lambda rivals: [Step((str(rivals.kshuttle), *arguments))]


def _kshuttle(*arguments: str) -> Callable[[Rivals], list[Step]]:
    return lambda rivals: [Step((str(rivals.kshuttle), *arguments))]


def _to_service(port: str) -> tuple[str, str]:
    return "-L", f"{port}:{SERVICE}:{port}"


def all_paths(rivals: Rivals) -> list[Way]:
    """In the order they are run and shown."""
    local = [word for port in PORTS for word in _to_service(port)]
    paths = [
        Way("direct", "no tunnel, from the node", lambda _: [], place="node"),
        Way("kubectl-ws", "`kubectl port-forward`", lambda _: [_kubectl(True, "deployment/bench", *PORTS)], LOOPBACK),
        Way("kubectl-spdy", "`kubectl port-forward`, SPDY", lambda _: [_kubectl(False, "deployment/bench", *PORTS)], LOOPBACK,
              baseline=PORT_FORWARDED),
    ]
    if rivals.port_forward_command:
        for name, transport, title in (("ws", "websocket", "WebSocket"), ("spdy", "spdy", "SPDY")):
            paths.append(Way(f"kshuttle-pf-{name}", f"**`kshuttle port-forward`**, {title}", _port_forward(transport), LOOPBACK,
                               baseline=PORT_FORWARDED))
    return [
        *paths,
        Way("ssh-L", "`ssh -L` over `kubectl port-forward`", lambda r: _ssh_step(r, *local), LOOPBACK),
        Way("ssh-D", "`ssh -D` over `kubectl port-forward`", lambda r: _ssh_step(r, "-D", SOCKS), socks=SOCKS, baseline=TUNNELLED),
        Way("sshuttle", "`sshuttle` over `kubectl port-forward`", _sshuttle, baseline=TUNNELLED, slow=True),
        Way("kshuttle", "**`kshuttle`** (redirect)", _kshuttle(*RANGES), baseline=TUNNELLED),
        Way("kshuttle-socks", "**`kshuttle socks`**", _kshuttle("socks", "--listen", SOCKS), socks=SOCKS, baseline=TUNNELLED),
    ]


@contextmanager
def running(box: Box, path: Way, rivals: Rivals, logs: Path) -> Iterator[list[Process]]:
    """The path's programs, started one after the other; stopped, the last first, at the end."""
    started: list[Process] = []
    try:
        for number, step in enumerate(path.steps(rivals)):
            started.append(box.start(logs / f"{path.name}-{number}.log", *step.argv))
            if step.ready:
                started[-1].wait_for(step.ready, READY_LIMIT)
        yield started
    finally:
        for process in reversed(started):
            process.stop()


def wait_until_gone(box: Box, pods_before: set[str], processes: Callable[[], list[str]]) -> list[str]:
    """Waits until the laptop and the cluster are as before the path. What is still there then is reported, and taken away."""
    end = time.monotonic() + GONE_LIMIT
    while True:
        rules = box.ask("laptop", "nft", "list", "tables").split("\n")[:-1]
        left = [f"rules: {rule}" for rule in rules]
        left += [f"process: {process}" for process in processes()]
        left += [f"pod: {pod}" for pod in pods(box) - pods_before]
        if not left or time.monotonic() > end:
            break
        time.sleep(LOOK_AGAIN)
    if any(line.startswith("rules") for line in left):
        box.ask("laptop", "nft", "flush", "ruleset")
    return left


def pods(box: Box) -> set[str]:
    return set(box.ask("laptop", "kubectl", "get", "pods", "-o", "name").split())
