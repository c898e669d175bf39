"""What a comparison says, in plain sentences."""

from collections.abc import Sequence

from pclseg.reports.comparison import Numbers
from pclseg.reports.runs import shown

SIGNIFICANT = 0.05
BEYOND_CHANCE = "That is more than chance among patients explains."


def comparisons(numbers: Numbers) -> list[str]:
    """One sentence on the Dice of every arm against the baseline, by label count."""
    return [_comparison(found, numbers) for found in _differences(numbers)]


def summaries(numbers: Numbers) -> list[str]:
    """For every label count the highest difference, and which arms differ at all.

    Not the best arm: differences of arms that lack folds are over other patients.
    """
    by_count: dict[int, list[Numbers]] = {}
    for difference in _differences(numbers):
        by_count.setdefault(difference["labelled"], []).append(difference)
    return [_summary(found, numbers) for found in by_count.values()]


def _differences(numbers: Numbers) -> list[Numbers]:
    return numbers["metrics"]["dice"]["differences"]


def _summary(differences: Sequence[Numbers], numbers: Numbers) -> str:
    known = [d for d in differences if d["overall"]["mean"] is not None]
    if len(known) < 2:
        return _comparison([*known, *differences][0], numbers)
    best = max(known, key=lambda difference: difference["overall"]["mean"])
    sure = [d for d in known if _verdict(d["overall"]) == BEYOND_CHANCE]
    higher = [d["arm"] for d in sure if d["overall"]["mean"] > 0]
    lower = [d["arm"] for d in sure if d["overall"]["mean"] < 0]
    return (
        f"{_comparison(best, numbers)} Of the differences of"
        f" {len(known)} arms to {numbers['baseline']} it is the highest. Beyond"
        f" chance among patients, {_those(higher, 'better')} and"
        f" {_those(lower, 'worse')}."
    )


def _those(arms: Sequence[str], than_baseline: str) -> str:
    if not arms:
        return f"none is {than_baseline}"
    verb = "is" if len(arms) == 1 else "are"
    return f"{len(arms)} {verb} {than_baseline} ({', '.join(arms)})"


def _comparison(difference: Numbers, numbers: Numbers) -> str:
    labelled, found = difference["labelled"], difference["overall"]
    arm, baseline = difference["arm"], numbers["baseline"]
    start = f"With {labels(labelled)}, {arm} "
    if found["mean"] is None:
        return f"{start}has no case in common with {baseline}."
    groups = numbers["metrics"]["dice"]["groups"]
    means = {(g["arm"], g["labelled"]): g["overall"]["mean"] for g in groups}
    interval = _interval(found["interval"], numbers["bootstrap"]["level"])
    return (
        f"{start}reaches a Dice of {_dice(means[arm, labelled])} and {baseline}"
        f" {_dice(means[baseline, labelled])}; over the same cases the difference"
        f" is {found['mean']:+.3f} ({interval},"
        f" {count(found['n'], 'case')} of {count(found['patients'], 'patient')}:"
        f" {found['better']} better, {found['worse']} worse;"
        f" {_p(found)}). {_verdict(found)}"
    )


def labels(labelled: int) -> str:
    """A label count in a sentence."""
    if not labelled:
        return "all labels"
    return f"{shown(labelled)} labelled patient{'s' * (labelled != 1)}"


def count(number: int, thing: str) -> str:
    """A number of things in a sentence."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _dice(mean: float | None) -> str:
    return "none" if mean is None else f"{mean:.3f}"


def _interval(interval: list[float] | None, level: float) -> str:
    if interval is None:
        return "no interval"
    low, high = interval
    return f"{level:.0%} interval {low:+.3f} to {high:+.3f}"


def _p(found: Numbers) -> str:
    if found["p_holm"] is None:
        return "no test"
    p = found["p_holm"]
    return "Holm p < 0.0001" if p < 0.0001 else f"Holm p {p:.4f}"


def _verdict(found: Numbers) -> str:
    """Interval and test both have to speak against a difference of 0."""
    interval, p = found["interval"], found["p_holm"]
    if interval is None or p is None:
        return "Nothing can be said about other patients."
    if interval[0] <= 0 <= interval[1]:
        return "Chance among patients may explain that."
    if p > SIGNIFICANT:
        return (
            f"The interval does not contain 0, but the test gives p > {SIGNIFICANT}:"
            " not settled."
        )
    return BEYOND_CHANCE
