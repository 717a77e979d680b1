"""Inside the laptop: a bad line, kshuttle over it, transfers through it, and a summary. Options: those of scripts/soak."""
from __future__ import annotations

import argparse
import hashlib
import http.client
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

SERVICE = "10.96.77.77"
RANGES = ("10.96.0.0/12", "10.244.0.0/16")
BUILD = Path("build").resolve()
PATIENCE = 60  # seconds without a byte before a transfer counts as hanging: far above the 15 s in which a silent path is found
BEAT = 0.01  # seconds between round trips of the connection that notices when data moves again
QUIET = 3  # seconds between those of the idle connection
FAULTS = ("--reset-every", "2s", "--black-hole-every", "60s")


class Totals:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bytes = {"down": 0, "up": 0}
        self.transfers = 0
        self.wrong: list[str] = []

    def add(self, way: str, length: int) -> None:
        with self.lock:
            self.bytes[way] += length
            self.transfers += 1

    def fail(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)


def download(totals: Totals, length: int) -> None:
    connection = http.client.HTTPConnection(SERVICE, 8080, timeout=PATIENCE)
    connection.request("GET", f"/{length}M")
    answer = connection.getresponse()
    digest = hashlib.sha256()
    got = 0
    while piece := answer.read(1 << 18):
        digest.update(piece)
        got += len(piece)
    if digest.hexdigest() != answer.headers["X-Sha256"] or got != length << 20:
        totals.fail(f"download: {got} bytes, or their sum is wrong")
    totals.add("down", got)


def upload(totals: Totals, length: int, number: int) -> None:
    mebibyte = hashlib.sha256(str(number).encode()).digest() * (1 << 15)
    digest = hashlib.sha256()
    for count in range(length):  # no two mebibytes are alike: an exchange would show
        digest.update(count.to_bytes(8) + mebibyte[8:])
    body = (count.to_bytes(8) + mebibyte[8:] for count in range(length))
    connection = http.client.HTTPConnection(SERVICE, 8080, timeout=PATIENCE)
    connection.request("PUT", "/sink", body=body, headers={"Content-Length": str(length << 20)})
    said = connection.getresponse().read().decode().split()
    if said != [digest.hexdigest(), str(length << 20)]:
        totals.fail(f"upload: the pod got {said}")
    totals.add("up", length << 20)


def work(run: partial[None], end: float | None, totals: Totals) -> None:
    """Again and again until `end`; once without one."""
    while True:
        try:
            run()
        except (OSError, http.client.HTTPException) as error:
            totals.fail(f"{run.func.__name__}: {type(error).__name__}: {error}")
        if end is None or time.monotonic() >= end:
            return


def beat(pause: float, over: threading.Event, totals: Totals, what: str, beats: list[tuple[float, float]]) -> None:
    """A byte there and back on one connection, for the whole time. In `beats`: when each was sent, and when it was back."""
    try:
        with socket.create_connection((SERVICE, 7003), PATIENCE) as echo:
            while not over.wait(pause):
                sent = time.monotonic()
                echo.sendall(b"x")
                if echo.recv(1) != b"x":
                    raise ConnectionError("the echo is wrong, or an end")
                beats.append((sent, time.monotonic()))
    except OSError as error:
        totals.fail(f"{what} connection: {error}")


def moving_again(faults: list[float], beats: list[tuple[float, float]]) -> list[int]:
    """For each fault the milliseconds until a round trip begun after it was back."""
    times = []
    beats_left = iter(beats)
    beat = next(beats_left, None)
    for fault in sorted(faults):
        while beat and beat[0] < fault:
            beat = next(beats_left, None)
        if beat:
            times.append(int((beat[1] - fault) * 1000))
    return times


def wait_for(log: Path, words: str) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := re.search(words, log.read_text()):
            return found[0]
        time.sleep(0.05)
    raise SystemExit(f"{log.name} does not say {words!r}:\n{log.read_text()}")


def peak_memory(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024


def spread(times: list[int]) -> str:
    ordered = sorted(times)
    share = lambda part: ordered[min(len(ordered) - 1, int(part * len(ordered)))]  # noqa: E731
    return f"p50 {share(0.5)} ms, p99 {share(0.99)} ms, longest {ordered[-1]} ms, {len(ordered)} in all" if ordered else "none"


class Faults:
    """What the line says it does, and when it was heard."""

    def __init__(self, output) -> None:  # noqa: ANN001
        self.at: dict[str, list[float]] = {"reset": [], "black hole": []}
        self.connections = {"reset": 0, "black hole": 0}
        self.thread = threading.Thread(target=self._read, args=(output,), daemon=True)
        self.thread.start()

    def _read(self, output) -> None:  # noqa: ANN001
        for line in output:
            said = re.search(r" (reset|black hole) \((\d+)\)", line)
            if said and int(said[2]):
                self.at[said[1]].append(time.monotonic())
                self.connections[said[1]] += int(said[2])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--rate")
    for name, default in (("seconds", 600), ("length", 64), ("flows", 10), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main() -> int:
    wanted = options()
    totals = Totals()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        log, kubeconfig = (Path(folder) / name for name in ("kshuttle.log", "kubeconfig"))
        config = subprocess.run(("kubectl", "config", "view", "--raw", "--minify"), check=True, capture_output=True, text=True).stdout
        server = re.search(r"server: https://(\S+?)/?\n", config)[1]
        rate = ("--rate", wanted.rate) if wanted.rate else ()
        line = subprocess.Popen((BUILD / "kshuttle-line", "--to", server, "--seed", str(wanted.seed), *FAULTS, *rate),
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        address = line.stdout.readline().split()[-1]
        faults = Faults(line.stdout)
        host = server.rsplit(":", 1)[0]
        kubeconfig.write_text(re.sub(r"server: \S+", f"server: https://{address}\n    tls-server-name: {host}", config))
        with log.open("wb") as output:
            kshuttle = subprocess.Popen((BUILD / "kshuttle", "--kubeconfig", kubeconfig, "-vv", *RANGES), stdout=output, stderr=output)
        wait_for(log, "ready in")
        print("faults begin", file=line.stdin, flush=True)
        end = None if wanted.once else time.monotonic() + wanted.seconds
        over = threading.Event()
        beats: list[tuple[float, float]] = []
        companions = [threading.Thread(target=beat, args=(BEAT, over, totals, "busy", beats)),
                      threading.Thread(target=beat, args=(QUIET, over, totals, "idle", []))]
        flows = []
        for number in range(wanted.flows):
            for run in (partial(download, totals, wanted.length), partial(upload, totals, wanted.length, number)):
                flows.append(threading.Thread(target=work, args=(run, end, totals)))
        for thread in (*companions, *flows):
            thread.start()
        for thread in flows:
            thread.join()
        over.set()
        for thread in companions:
            thread.join()
        memory = peak_memory(kshuttle)
        kshuttle.send_signal(signal.SIGTERM)
        code = kshuttle.wait(PATIENCE)
        line.stdin.close()
        line.wait(PATIENCE)
        faults.thread.join(PATIENCE)
        text = log.read_text()
    if code != 128 + signal.SIGTERM:
        totals.fail(f"kshuttle ended with {code}")
    if lost := text.count("tunnel lost"):
        totals.fail(f"{lost} tunnels were lost for good")
    megabytes = {way: count >> 20 for way, count in totals.bytes.items()}
    print(f"{totals.transfers} transfers of {wanted.length} MiB, {megabytes['down']} MiB down, {megabytes['up']} MiB up, "
          f"in {time.monotonic() - begin:.0f} s")
    for kind, times in faults.at.items():
        print(f"{kind}: {len(times)} times, {faults.connections[kind]} connections; "
              f"until data moved again: {spread(moving_again(times, beats))} (seed {wanted.seed})")
    print(f"a round trip beside the transfers: {spread([int((back - sent) * 1000) for sent, back in beats])}")
    times = [int(number) for number in re.findall(r"back after (\d+) ms", text)]
    print(f"from a loss that was noticed to the next attachment: {spread(times)}")
    print(f"client's peak memory {memory} MiB")
    for wrong in totals.wrong:
        print(f"WRONG: {wrong}")
    if totals.wrong:
        said = BUILD / "soak-kshuttle.log"
        said.write_text(text)
        print(f"what kshuttle said: {said}")
    print("nothing was wrong" if not totals.wrong else f"{len(totals.wrong)} things were wrong")
    return 1 if totals.wrong else 0


sys.exit(main())
