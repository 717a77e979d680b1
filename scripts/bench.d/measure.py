"""One path in one round: start it, measure everything through it, take it away. A sample is what came of that."""
from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from box import LOOK_AGAIN, BenchError, Box, Process
from paths import READY_LIMIT, Way, pods, running, wait_until_gone
from processes import Processes, machine_seconds, seconds_between
from rivals import Rivals

GIBIBYTE = 1 << 30
MEASUREMENTS = ("down", "up", "conns", "keepalive", "ping", "load")
COUNTED = {"conns": "connections_s", "keepalive": "requests_s"}  # where single failures do not spoil the figure
BULK_LIMIT = 40  # seconds; a download that takes longer is measured until then, an upload has failed
MARGIN = 60  # seconds a measurement may take beyond its own length


@dataclass(frozen=True)
class Sizes:
    """How much is measured. Times are those of each measurement but the bulk ones."""

    mebibytes: int = 512
    mebibytes_slow: int = 128
    seconds: int = 2


@dataclass
class Sample:
    """`values` has only what was really measured; `errors` the reason for each measurement that went wrong ("start": all of them)."""

    path: str
    round: int
    values: dict[str, float] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)  # single connections or requests within a measurement
    errors: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # what the path had not taken away some time after its end
    others: float = 0.0  # part of the machine's processors that was used outside the box meanwhile; 0 to 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """Everything that stays the same from path to path."""

    def __init__(self, box: Box, rivals: Rivals, sizes: Sizes, logs: Path) -> None:
        self._box = box
        self._rivals = rivals
        self._sizes = sizes
        self._logs = logs
        self._processes = Processes(box)
        self._program = box.programs["BENCH"]
        self._pods = pods(box)

    def sample(self, path: Way, number: int) -> Sample:
        sample = Sample(path.name, number)
        if path.place != "laptop":
            self._measure_all(sample, path, [])
            return sample
        # It tries from before the start on, so that its own start is not part of the time.
        waiting = self._box.start(self._logs / "wait.log", *self._measure(path, "wait"))
        try:
            began = time.monotonic()
            with running(self._box, path, self._rivals, self._logs) as programs:
                _first_answer(sample, path, waiting, programs, began)
                self._measure_all(sample, path, programs)
        except BenchError as error:
            sample.errors["end" if "first_answer_ms" in sample.values else "start"] = str(error)
        finally:
            waiting.stop()
        sample.left = wait_until_gone(self._box, self._pods, self._processes.left_on_laptop)
        return sample

    def _measure_all(self, sample: Sample, path: Way, programs: list[Process]) -> None:
        busy, whole = machine_seconds()
        box = self._processes.box_seconds()
        for name in MEASUREMENTS:
            self._measure_one(sample, path, name)
        if programs:
            sample.values["client_mb"] = self._processes.client_peak_megabytes()
        busy_now, whole_now = machine_seconds()
        used = self._processes.box_seconds() - box
        sample.others = max(0.0, (busy_now - busy - used) / (whole_now - whole))
        for program in programs:
            program.check()

    def _measure_one(self, sample: Sample, path: Way, name: str) -> None:
        before = self._processes.used()
        limit = MARGIN + max(BULK_LIMIT, self._sizes.seconds)
        try:
            said = self._box.ask(path.place, *self._measure(path, name), limit=limit, may_fail=True)
            result: dict[str, Any] = json.loads(said)
        except (BenchError, json.JSONDecodeError) as error:
            sample.errors[name] = str(error)
            return
        after = self._processes.used()
        problems: dict[str, str] = result.pop("errors", {})
        failed: dict[str, int] = result.pop("failed", {})
        sample.failed |= failed
        if name in problems:
            sample.errors[name] = problems[name]
            if not result.get(COUNTED.get(name, "")):
                return
        sample.values |= result
        if f"{name}_bytes" in result and path.place == "laptop":
            _note_processors(sample, name, seconds_between(before, after), result[f"{name}_bytes"])

    def _measure(self, path: Way, name: str) -> list[str]:
        sizes = self._sizes
        mebibytes = sizes.mebibytes_slow if path.slow else sizes.mebibytes
        words = [self._program, "measure", "-only", name, "-host", path.host, "-mib", str(mebibytes)]
        words += ["-time", f"{sizes.seconds}s", "-bulk-limit", f"{BULK_LIMIT}s", "-wait", f"{READY_LIMIT:g}s"]
        return [*words, "-socks", path.socks] if path.socks else words


def _first_answer(sample: Sample, path: Way, waiting: Process, programs: list[Process], began: float) -> None:
    end = time.monotonic() + READY_LIMIT
    while not waiting.said().endswith("}\n"):
        for program in programs:
            program.check()
        if time.monotonic() > end:
            raise BenchError(f"{path.name}: no answer; {programs[-1].last_words()}")
        time.sleep(LOOK_AGAIN / 4)
    if "first_answer_ms" not in json.loads(waiting.said()):
        raise BenchError(f"{path.name}: no answer; {waiting.last_words()}; {programs[-1].last_words()}")
    sample.values["first_answer_ms"] = (time.monotonic() - began) * 1000


def _note_processors(sample: Sample, name: str, used: dict[str, float], amount: float) -> None:
    """Processor seconds per GiB. The programs of a path all live as long as it does, so none is missed."""
    each = {group: seconds * GIBIBYTE / amount for group, seconds in used.items()}
    sample.values |= {f"{name}_cpu_{group}": seconds for group, seconds in each.items()}
    sample.values[f"{name}_cpu"] = sum(each.values())
