"""Names: a load of questions asked of each way in turn, in the laptop of a box. The server that is asked is on an address of the laptop's."""
from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from box import LOOK_AGAIN, REPOSITORY, BenchError, Box, Process
from measure import MARGIN, Sample
from paths import RANGES, READY_LIMIT
from processes import Processes, machine_seconds
from table import Column, noise, rows

ASK = REPOSITORY / "build/kshuttle-ask"
KSHUTTLE = REPOSITORY / "build/kshuttle"
SERVER = "198.51.100.2"  # an address that the laptop has
FORWARDER_PORT = "5353"  # of the laptop's loopback, which belongs to this run alone
CLUSTER_DNS = "10.96.0.10"
CLUSTER_NAME = "hello.default.svc.cluster.local"
IN_FLIGHT = {"one": 1, "many": 32}
DOWN_LIMIT = 30.0  # seconds until a killed API server is noticed


@dataclass(frozen=True)
class Way:
    """`baseline` is the one with which it is compared."""

    name: str
    title: str
    server: str
    inside: bool = False  # asked for a name of the cluster
    baseline: str = ""


WAYS = (
    Way("direct", "outside: the server itself", f"{SERVER}:53"),
    Way("dnsmasq", "outside: `dnsmasq`, which keeps nothing", f"127.0.0.1:{FORWARDER_PORT}", baseline="direct"),
    Way("kshuttle", "outside: **`kshuttle`**", f"{SERVER}:53", baseline="direct"),
    Way("cut", "outside: **`kshuttle`**, no tunnel", f"{SERVER}:53", baseline="direct"),
    Way("coredns", "cluster's: its DNS at its address, UDP through the tunnel", f"{CLUSTER_DNS}:53", inside=True),
    Way("kept", "cluster's: **`kshuttle`**, which keeps the answer", f"{SERVER}:53", inside=True, baseline="coredns"),
)

COLUMNS = tuple(
    column
    for key, words in (("one", "one question at a time"), ("many", f"{IN_FLIGHT['many']} at a time"))
    for column in (
        Column(f"{words}: answers/s", key, f"{key}_per_second"),
        Column("p50 ms", key, f"{key}_p50_ms"),
        Column("p99 ms", key, f"{key}_p99_ms"),
    )
)


def build() -> None:
    """The program that asks, and that answers."""
    command = """. scripts/common.sh
        cargo build --quiet --locked --release -p kshuttle-test-support --bin kshuttle-ask
        install -m 755 "$CARGO_TARGET_DIR/release/kshuttle-ask" build/kshuttle-ask"""
    for program in (KSHUTTLE, KSHUTTLE.with_name("kshuttle-helper")):
        if not program.exists():
            raise BenchError(f"{program} is not there: run scripts/build first")
    subprocess.run(["bash", "-euc", command], cwd=REPOSITORY, check=True)


def packages() -> Path:
    """The folder with dnsmasq in it."""
    return Path(Box.outside([str(REPOSITORY / "scripts/resolver-packages")], MARGIN * 10).strip())


def markdown(samples: list[Sample]) -> str:
    lines = rows(WAYS, samples, COLUMNS)
    rounds = max(sample.round for sample in samples)
    remarks = (
        f"Median of the rounds ({rounds}, interleaved), smallest and largest in brackets; less is better for p50 and p99.",
        "× is the median of the ratios within a round, to the server itself, or to the cluster's DNS at its address.",
        noise(samples),
    )
    return "\n".join([*lines, *(f"* {remark}" for remark in remarks)])


def summary(sample: Sample) -> str:
    """One line of progress."""
    parts = [
        f"{IN_FLIGHT[key]} in flight: {sample.values[f'{key}_per_second']:.0f}/s, p99 {sample.values[f'{key}_p99_ms']:.2f} ms"
        for key in IN_FLIGHT
        if f"{key}_per_second" in sample.values
    ]
    return ", ".join(parts + [f"{where}: ERROR {why}" for where, why in sample.errors.items()])


class Names:
    """Everything that stays the same from way to way."""

    def __init__(self, box: Box, seconds: int, logs: Path) -> None:
        self._box = box
        self._seconds = seconds
        self._logs = logs
        self._processes = Processes(box)
        self._address = box.ask("laptop", "kubectl", "get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}")

    def serve(self, stack: ExitStack) -> None:
        """The server, dnsmasq, and the laptop asking the server."""
        started = self._start(stack, "server", str(ASK), "--serve", f"{SERVER}:53")
        started.wait_for("listening on", READY_LIMIT)
        folder = packages() / "usr"
        libraries = f"LD_LIBRARY_PATH={':'.join(str(each) for each in folder.glob('lib/*-linux-*'))}"
        path = f"PATH={folder}/sbin:/usr/sbin:/usr/bin:/sbin:/bin"  # or the machine's own, which is in no folder then
        words = ("--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-hosts")
        only = ("--no-resolv", f"--server={SERVER}", "--cache-size=0", "--bind-interfaces", "--listen-address=127.0.0.1")
        forwarder = self._start(stack, "dnsmasq", "env", libraries, path, "dnsmasq", *words, *only, f"--port={FORWARDER_PORT}")
        forwarder.wait_for("started", READY_LIMIT)
        self._box.ask("laptop", "sh", "-c", f"echo nameserver {SERVER} >/etc/resolv.conf")

    def round(self, number: int, say: Callable[[Sample], None]) -> list[Sample]:
        """Every way once. The API server is killed for one and started again after it."""
        samples = []

        def take(*names: str) -> None:
            for way in WAYS:
                if way.name in names:
                    samples.append(self._sample(way, number))
                    say(samples[-1])

        take("direct", "dnsmasq")
        with ExitStack() as stack:
            kshuttle = self._start(stack, "kshuttle", str(KSHUTTLE), *RANGES)
            kshuttle.wait_for("ready in", READY_LIMIT)
            take("kshuttle", "coredns", "kept")
            self._box.order("kill", "apiserver")
            # Before kshuttle is stopped, which deletes its pod.
            stack.callback(self._mend)
            self._wait("the tunnels are down", lambda: not self._is_up())
            take("cut")
        return samples

    def _mend(self) -> None:
        self._box.order("start", "apiserver")
        ready = ("kubectl", "get", "--raw", "/readyz")
        self._wait("the API server is back", lambda: self._box.ask("laptop", *ready, may_fail=True) == "ok")

    def _is_up(self) -> bool:
        said = json.loads(self._box.ask("laptop", str(KSHUTTLE), "status", "-o", "json"))
        return any(tunnel["state"] == "up" for session in said for tunnel in session["tunnels"])

    def _wait(self, what: str, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + DOWN_LIMIT
        while not is_so():
            if time.monotonic() > end:
                raise BenchError(f"not within {DOWN_LIMIT:g} s: {what}")
            time.sleep(LOOK_AGAIN)

    def _start(self, stack: ExitStack, name: str, *argv: str) -> Process:
        process = self._box.start(self._logs / f"{name}.log", *argv)
        stack.callback(process.stop)
        return process

    def _sample(self, way: Way, number: int) -> Sample:
        sample = Sample(way.name, number)
        busy, whole = machine_seconds()
        inside = self._processes.box_seconds()
        for key, in_flight in IN_FLIGHT.items():
            self._measure(sample, way, key, in_flight)
        busy_now, whole_now = machine_seconds()
        used = self._processes.box_seconds() - inside
        sample.others = max(0.0, (busy_now - busy - used) / (whole_now - whole))
        return sample

    def _measure(self, sample: Sample, way: Way, key: str, in_flight: int) -> None:
        words = [str(ASK), "--ask", way.server, "--in-flight", str(in_flight), "--seconds", str(self._seconds)]
        if way.inside:
            words += ["--name", f"{CLUSTER_NAME}={self._address}"]
        try:
            result = json.loads(self._box.ask("laptop", *words, limit=MARGIN + self._seconds))
        except (BenchError, json.JSONDecodeError) as error:
            sample.errors[key] = str(error)
            return
        if result["failed"]:
            sample.errors[key] = "questions without an answer, or with a wrong one"
            sample.failed[key] = result["failed"]
        if result["answered"]:
            sample.values |= {f"{key}_{name}": result[name] for name in ("per_second", "p50_ms", "p99_ms")}
