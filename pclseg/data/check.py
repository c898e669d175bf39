"""Looks at all files of a dataset before any training: faults, fitness, facts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from pclseg.data import examine, fitness, workers
from pclseg.data.datasets.base import Dataset
from pclseg.data.examine import Facts, Request
from pclseg.data.findings import ERROR, LEVELS, Finding
from pclseg.data.fitness import Plans

_MOST_CLASSES = 16  # that are told one by one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check found."""

    dataset: Dataset
    findings: tuple[Finding, ...]  # errors first
    volumes: tuple[Facts, ...]  # in the order of the cases; without unusable images

    def count(self, level: str) -> int:
        """How many findings are of that level."""
        return sum(finding.level == level for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """All of it but the cases of the dataset."""
        return {
            "dataset": self.dataset.name,
            "class_names": self.dataset.class_names,
            "label_values": self.dataset.label_values,
            "percentiles": examine.PERCENTILES,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "volumes": [dataclasses.asdict(volume) for volume in self.volumes],
        }


def check(
    dataset: Dataset,
    plans: Plans,
    *,
    slice_axis: int | str,
    num_workers: int,
    report: Callable[[str], None],
) -> Checked:
    """Reads every file once, in several processes.

    Memory: examine.BYTES_PER_VOXEL times the voxels of the volumes in work, which are
    no more than fit in half of the machine's memory.

    Args:
        dataset: what to check.
        plans: of the config.
        slice_axis: as in `geometry.prepared_geometry`.
        num_workers: number of processes; 0 is the number of CPUs.
        report: takes lines of progress.
    """
    requests = [
        Request(
            case=case,
            slice_axis=slice_axis,
            label_values=dataset.label_values,
            strays=dataset.strays,
        )
        for case in dataset.cases
    ]
    progress = workers.Progress("checked", len(requests), report)
    done: dict[Request, examine.Examined] = {}
    found: list[Finding] = []
    try:
        for request, examined in workers.run(
            requests,
            examine.examine,
            size=lambda r: workers.BYTES + examine.size_bytes(r),
            workers=num_workers,
        ):
            done[request] = examined
            progress.step()
    except workers.WorkerKilled as error:
        found += [_killed(request) for request in error.tasks if request not in done]
    examined = [done[request] for request in requests if request in done]
    volumes = tuple(each.facts for each in examined if each.facts is not None)
    found += [finding for each in examined for finding in each.findings]
    found += fitness.findings(dataset, volumes, plans)
    found.sort(key=lambda finding: LEVELS.index(finding.level))
    return Checked(dataset=dataset, findings=tuple(found), volumes=volumes)


def _killed(request: Request) -> Finding:
    return Finding(
        level=ERROR,
        where=request.case.name,
        path=str(request.case.image_path),
        what="the process that read it, or one beside it, was killed, most likely for"
        " lack of memory",
        consequence="volumes after it were not looked at",
        remedy="use --workers=1, or a machine with more memory",
    )


def facts_table(checked: Checked) -> list[tuple[str, str]]:
    """What the volumes are like, as names and values in words."""
    volumes, cases = checked.volumes, checked.dataset.cases
    patients = len({case.patient for case in cases})
    labelled = sum(case.label_path is not None for case in cases)
    rows = [
        ("volumes", f"{len(cases)} of {patients} patients, {labelled} with label"),
    ]
    if not volumes:
        return rows
    axes = sorted({volume.slice_axis for volume in volumes})
    rows += [
        (
            "slices along",
            " and ".join(("right", "front", "up")[axis] for axis in axes),
        ),
        ("slices a volume", _range([v.slices for v in volumes])),
        ("slice distance", _range([v.slice_spacing for v in volumes], "mm")),
        ("rows of a slice", _range([v.plane[0] for v in volumes])),
        ("columns of a slice", _range([v.plane[1] for v in volumes])),
        ("pixel", _range([s for v in volumes for s in v.plane_spacing], "mm")),
        ("stored as", _counted([v.orientation for v in volumes])),
        ("voxels are", _counted([v.dtype for v in volumes])),
        *_channels(checked.dataset.channels),
        ("median grey value", _range([v.percentiles[5] for v in volumes])),
        ("lowest to highest", f"{_short(_least(volumes))} to {_short(_most(volumes))}"),
    ]
    names, values = checked.dataset.class_names, checked.dataset.label_values
    for name, value in list(zip(names, values, strict=True))[:_MOST_CLASSES]:
        sizes = [
            v.label_voxels[value] * v.voxel_ml
            for v in volumes
            if v.label_voxels.get(value)
        ]
        if sizes:
            rows.append(
                (f"{name} ({value})", f"in {len(sizes)} labels, {_range(sizes, 'ml')}")
            )
    if len(values) > _MOST_CLASSES:
        rows.append(("more classes", f"{len(values) - _MOST_CLASSES}"))
    return rows


def _channels(names: Sequence[int | str]) -> list[tuple[str, str]]:
    listed = ", ".join(map(str, names))
    return [("channels", f"{listed}; below the first")] if len(names) > 1 else []


def _least(volumes: Sequence[Facts]) -> float:
    return min(volume.percentiles[0] for volume in volumes)


def _most(volumes: Sequence[Facts]) -> float:
    return max(volume.percentiles[-1] for volume in volumes)


def _range(values: Sequence[float], unit: str = "") -> str:
    """Least, median and largest value."""
    ordered = sorted(values)
    middle, unit = ordered[len(ordered) // 2], f" {unit}" if unit else ""
    if ordered[0] == ordered[-1]:
        return f"{_short(middle)}{unit}"
    ends = f"{_short(ordered[0])} to {_short(ordered[-1])}"
    return f"{ends}{unit}, median {_short(middle)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _counted(values: Sequence[str]) -> str:
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    if len(counts) == 1:
        return values[0]
    return ", ".join(f"{number} {value}" for value, number in counts.items())
