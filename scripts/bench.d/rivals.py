"""Makes the rivals available, and says what is measured in which version."""
from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from box import REPOSITORY, BenchError, Box

MAKE_LIMIT = 900  # seconds for downloads
BUILD = REPOSITORY / "build"


@dataclass(frozen=True)
class Rivals:
    """Where things are, as seen from inside the laptop too."""

    key: Path  # opens the sshd pod
    sshuttle: Path
    kshuttle: Path
    port_forward_command: bool  # does this kshuttle have `port-forward`?


def prepare(box: Box) -> Rivals:
    """Downloads what is missing, and starts the sshd pod."""
    kshuttle = BUILD / "kshuttle"
    for program in (kshuttle, BUILD / "kshuttle-helper"):
        if not program.exists():
            raise BenchError(f"{program} is not there: run scripts/build first")
    said = box.outside([str(REPOSITORY / "scripts/bench.d/rivals.sh"), box.name], MAKE_LIMIT)
    server, sshuttle = (Path(line) for line in said.split("\n")[:2])
    box.import_image(server / "image.tar")
    box.ask("laptop", "kubectl", "apply", "-f", str(REPOSITORY / "fixtures/cluster/sshd/pod.yaml"))
    box.ask("laptop", "kubectl", "wait", "--for=condition=Ready", "--timeout=50s", "pod/sshd")
    return Rivals(server / "id", sshuttle, kshuttle, _has_port_forward(box, kshuttle))


def sshuttle() -> str:
    """The folder of its package."""
    command = [str(REPOSITORY / "scripts/bench.d/rivals.sh"), "none", "sshuttle"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _has_port_forward(box: Box, kshuttle: Path) -> bool:
    """An unknown word would be taken for a range and refused."""
    said = box.ask("laptop", str(kshuttle), "port-forward", "--help", may_fail=True)
    return re.search(r"Usage: kshuttle port-forward", said) is not None


def versions(box: Box, rivals: Rivals) -> str:
    """One line for below the table."""
    kubernetes = re.search(r"Server Version: v?(\S+)", box.ask("laptop", "kubectl", "version"))
    ssh = box.ask("laptop", "sh", "-c", "ssh -V 2>&1").split(",")[0].strip()
    kshuttle = box.ask("laptop", str(rivals.kshuttle), "--version").strip()
    sshuttle = rivals.sshuttle.name.replace("-", " ")
    return f"Kubernetes and kubectl {kubernetes[1] if kubernetes else '?'}, {ssh}, {sshuttle}, {kshuttle}"
