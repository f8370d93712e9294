"""A study's answer as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmu.export.policies import POLICIES
from stress.runs.compare.statistics import Interval
from stress.runs.study.answer import SAME, SEED_POLICY, TIMES, Answer, StudyCell, ratio_to
from stress.runs.study.costs import PRICES
from stress.runs.study.plan import along


def markdown(answer: Answer) -> str:
    """The report, for a maintainer who has to decide."""
    study = answer.study
    lines = [f"# {study.title or study.name}", ""]
    if answer.made < answer.planned:
        lines += [
            f"**Unfinished**: {answer.made} of {answer.planned} runs. What follows rests on these.",
            "",
        ]
    if answer.idle():
        lines += [f"**Too short**: {_idle(answer)}", ""]
    lines += [
        "## The patch's two claims",
        "",
        "**Safe.** " + " ".join(safe(answer)),
        "",
        "**Efficient.** " + " ".join(efficient(answer)),
        "",
    ]
    lines += ["## What one delete costs", "", *_point(answer), ""]
    for axis in study.axes:
        lines += [f"### Along `{axis}`", "", *_axis(answer, axis), ""]
    lines += [
        "## Where one overtakes the other",
        "",
        *(f"* {line}" for line in crossovers(answer)),
        "",
    ]
    lines += ["## How far this rests on prices", "", *_prices(answer), ""]
    lines += ["## Times in the model", "", *_times(answer), ""]
    lines += ["## How it was measured", "", *method(answer), ""]
    return "\n".join(lines)


def _idle(answer: Answer) -> str:
    idle = answer.idle()
    where = "; ".join(
        f"{policy} at {_where(answer.cells[policy, place].place.values)}: {count}"
        for (policy, place), count in idle.items()
    )
    return (
        f"{sum(idle.values())} runs came to no delete and cost nothing that could be counted "
        f"({where}). Make runs longer (--duration)."
    )


def safe(answer: Answer) -> Iterator[str]:
    """The first claim: evidence and limits."""
    cells = list(answer.cells.values())
    mine = [cell for cell in cells if cell.policy == SEED_POLICY]
    deletes, accesses = (
        sum(cell.deletes for cell in mine),
        sum(cell.device_accesses for cell in mine),
    )
    findings, bad = sum(cell.findings for cell in mine), sum(cell.bad_accesses for cell in mine)
    if not deletes and not findings:
        yield "There is no run of the seed's policy yet in which anything was deleted."
        return
    if findings or bad:
        yield (
            f"NOT shown: {findings} findings and {bad} accesses to memory that was gone, over "
            f"{deletes:,} deletes."
        )
    else:
        guests = sum(cell.guest_accesses for cell in mine)
        yield (
            f"Over {deletes:,} deletes with {accesses:,} device and {guests:,} guest accesses "
            "beside them,"
            f" no access reached memory that was gone and no rule was broken with {SEED_POLICY}."
        )
        yield f"If deletes are alike, fewer than one in {deletes / 3:,.0f} goes wrong (95 %)."
    others = {cell.policy for cell in cells if cell.findings and cell.policy != SEED_POLICY}
    if others:
        yield f"With {', '.join(sorted(others))} rules were broken."
    yield (
        "This is the mended design: the series as posted has defects of its own (configs/rfc-v1). "
        "The runs here are for cost; what the"
        " harness would have caught is for `stress selftest`, and small scenarios are proved with "
        "`stress explore --exhaustive`."
    )


def efficient(answer: Answer) -> Iterator[str]:
    """The second claim."""
    point = answer.point()
    ours = answer.cell(SEED_POLICY, point)
    if ours is None:
        yield "There is no run of the seed's policy at the point where the axes cross."
        return
    costs = answer.study.costs
    mine = ours.cost(costs)
    yield (
        f"At the default prices a delete costs {_us(mine.value)} with {SEED_POLICY} where the axes "
        f"cross ({_where(point.values)})."
    )
    for policy in answer.policies():
        other = answer.cell(policy, point)
        if policy == SEED_POLICY or other is None:
            continue
        yield _against(policy, ratio_to(other, ours, costs))
    flips = sorted({each.price for each in answer.sensitivities if each.flips})
    if flips:
        yield (
            "Who is cheaper at this point depends on the price of: "
            f"{', '.join(PRICES[name]['what'] for name in flips)}."
        )
    else:
        yield "No single price, within its range, changes who is cheaper at this point."


def _against(policy: str, ratio: Interval) -> str:
    if ratio.contains(1.0):
        return (
            f"{policy} costs about the same ({ratio.value:.2f} times, "
            f"{ratio.low:.2f}-{ratio.high:.2f})."
        )
    if ratio.value >= 1:
        return f"{policy} costs {ratio.value:.2f} times that ({ratio.low:.2f}-{ratio.high:.2f})."
    return (
        f"{policy} costs {1 / ratio.value:.2f} times less "
        f"({1 / ratio.high:.2f}-{1 / ratio.low:.2f})."
    )


def crossovers(answer: Answer) -> Iterator[str]:
    """A sentence for each axis and policy."""
    for each in answer.crossovers:
        pair = f"{SEED_POLICY} against {each.policy}"
        sure = [who for who in each.cheaper if who != SAME]
        values = answer.study.axes[each.axis]
        if not sure:
            yield (
                f"`{each.axis}`, {pair}: no difference that chance does not explain, from "
                f"{values[0]} to {values[-1]}"
            )
        elif len(set(sure)) == 1:
            where = [
                str(value) for value, who in zip(values, each.cheaper, strict=False) if who != SAME
            ]
            extent = (
                "all along"
                if len(where) == len(values)
                else f"at {', '.join(where)}, no difference elsewhere"
            )
            yield f"`{each.axis}`, {pair}: {sure[0]} is cheaper {extent}"
        elif each.at is not None:
            yield (
                f"`{each.axis}`, {pair}: {sure[0]} is cheaper below about {each.at:.3g}, "
                f"{sure[-1]} above it"
            )
        else:
            cheaper = (f"{value}: {who}" for value, who in zip(values, each.cheaper, strict=False))
            yield f"`{each.axis}`, {pair}: {', '.join(cheaper)}"


def _point(answer: Answer) -> Iterator[str]:
    costs = answer.study.costs
    yield (
        f"Where the axes cross ({_where(answer.point().values)}), a delete, by what is paid for; "
        "amounts are medians over the runs."
    )
    yield ""
    policies = answer.policies()
    rows = [
        (PRICES[name]["what"], f"{getattr(costs, name):g}", *_amounts(answer, policies, name))
        for name in PRICES
    ]
    cells = [
        cell for policy in policies if (cell := answer.cell(policy, answer.point())) is not None
    ]
    rows.append(
        ("**the memslot call, us**", "", *(_interval(cell, answer, call=True) for cell in cells))
    )
    rows.append(("**in all, us**", "", *(_interval(cell, answer) for cell in cells)))
    yield from _table(("a delete takes", "us each", *policies), rows)


def _amounts(answer: Answer, policies: Sequence[str], name: str) -> Iterator[str]:
    for policy in policies:
        cell = answer.cell(policy, answer.point())
        yield f"{cell.median_amounts()[name]:,.1f}" if cell is not None else ""


def _interval(cell: StudyCell, answer: Answer, *, call: bool = False) -> str:
    found = cell.call(answer.study.costs) if call else cell.cost(answer.study.costs)
    return f"{found.value:,.0f} ({found.low:,.0f}-{found.high:,.0f})"


def _axis(answer: Answer, axis: str) -> Iterator[str]:
    """Costs along one axis, us a delete."""
    policies = answer.policies()
    rows = []
    for value, place in along(answer.study, axis):
        cells = [answer.cell(policy, place) for policy in policies]
        rows.append(
            (f"{value}", *(_interval(cell, answer) if cell is not None else "" for cell in cells))
        )
    yield from _table((f"{axis}; us a delete", *policies), rows)


def _prices(answer: Answer) -> Iterator[str]:
    """The ratios at both ends of every price, at the point."""
    policies = [policy for policy in answer.policies() if policy != SEED_POLICY]
    yield (
        f"Cost over that of {SEED_POLICY} where the axes cross, with one price at the low end of "
        "its range, as given, at the high end."
    )
    yield "Bold: the price decides who is cheaper."
    yield ""
    rows = []
    for name, facts in PRICES.items():
        found = {each.policy: each for each in answer.sensitivities if each.price == name}
        marks = [
            _ends(found[policy].ratios, found[policy].flips) if policy in found else ""
            for policy in policies
        ]
        price = (
            f"{facts['what']}: {facts['low']:g}, {getattr(answer.study.costs, name):g}, "
            f"{facts['high']:g} us"
        )
        rows.append((price, facts["source"], *marks))
    yield from _table(("price", "source", *policies), rows)


def _ends(ratios: Sequence[float], flips: bool) -> str:
    text = " / ".join(f"{ratio:.2g}" for ratio in ratios)
    return f"**{text}**" if flips else text


def _times(answer: Answer) -> Iterator[str]:
    """What the model itself took: shapes, not hardware."""
    yield (
        "Python takes longer than a kernel, so only the proportions mean anything. Median over the "
        "runs of the 99th percentile, us."
    )
    yield ""
    policies = answer.policies()
    cells = [
        cell for policy in policies if (cell := answer.cell(policy, answer.point())) is not None
    ]
    rows = [
        (
            f"{number} {operation}",
            *(
                f"{cell.times_us[operation]:,.0f}" if operation in cell.times_us else ""
                for cell in cells
            ),
        )
        for operation, number in TIMES.items()
    ]
    yield from _table(("", *policies), rows)


def method(answer: Answer) -> Iterator[str]:
    """How the figures came about."""
    study = answer.study
    yield (
        f"{answer.made} runs of {study.duration_s:g} s on real threads, each in a process of its "
        f"own, {study.seeds} seeds at every place;"
        " policies next to each other and seeds outermost, so that a drift of the machine hits all "
        "alike. What a delete takes is"
        " counted in the runs; prices are given in the study's file (`[costs]`) or are the "
        "defaults above. Intervals are 95 % bootstrap"
        " intervals over the runs."
    )
    yield ""
    yield "Policies:"
    yield ""
    yield from (f"* {name}: {POLICIES[name].title}" for name in study.policies)


def _where(values: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in values)


def _us(value: float) -> str:
    return f"{value / 1000:,.2f} ms" if value >= 1000 else f"{value:,.0f} us"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
