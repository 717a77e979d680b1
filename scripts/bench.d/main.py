"""The command line, the rounds, and that everything is taken away whatever happens."""
from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

import names
import table
from box import CACHE, REPOSITORY, BenchError, Box
from measure import Bench, Sample, Sizes
from paths import Way, all_paths
from rivals import Rivals, prepare, sshuttle, versions

QUICK = Sizes(mebibytes=64, mebibytes_slow=16, seconds=1)
ROUNDS = 5
ROUNDS_QUICK = 2
INTERRUPTED = 128 + signal.SIGINT


def main() -> int:
    if "--line" in sys.argv[1:]:
        return _line([word for word in sys.argv[1:] if word != "--line"])
    options = _parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        return _names(options) if options.names else _run(options)
    except BenchError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/bench: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures kshuttle (build/, made by scripts/build) beside its rivals on a Kubernetes of its own, and prints a Markdown "
        "table. Needs root on a Debian-like Linux. A full run takes about 20 minutes on 2 cores.",
    )
    parser.add_argument("--rounds", type=int, help=f"every path is measured once in each (default {ROUNDS}, quick {ROUNDS_QUICK})")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, figures are rough")
    parser.add_argument("--only", metavar="PATH,…", help="these paths only; --only help lists them")
    parser.add_argument("--line", action="store_true",
                        help="instead: pings, new connections and transfers over simulated lines, without Kubernetes; --line --help says more")
    parser.add_argument("--names", action="store_true",
                        help="instead: questions about names, beside dnsmasq and the cluster's own DNS; about 3 minutes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples there, after each round")
    options = parser.parse_args()
    options.rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    if options.rounds < 1:
        parser.error("--rounds needs a positive number")
    if options.names and options.only:
        parser.error("--only is about paths, of which --names has none")
    return options


def _line(arguments: list[str]) -> int:
    """Builds and runs the measuring program; both ends of the tunnel and the line between them are in it."""
    build_and_run = '. scripts/common.sh && exec cargo run --quiet --locked --release --example line -- "$@"'
    environment = {**os.environ}
    if os.geteuid() == 0:
        environment["KSHUTTLE_BENCH_SSHUTTLE"] = sshuttle()
    command = ["bash", "-c", build_and_run, "scripts/bench", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode


def _names(options: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise BenchError("the box needs root")
    names.build()
    CACHE.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="bench-logs-", dir=CACHE) as logs:
        _say("bringing up a Kubernetes (the first time builds it, which takes minutes)")
        with Box(f"bench-{os.getpid()}") as box, ExitStack() as stack:
            bench = names.Names(box, (QUICK if options.quick else Sizes()).seconds, Path(logs))
            bench.serve(stack)
            for number in range(1, options.rounds + 1):
                samples += bench.round(number, lambda sample: _say(f"round {sample.round}  {sample.path:<9} {names.summary(sample)}"))
                _write(options, "", samples)
    print(names.markdown(samples))
    print(f"* {_machine()}")
    return 1 if any(sample.errors for sample in samples) else 0


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, everything on them."


def _write(options: argparse.Namespace, about: str, samples: list[Sample]) -> None:
    if options.json:
        whole = {"about": about, "samples": [sample.as_json() for sample in samples]}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _run(options: argparse.Namespace) -> int:
    everything = all_paths(Rivals(Path(), Path(), Path(), port_forward_command=True))
    names = [path.name for path in everything]
    wanted = options.only.split(",") if options.only else names
    if options.only == "help":
        print("\n".join(f"{path.name:<17} {path.title}" for path in everything))
        return 0
    if unknown := set(wanted) - set(names):
        raise BenchError(f"no path {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if os.geteuid() != 0:
        raise BenchError("the box needs root")

    # In the cache: the box's folders must be seen from inside.
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-logs-", dir=CACHE) as logs:
        _say("bringing up a Kubernetes (the first time builds it, which takes minutes)")
        with Box(f"bench-{os.getpid()}") as box:
            rivals = prepare(box)
            paths = [path for path in all_paths(rivals) if path.name in wanted]
            if missing := set(wanted) - {path.name for path in paths}:
                _say(f"left out, because this kshuttle has no `port-forward`: {', '.join(sorted(missing))}")
            about = versions(box, rivals)
            bench = Bench(box, rivals, QUICK if options.quick else Sizes(), Path(logs))
            samples = _rounds(bench, paths, options, about)
    print(table.markdown(paths, samples))
    print(f"* {about}; {_machine()}")
    return 1 if any(sample.errors or sample.left for sample in samples) else 0


def _rounds(bench: Bench, paths: list[Way], options: argparse.Namespace, about: str) -> list[Sample]:
    samples: list[Sample] = []
    for number in range(1, options.rounds + 1):
        for path in paths:
            began = time.monotonic()
            sample = bench.sample(path, number)
            samples.append(sample)
            _say(f"round {number}  {path.name:<16} {_summary(sample)}  ({time.monotonic() - began:.0f} s)")
        _write(options, about, samples)
    return samples


def _summary(sample: Sample) -> str:
    shown = {"down": "down_mb_s", "up": "up_mb_s", "new/s": "connections_s", "req/s": "requests_s", "load ping": "load_ping_p50_ms"}
    parts = [f"{words} {sample.values[key]:g}" for words, key in shown.items() if key in sample.values]
    parts += [f"{where}: ERROR {why}" for where, why in sample.errors.items()]
    parts += [f"LEFT {what}" for what in sample.left]
    return ", ".join(parts)


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
