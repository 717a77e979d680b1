"""Inside the laptop: a bad line, kshuttle over it, transfers through it, and a summary. Arguments: seconds, seed, flows."""
from __future__ import annotations

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
from pathlib import Path

SERVICE = "10.96.77.77"
RANGES = ("10.96.0.0/12", "10.244.0.0/16")
BUILD = Path("build").resolve()
MEBIBYTES = 64  # of one transfer
PATIENCE = 60  # seconds without a byte before a transfer counts as hanging: far above the 15 s in which a silent path is found
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


def download(totals: Totals) -> None:
    connection = http.client.HTTPConnection(SERVICE, 8080, timeout=PATIENCE)
    connection.request("GET", f"/{MEBIBYTES}M")
    answer = connection.getresponse()
    digest = hashlib.sha256()
    length = 0
    while piece := answer.read(1 << 18):
        digest.update(piece)
        length += len(piece)
    if digest.hexdigest() != answer.headers["X-Sha256"] or length != MEBIBYTES << 20:
        totals.fail(f"download: {length} bytes, or their sum is wrong")
    totals.add("down", length)


def upload(totals: Totals, content: bytes, digest: str) -> None:
    connection = http.client.HTTPConnection(SERVICE, 8080, timeout=PATIENCE)
    connection.request("PUT", "/sink", body=content)
    said = connection.getresponse().read().decode().split()
    if said != [digest, str(len(content))]:
        totals.fail(f"upload: the pod got {said}")
    totals.add("up", len(content))


def work(number: int, end: float, totals: Totals) -> None:
    content = hashlib.sha256(str(number).encode()).digest() * (MEBIBYTES << 15)
    digest = hashlib.sha256(content).hexdigest()
    while time.monotonic() < end:
        for way, run in (("download", lambda: download(totals)), ("upload", lambda: upload(totals, content, digest))):
            try:
                run()
            except (OSError, http.client.HTTPException) as error:
                totals.fail(f"{way}: {type(error).__name__}: {error}")


def idle(end: float, totals: Totals) -> None:
    """One quiet connection, such as a database's: a byte every few seconds, for the whole time."""
    try:
        with socket.create_connection((SERVICE, 7003), PATIENCE) as quiet:
            while time.monotonic() < end:
                quiet.sendall(b"x")
                if quiet.recv(1) != b"x":
                    raise ConnectionError("the echo is wrong, or an end")
                time.sleep(3)
    except OSError as error:
        totals.fail(f"idle connection: {error}")


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


def main() -> int:
    seconds, seed, flows = (int(word) for word in sys.argv[1:4])
    totals = Totals()
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        line_log, log, kubeconfig = (Path(folder) / name for name in ("line.log", "kshuttle.log", "kubeconfig"))
        config = subprocess.run(("kubectl", "config", "view", "--raw", "--minify"), check=True, capture_output=True, text=True).stdout
        server = re.search(r"server: https://(\S+?)/?\n", config)[1]
        with line_log.open("wb") as output:
            line = subprocess.Popen((BUILD / "kshuttle-line", "--to", server, "--seed", str(seed), *FAULTS),
                                    stdin=subprocess.PIPE, stdout=output)
        address = wait_for(line_log, r"listening on \S+").split()[-1]
        host = server.rsplit(":", 1)[0]
        kubeconfig.write_text(re.sub(r"server: \S+", f"server: https://{address}\n    tls-server-name: {host}", config))
        with log.open("wb") as output:
            kshuttle = subprocess.Popen((BUILD / "kshuttle", "--kubeconfig", kubeconfig, "-vv", *RANGES), stdout=output, stderr=output)
        wait_for(log, "ready in")
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=work, args=(number, end, totals)) for number in range(flows)]
        threads.append(threading.Thread(target=idle, args=(end, totals)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        memory = peak_memory(kshuttle)
        kshuttle.send_signal(signal.SIGTERM)
        code = kshuttle.wait(PATIENCE)
        line.stdin.close()
        line.wait(PATIENCE)
        text, faults = log.read_text(), line_log.read_text()
    if code != 128 + signal.SIGTERM:
        totals.fail(f"kshuttle ended with {code}")
    if lost := text.count("tunnel lost"):
        totals.fail(f"{lost} tunnels were lost for good")
    resets = sum(int(number) for number in re.findall(r" reset \((\d+)\)", faults))
    holes = sum(int(number) for number in re.findall(r"black hole \((\d+)\)", faults))
    print(f"{totals.transfers} transfers, {totals.bytes['down'] >> 20} MiB down, {totals.bytes['up'] >> 20} MiB up, in {seconds} s")
    print(f"{resets} connections reset, {holes} swallowed (seed {seed})")
    times = [int(number) for number in re.findall(r"back after (\d+) ms", text)]
    print(f"from a loss that was noticed to the next attachment: {spread(times)}")
    print(f"client's peak memory {memory} MiB")
    for wrong in totals.wrong:
        print(f"WRONG: {wrong}")
    print("nothing was wrong" if not totals.wrong else f"{len(totals.wrong)} things were wrong")
    return 1 if totals.wrong else 0


sys.exit(main())
