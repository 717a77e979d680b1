"""All samples as one Markdown table: medians over the rounds, their spread, and the ratio to the row it is compared with."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from measure import Sample
from paths import PORT_FORWARDED, TUNNELLED, Way
from processes import GROUPS

NOISY = 0.10  # part of the machine used by others from which on a lone figure means little


class Row(Protocol):
    """What is measured: its samples bear its name."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def baseline(self) -> str: ...


@dataclass(frozen=True)
class Column:
    """`key` is the value with spread and ratio; the others follow as bare medians, each behind its words."""

    title: str
    measurement: str  # whose error is this column's error
    key: str
    more: tuple[tuple[str, str], ...] = ()


COLUMNS = (
    Column("download MB/s", "down", "down_mb_s"),
    Column("upload MB/s", "up", "up_mb_s"),
    Column("new connections/s", "conns", "connections_s"),
    Column("keep-alive requests/s", "keepalive", "requests_s"),
    Column("ping p50, p99 ms", "ping", "ping_p50_ms", ((", ", "ping_p99_ms"),)),
    Column("ping under a download p50, p99 ms, at MB/s", "load", "load_ping_p50_ms",
           ((", ", "load_ping_p99_ms"), (", at ", "load_down_mb_s"))),
    Column("start to first answer ms", "first_answer", "first_answer_ms"),
    Column(f"download: CPU s/GiB ({' + '.join(GROUPS)})", "down", "down_cpu",
           tuple((" + " if number else " = ", f"down_cpu_{group}") for number, group in enumerate(GROUPS))),
    Column("upload: the same", "up", "up_cpu",
           tuple((" + " if number else " = ", f"up_cpu_{group}") for number, group in enumerate(GROUPS))),
    Column("client's peak memory MB", "memory", "client_mb"),
)


@dataclass
class Notes:
    """Remarks below the table, numbered; the same words once."""

    lines: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        line = " ".join(text.split())
        if line not in self.lines:
            self.lines.append(line)
        return f"[{self.lines.index(line) + 1}]"


def markdown(paths: list[Way], samples: list[Sample]) -> str:
    """The table, and below it what went wrong."""
    return "\n".join([*rows(paths, samples, COLUMNS), *(f"* {remark}" for remark in _remarks(paths, samples))])


def rows(paths: Sequence[Row], samples: list[Sample], columns: Sequence[Column]) -> list[str]:
    """The lines of the table, and below it why figures are missing."""
    notes = Notes()
    lines = ["| path | " + " | ".join(column.title for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for path in paths:
        own = [sample for sample in samples if sample.path == path.name]
        base = [sample for sample in samples if sample.path == path.baseline]
        cells = [_cell(column, own, base, notes) for column in columns]
        lines.append(f"| {path.title} | {' | '.join(cells)} |")
    explained = [f"* [{number}] {text}" for number, text in enumerate(notes.lines, 1)]
    return [*lines, "", *explained]


def noise(samples: list[Sample]) -> str:
    """How much to trust it."""
    others = [sample.others for sample in samples]
    noisy = "; **compare rows, do not quote figures**" if max(others) > NOISY else ""
    return f"Others used {median(others):.0%} of the machine meanwhile (up to {max(others):.0%}){noisy}."


def _cell(column: Column, own: list[Sample], base: list[Sample], notes: Notes) -> str:
    values = [sample.values[column.key] for sample in own if column.key in sample.values]
    errors = "".join(dict.fromkeys(notes.mark(text) for text in _errors(column, own)))
    if not values:
        return f"error {errors}" if errors else "–"
    text = _number(median(values))
    if len(values) > 1:
        text += f" ({_number(min(values))}–{_number(max(values))})"
    for words, key in column.more:
        more = [sample.values[key] for sample in own if key in sample.values]
        text += words + (_number(median(more)) if more else "–")
    ratio = _ratio(column.key, own, base)
    if ratio is not None:
        text += f" ×{ratio:.2f}"
    return f"{text} {errors}" if errors else text


def _errors(column: Column, own: list[Sample]) -> list[str]:
    """What concerns this column, with the number of rounds."""
    found: dict[str, list[int]] = {}
    for sample in own:
        for where, why in sample.errors.items():
            if where in (column.measurement, "start"):
                found.setdefault(why, []).append(sample.failed.get(where, 0))
    return [_error(why, single, len(own)) for why, single in found.items()]


def _error(why: str, single: list[int], rounds: int) -> str:
    counted = f", {sum(single)} of all tries" if any(single) else ""
    return f"in {len(single)} of {rounds} rounds{counted}: {why}"


def _ratio(key: str, own: list[Sample], base: list[Sample]) -> float | None:
    """The median over the rounds of the ratio within a round: what disturbs the machine for a while disturbs both."""
    before = {sample.round: sample.values[key] for sample in base if sample.values.get(key)}
    ratios = [s.values[key] / before[s.round] for s in own if key in s.values and s.round in before]
    return median(ratios) if ratios else None


def _number(value: float) -> str:
    """Three digits that count: more would be noise."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _remarks(paths: list[Way], samples: list[Sample]) -> list[str]:
    titles = {path.name: path.title for path in paths}
    compared = [titles[name] for name in (PORT_FORWARDED, TUNNELLED) if name in titles]
    remarks = [f"Median of the rounds ({max(sample.round for sample in samples)}, interleaved), smallest and largest in brackets."]
    if compared:
        remarks.append(f"× is the median of the ratios within a round, to {' or '.join(compared)}: whichever does the same job.")
    remarks.append("Less is better from ping on. Memory is the largest resident set of each of the client's programs, summed.")
    remarks.append(noise(samples))
    for sample in samples:
        if "end" in sample.errors:
            remarks.append(f"{sample.path}, round {sample.round}, ended while measured: {sample.errors['end']}")
        if sample.left:
            remarks.append(f"{sample.path}, round {sample.round}, left behind: {'; '.join(sample.left)}")
    return remarks
