"""This project's explorer beside its peers on four small programs: makes an environment for each
tool, runs them several times in turns, and prints the medians as a Markdown table and, with --json
FILE, everything as JSON.

    python bench/peers/run.py --python python3.13 --rounds 5

(a) a lost update; (b) two locks taken in both orders; (c) publish and free without waiting; (d) a
correct protocol: two readers that each announce themselves, look and leave (6 accesses each), and a
writer that publishes, looks who is there, and frees or defers (8 accesses). These 20 accesses have
116,396,280 interleavings in 25 classes: the writer looks at each reader's flag before it is set,
while it is set or after it is cleared, and in the latter two cases the reader has come to the
pointer before or after it was published; that makes 5 for each of two readers.

Every tool runs in one process at a time and on plain Python objects, ours on its own shared words
and, where `greenlet` can be installed, on greenlets (STRESS_CARRIER=threads: on threads, as the
others). CPU time is what a shared machine disturbs least: all three keep one CPU busy.

At the end, for ours alone: the scheduling steps a second in small scenarios of the MMU, which no
peer can run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

OURS, FRONTRUN, INTERLEAVE = "tdp-stress", "frontrun", "interleave-test"
REQUIREMENTS = {OURS: [], FRONTRUN: ["frontrun==0.7.0"], INTERLEAVE: ["interleave-test==0.1.0"]}
SCRIPTS = {
    OURS: "programs.py",
    FRONTRUN: "frontrun_programs.py",
    INTERLEAVE: "interleave_programs.py",
}
SCENARIOS = "scenarios.py"
BUGS = {"a": "lost update", "b": "deadlock", "c": "use after free"}

Samples = dict[str, dict[str, list[dict[str, Any]]]]
"""By tool and measurement: one dict of seconds, cpu and schedules for each round."""


def environments(python: str, folder: Path) -> dict[str, Path]:
    """The interpreter of a fresh virtual environment for each tool, ours with the extra `fast`;
    those that are there already are used again."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = [*project["dependencies"], *project["optional-dependencies"]["fast"]]
    found = {}
    for tool, requirements in REQUIREMENTS.items():
        home = folder / tool
        found[tool] = home / "bin" / "python"
        if not found[tool].exists():
            subprocess.run([python, "-m", "venv", home], check=True)  # noqa: S603 - what the caller named
            wanted = requirements or ours
            subprocess.run([found[tool], "-m", "pip", "install", "--quiet", *wanted], check=True)  # noqa: S603 - what the caller named
    return found


def answer(python: Path, expression: str) -> str:
    """What our tool says of itself."""
    command = [
        python,
        "-c",
        "import platform; from stress.engines.carrier_choice import AUTO, carrier_for; "
        f"print({expression})",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(  # noqa: S603 - just made
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def once(tool: str, python: Path, script: str, seed: int) -> dict[str, Any]:
    """One process of one tool: the figures of all measurements of a script."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if tool == OURS else ""}
    done = subprocess.run(  # noqa: S603 - our own scripts
        [python, HERE / script, str(seed)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode:
        raise SystemExit(f"{tool} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(pythons: dict[str, Path], rounds: int) -> Samples:
    """Every tool once a round, in turns."""
    samples: Samples = {tool: {} for tool in pythons}
    for seed in range(1, rounds + 1):
        for tool, python in pythons.items():
            for script in (SCRIPTS[tool], SCENARIOS) if tool == OURS else (SCRIPTS[tool],):
                for name, figures in once(tool, python, script, seed).items():
                    samples[tool].setdefault(name, []).append(figures)
            print((f"round {seed} of {rounds}: {tool}"), file=sys.stderr, flush=True)  # noqa: T201 - a command
    return samples


class Figures:
    """Medians over the rounds."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def median(self, tool: str, name: str, what: str) -> float:
        """Of `seconds`, `cpu` or `schedules`."""
        return statistics.median(sample[what] for sample in self._samples[tool][name])

    def steps(self) -> Iterator[tuple[str, float, float]]:
        """Of each small scenario: steps a second of CPU time, the median and the best round."""
        for name, samples in self._samples[OURS].items():
            if "steps" in samples[0]:
                rates = [sample["steps"] / sample["cpu"] for sample in samples]
                yield name, statistics.median(rates), max(rates)

    def rate(self, tool: str, name: str, what: str = "seconds") -> float:
        """Schedules a second; of CPU time when `what` is `cpu`."""
        return statistics.median(
            sample["schedules"] / sample[what] for sample in self._samples[tool][name]
        )

    def proof(self, tool: str, name: str, what: str, proofs: int) -> tuple[int, float]:
        """Executions and seconds of one proof out of `proofs`."""
        return round(self.median(tool, name, "schedules") / proofs), self.median(
            tool, name, what
        ) / proofs

    def has(self, tool: str, name: str) -> bool:
        """Whether a tool has this measurement."""
        return name in self._samples[tool]


def rows(figures: Figures, proofs: int) -> Iterator[tuple[str, ...]]:
    """The table, without its head."""
    for letter, bug in BUGS.items():
        for mode in ("random", "exhaustive"):
            name = f"{letter} {mode}"
            cells = [
                f"{figures.median(tool, name, 'schedules'):g} / "
                f"{figures.median(tool, name, 'seconds') * 1e3:,.2f} ms"
                for tool in SCRIPTS
            ]
            yield (f"({letter}) {bug}, {mode}: schedules / time to find", *cells)
    for what, label in (("seconds", ""), ("cpu", " of CPU time")):
        yield (
            f"(d) random: schedules a second{label}",
            *(f"{figures.rate(tool, 'd random', what):,.0f}" for tool in SCRIPTS),
        )
    yield (
        "(d) random, classes counted, races predicted",
        f"{figures.rate(OURS, 'd exploration'):,.0f}",
        "none",
        "none",
    )
    for what, label in (("seconds", "time"), ("cpu", "CPU time")):
        ours, theirs = (
            figures.proof(OURS, "d proof", what, proofs),
            figures.proof(FRONTRUN, "d proof", what, 1),
        )
        yield (
            f"(d) proof: executions / {label}",
            f"{ours[0]:,} / {ours[1] * 1e3:,.1f} ms",
            f"{theirs[0]:,} / {theirs[1]:,.1f} s",
            "none",
        )
    prepared = figures.proof(FRONTRUN, "d proof, prepared", "seconds", 1)
    yield (
        "(d) proof, the new thing made beforehand",
        "the same",
        f"{prepared[0]:,} / {prepared[1]:,.1f} s",
        "none",
    )


def ratios(figures: Figures, proofs: int) -> dict[str, float]:
    """What the targets are about: how many times frontrun's figure ours is, or is faster."""
    ours, theirs = (
        figures.proof(OURS, "d proof", "seconds", proofs),
        figures.proof(FRONTRUN, "d proof", "seconds", 1),
    )
    prepared = figures.proof(FRONTRUN, "d proof, prepared", "seconds", 1)
    cpu = figures.median(FRONTRUN, "d proof", "cpu") / (
        figures.median(OURS, "d proof", "cpu") / proofs
    )
    return {
        "random schedules a second": figures.rate(OURS, "d random")
        / figures.rate(FRONTRUN, "d random"),
        "random schedules a second of CPU time": figures.rate(OURS, "d random", "cpu")
        / figures.rate(FRONTRUN, "d random", "cpu"),
        "proof, time": theirs[1] / ours[1],
        "proof, CPU time": cpu,
        "proof, executions": theirs[0] / ours[0],
        "proof, thing made beforehand, time": prepared[1] / ours[1],
        "random schedules a second, interleave-test": figures.rate(OURS, "d random")
        / figures.rate(INTERLEAVE, "d random"),
    }


def markdown(figures: Figures, proofs: int, rounds: int, python: str, carrier: str) -> str:
    """The tables."""
    head = ("", *SCRIPTS)
    where = f"Python {python}, {platform.machine()}, {os.cpu_count()} CPUs"
    lines = [
        f"Medians of {rounds} rounds, {where}; {OURS} on {carrier}, the others on threads.",
        "",
    ]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows(figures, proofs)]
    lines += ["", "| frontrun's figure against ours | times |", "|---|---|"]
    lines += [f"| {name} | {ratio:,.1f} |" for name, ratio in ratios(figures, proofs).items()]
    lines += ["", f"| {OURS}, steps a second of CPU time | median | best round |", "|---|---|---|"]
    lines += [
        f"| `configs/explore/{name}.toml`, random | {median:,.0f} | {best:,.0f} |"
        for name, median, best in figures.steps()
    ]
    return "\n".join(lines)


def proofs_in_one() -> int:
    """How many proofs our program times together."""
    text = (HERE / SCRIPTS[OURS]).read_text()
    return int(next(line for line in text.splitlines() if line.startswith("PROOFS = ")).split()[-1])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the interpreter for all tools; frontrun needs 3.13 (default: this one)",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every sample and the ratios to this file")
    parser.add_argument(
        "--environments", type=Path, help="make the environments in this folder, and keep them"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pythons = environments(options.python, options.environments or Path(scratch))
        version = answer(pythons[OURS], "platform.python_version()")
        carrier = answer(pythons[OURS], "carrier_for(AUTO, 'atomic')")
        samples = measure(pythons, options.rounds)
    figures = Figures(samples)
    print(markdown(figures, proofs_in_one(), options.rounds, version, carrier))  # noqa: T201 - a command
    if options.json:
        document = {
            "python": version,
            "carrier": carrier,
            "rounds": options.rounds,
            "ratios": ratios(figures, proofs_in_one()),
            "samples": samples,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
