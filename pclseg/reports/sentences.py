"""What a comparison says, in plain sentences."""

from collections.abc import Iterator

from pclseg.reports.comparison import Numbers
from pclseg.reports.runs import shown

SIGNIFICANT = 0.05


def comparisons(numbers: Numbers) -> Iterator[str]:
    """One sentence on the Dice of every arm against the baseline, by label count."""
    dice = numbers["metrics"]["dice"]
    level = numbers["bootstrap"]["level"]
    means = {(g["arm"], g["labelled"]): g["overall"]["mean"] for g in dice["groups"]}
    for difference in dice["differences"]:
        labelled, found = difference["labelled"], difference["overall"]
        arm, baseline = difference["arm"], numbers["baseline"]
        start = f"With {labels(labelled)}, {arm} "
        if found["mean"] is None:
            yield f"{start}has no case in common with {baseline}."
            continue
        yield (
            f"{start}reaches a Dice of {_dice(means[arm, labelled])} and {baseline}"
            f" {_dice(means[baseline, labelled])}; over the same cases the difference"
            f" is {found['mean']:+.3f} ({_interval(found['interval'], level)},"
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
    """Both interval and test have to exclude no difference."""
    interval, p = found["interval"], found["p_holm"]
    if interval is None or p is None:
        return "Nothing can be said about other patients."
    if interval[0] <= 0 <= interval[1]:
        return "Chance among patients may explain that."
    if p > SIGNIFICANT:
        return "The interval excludes no difference but the test does not: not settled."
    return "That is more than chance among patients explains."
