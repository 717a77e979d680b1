"""The box that is measured in: a Kubernetes and a laptop beside it, by scripts/cluster; and processes inside that always end."""
from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kshuttle"

UP_LIMIT = 3600  # seconds; the first one on a machine builds Kubernetes
COMMAND_LIMIT = 60  # seconds for anything that only asks or tells the cluster something
STOP_LIMIT = 10  # seconds for an orderly stop, which includes deleting a pod
LOOK_AGAIN = 0.02  # seconds between two looks at something that does not tell
LOG_TAIL = 600  # characters of a program's last words in an error


class BenchError(Exception):
    """Something without which the measuring cannot go on, or a path that did not come up."""


class Process:
    """A program inside the box that runs until stopped, its output in a log file."""

    def __init__(self, argv: list[str], log: Path) -> None:
        self.name = argv[argv.index("--") + 1 :][0]
        self.log = log
        self._out: IO[bytes] = log.open("wb")
        # A session of its own: Ctrl-C in the terminal is for us, who then stop it in order.
        self._child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._out, stderr=subprocess.STDOUT, start_new_session=True
        )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, limit: float) -> None:
        """Waits until its output contains the regular expression."""
        end = time.monotonic() + limit
        while not re.search(pattern, self.said()):
            if time.monotonic() > end:
                raise BenchError(f"{self.name} did not say {pattern!r} within {limit:g} s: {self.last_words()}")
            self.check()
            time.sleep(LOOK_AGAIN)

    def check(self) -> None:
        """Raises if it ended by itself."""
        code = self._child.poll()
        if code is not None:
            raise BenchError(f"{self.name} ended with {code}: {self.last_words()}")

    def last_words(self) -> str:
        return " / ".join(self.said()[-LOG_TAIL:].split("\n")).strip(" /") or "(it said nothing)"

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough. `scripts/cluster exec` passes the first on; the second ends both."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._out.close()


class Box:
    """Brings a box up on entry and takes it down on exit, however that comes about."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = CACHE / "box" / name
        self._cluster = [str(REPOSITORY / "scripts/cluster"), "--name", name]

    def __enter__(self) -> Box:
        try:
            self.outside([*self._cluster, "up"], UP_LIMIT)
            self.programs = self._read_programs()
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._down()

    def _down(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave half of it
        self.outside([*self._cluster, "down"], COMMAND_LIMIT)
        # Nobody else has a box of this name. What a failed `up` kept of its logs it has shown.
        self.folder.with_name(f"{self.name}.lock").unlink(missing_ok=True)
        shutil.rmtree(self.folder.with_name(f"{self.name}.failed"), ignore_errors=True)

    def _read_programs(self) -> dict[str, str]:
        words = shlex.split((self.folder / "programs").read_text())
        return dict(word.split("=", 1) for word in words)

    def command(self, place: str, *argv: str) -> list[str]:
        """The command line that runs `argv` inside, on the `laptop` or the `node`."""
        return [*self._cluster, "exec", place, "--", *argv]

    def start(self, log: Path, *argv: str) -> Process:
        return Process(self.command("laptop", *argv), log)

    def ask(self, place: str, *argv: str, limit: float = COMMAND_LIMIT, may_fail: bool = False) -> str:
        """What the command printed."""
        return self.outside(self.command(place, *argv), limit, may_fail)

    def order(self, verb: str, component: str) -> None:
        """`kill` or `start` a component of the cluster."""
        self.outside([*self._cluster, verb, component], COMMAND_LIMIT)

    def import_image(self, archive: Path) -> None:
        self.outside([*self._cluster, "import", str(archive)], COMMAND_LIMIT)

    @staticmethod
    def outside(argv: list[str], limit: float, may_fail: bool = False) -> str:
        """Runs a command to its end and gives its output. Interrupted, it ends the command and waits for that."""
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = child.communicate(timeout=limit)
        except BaseException as error:
            child.terminate()
            try:
                child.communicate(timeout=STOP_LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise BenchError(f"{shlex.join(argv)}: not done in {limit:g} s") from error
            raise
        if child.returncode and not may_fail:
            raise BenchError(f"{shlex.join(argv)} ended with {child.returncode}: {(err or out).strip()[-LOG_TAIL:]}")
        return out
