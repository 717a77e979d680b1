"""Who of the box uses how much processor and memory. Read from outside, where every process of the box is in its cgroups."""
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from box import Box

TICKS = os.sysconf("SC_CLK_TCK")  # proc(5): the unit of processor times
GROUPS = ("client", "apiserver", "kubelet", "containerd", "pod")

# Programs of pods that are there in any case, and the server that is measured against.
BYSTANDERS = ("pause", "coredns", "httpd", "busybox", "sh")
LOAD = "bench"


# (process id, its start in ticks) -> (group, processor seconds)
Usage = dict[tuple[int, int], tuple[str, float]]


@dataclass(frozen=True)
class Process:
    pid: int
    group: str  # of GROUPS, or "load", or "other"
    command: str


class Processes:
    """The processes of a box by group."""

    def __init__(self, box: Box) -> None:
        self._node = _pid_namespace(int((box.folder / "node.pid").read_text().split()[0]))
        self._laptop = _pid_namespace(int((box.folder / "laptop.pid").read_text().split()[0]))
        self._own = _pid_namespace(os.getpid())
        folders = [Path(line) for line in (box.folder / "cgroups-made").read_text().split()]
        self._cgroup = next(folder for folder in folders if _usage_file(folder))

    def used(self) -> Usage:
        """What each living process has used so far."""
        usage: Usage = {}
        for process in self._all():
            fields = _stat(process.pid)
            if fields:
                began = int(fields[19])  # a number alone may be given to another process
                usage[process.pid, began] = process.group, (int(fields[11]) + int(fields[12])) / TICKS
        return usage

    def client_peak_megabytes(self) -> float:
        """The largest resident memory so far of each of the client's processes, summed; 10^6 bytes."""
        return sum(_peak(process.pid) for process in self._all() if process.group == "client") / 1e6

    def left_on_laptop(self) -> list[str]:
        return [process.command for process in self._all() if process.group == "client"]

    def box_seconds(self) -> float:
        """Processor time of everything that ever ran in the box."""
        file = _usage_file(self._cgroup)
        if file and file.name == "cpuacct.usage":
            return int(file.read_text()) / 1e9
        usage = (self._cgroup / "cpu.stat").read_text().split()
        return int(usage[usage.index("usage_usec") + 1]) / 1e6

    def _all(self) -> Iterator[Process]:
        for listing in self._cgroup.rglob("cgroup.procs"):
            for pid in _lines(listing):
                found = self._look_at(int(pid))
                if found:
                    yield found

    def _look_at(self, pid: int) -> Process | None:
        try:
            namespace = _pid_namespace(pid)
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return None  # it ended between the listing and now
        return Process(pid, self._group(namespace, words), " ".join(words).strip())

    def _group(self, namespace: str, words: list[str]) -> str:
        program = os.path.basename(words[0])
        if program == LOAD:
            return "load"
        if namespace == self._laptop:
            return "other" if program == "pause" else "client"
        if namespace == self._node:
            return _node_group(program, words[1] if len(words) > 1 else "")
        if namespace == self._own or program in BYSTANDERS:
            return "other"
        return "pod"


def seconds_between(before: Usage, after: Usage) -> dict[str, float]:
    """Processor seconds of each group. Process by process: what ended in between, of a path before, must not be subtracted."""
    seconds = dict.fromkeys(GROUPS, 0.0)
    for process, (group, now) in after.items():
        if group in seconds:
            seconds[group] += now - before.get(process, (group, 0.0))[1]
    return seconds


def machine_seconds() -> tuple[float, float]:
    """Of all processors since boot: busy, and in all."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS, sum(fields) / TICKS


def _node_group(program: str, word: str) -> str:
    if program == "kube" and word in ("kube-apiserver", "kubelet"):
        return word.removeprefix("kube-")
    return "containerd" if program.startswith("containerd") else "other"


def _usage_file(folder: Path) -> Path | None:
    if (folder / "cpuacct.usage").exists():
        return folder / "cpuacct.usage"
    stat = folder / "cpu.stat"
    return stat if stat.exists() and "usage_usec" in stat.read_text() else None


def _pid_namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def _stat(pid: int) -> list[str]:
    """proc(5), `stat`, from its third field on: the name before may contain anything."""
    text = "".join(_lines(Path(f"/proc/{pid}/stat")))
    return text.rpartition(")")[2].split()


def _peak(pid: int) -> int:
    for line in _lines(Path(f"/proc/{pid}/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
