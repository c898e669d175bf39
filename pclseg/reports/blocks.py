"""Parts of a page that show pictures: curves, what was learned, cases."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pclseg.errors import UserError
from pclseg.reports import artifacts, figures
from pclseg.reports.artifacts import Diagnostics
from pclseg.reports.comparison import Numbers
from pclseg.reports.pictures import Picture, picture
from pclseg.reports.runs import label, shown
from pclseg.reports.sources import Source
from pclseg.reports.stages import Stage, merged, uses_labels
from pclseg.reports.tables import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """The diagnostics of one stage of one run."""

    arm: str  # the first that has it
    name: str  # of all arms that share it and, where these have several, the stage
    source: Source
    stage: str
    found: Diagnostics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Pictures under one heading, or a note that says why there is none."""

    title: str
    pictures: Sequence[Picture] = ()
    note: str = ""


def label_efficiency(numbers: Numbers) -> Picture | None:
    """Dice against label counts, where there are several."""
    if len(numbers["label_counts"]) < 2:
        return None
    level, arms = numbers["bootstrap"]["level"], ", ".join(numbers["arms"])
    return picture(
        lambda path: figures.label_efficiency(
            path, numbers["label_efficiency"], level=level
        ),
        alt=f"Dice against the number of labelled patients, a line for each of {arms};"
        " the numbers are in the table of label efficiency.",
        caption="Dice per case (mean over the classes) against labelled patients.",
    )


def curves(cells: Sequence[Source], arms: Sequence[str]) -> Iterator[Block]:
    """Of every stage; where it learns from labels, of every label count."""
    for name in _stage_names(cells):
        groups: dict[str, dict[str, Stage]] = {}
        for source in cells:
            stage = source.stages.get(name)
            if stage is not None and stage.config is not None:
                count = f", M = {shown(source.run['labelled'])}"
                about = f"{name}{count if uses_labels(stage.config) else ''}"
                groups.setdefault(about, {}).setdefault(label(source.run), stage)
        for about, lines in groups.items():
            pictures = list(_stage_curves(lines, arms, about=about))
            if pictures:
                yield Block(title=about, pictures=pictures)


def _stage_names(cells: Sequence[Source]) -> list[str]:
    most = max(cells, key=lambda source: len(source.stages))
    rest = (name for source in cells for name in source.stages)
    return list(dict.fromkeys([*most.stages, *rest]))


def _stage_curves(
    lines: Mapping[str, Stage], arms: Sequence[str], *, about: str
) -> Iterator[Picture]:
    for name, columns in figures.CURVES.items():
        paths = {arm: stage.file(name) for arm, stage in lines.items()}
        # All arms, so that one has the same colour in all figures.
        files = merged({arm: [p] if (p := paths.get(arm)) else [] for arm in arms})
        drawn = [arm for arm in files if files[arm]]
        for column, axis in columns.items() if drawn else ():
            yield picture(
                functools.partial(
                    figures.training_curves,
                    sources=files,
                    columns={column: axis},
                    log_scale=("loss",),
                ),
                alt=f"{axis} against the optimizer step in {about}; lines:"
                f" {'; '.join(drawn)}.",
                caption=f"{axis}, {about}",
            )


def learned_of(cells: Sequence[Source]) -> list[Learned]:
    """Of every arm and stage the first run with diagnostics; shared ones once."""
    first: dict[tuple[str, str], tuple[Source, Path]] = {}
    for source in cells:
        for stage, trained in source.stages.items():
            if path := trained.file("diagnostics.json"):
                first.setdefault((label(source.run), stage), (source, path))
    stages_of_arm = Counter(arm for arm, _ in first)
    shared: dict[Path, list[tuple[str, str]]] = {}
    for key, (_, path) in first.items():
        shared.setdefault(path.resolve(), []).append(key)
    found = []
    for keys in shared.values():
        arm, stage = keys[0]
        source, path = first[arm, stage]
        arms = ", ".join(arm for arm, _ in keys)
        found.append(
            Learned(
                arm=arm,
                name=arms if stages_of_arm[arm] == 1 else f"{arms}, {stage}",
                source=source,
                stage=stage,
                found=artifacts.read_diagnostics(path),
            )
        )
    return found


def measures(learned: Sequence[Learned]) -> Table | None:
    """One row for every stage before and after; None where nothing was learned."""
    if not learned:
        return None
    rows, keys = [], artifacts.MEASURES
    for each in learned:
        for when, found in each.found.measures.items():
            cells = ("-" if found[k] is None else f"{found[k]:.3f}" for k in keys)
            rows.append((each.name, f"{when} {each.stage}", *cells))
    return Table(
        title="Embeddings of held-out slices, with random weights and trained ones",
        columns=("arm", "weights", *keys.values()),
        rows=tuple(rows),
    )


def learned_blocks(learned: Sequence[Learned], arms: Sequence[str]) -> Iterator[Block]:
    """All arms together, then each with its maps."""
    if len(learned) > 1:
        none = np.zeros(0)
        after: dict[str, artifacts.Curve] = {}
        for arm in arms:
            own = [each for each in learned if each.arm == arm]
            after |= {each.name: each.found.similarity["after"] for each in own}
            if not own:  # keeps the colours of the others
                after[arm] = (none, none, none)
        yield Block(
            title="All arms after pre-training",
            pictures=[_similarity(after, "after pre-training")],
        )
    for each in learned:
        both = {f"{w} {each.stage}": c for w, c in each.found.similarity.items()}
        yield Block(
            title=f"{each.stage} of {each.name}",
            pictures=[
                _similarity(both, each.name),
                *(_map(each, when) for when in each.found.maps),
            ],
        )


def _similarity(curves: Mapping[str, artifacts.Curve], about: str) -> Picture:
    ends = "; ".join(
        f"{name} {_falls(*curve)}" for name, curve in curves.items() if curve[2].any()
    )
    return picture(
        lambda path: figures.similarity_against_distance(path, curves),
        alt=f"Mean cosine similarity of slices of different patients against their"
        f" difference of position: {ends or 'there is no pair'}.",
        caption=f"Similarity against distance, {about}",
    )


def _falls(distance: np.ndarray, mean: np.ndarray, pairs: np.ndarray) -> str:
    del distance
    near, far = mean[pairs > 0][[0, -1]]
    return f"from {near:.2f} near by to {far:.2f} far apart"


def _map(each: Learned, when: str) -> Picture:
    found = each.found
    return picture(
        lambda path: figures.embedding_map(
            path,
            {f"{when} {each.stage}": found.maps[when]},
            found.position,
            found.patient,
        ),
        alt=f"First two principal components of {len(found.position)} slice embeddings"
        f" of {each.name} {when} {each.stage}, above coloured by position, below by"
        " patient.",
        caption=f"Map {when} {each.stage}, {each.name}",
    )


def cases(source: Source) -> Block:
    """The worst, median and best case of a run, or why there is none."""
    try:
        found, class_names = artifacts.cases_to_show(source.workdir)
    except UserError as error:
        return Block(title=source.name, note=f"No case is shown: {error}")
    if not found:
        return Block(title=source.name, note="No case has a Dice.")
    listed = "; ".join(f"{c.role}: {c.case}, Dice {c.dice:.3f}" for c in found)
    shown_cases = picture(
        lambda path: figures.overlays(path, found, class_names),
        alt=f"Slices with contours of label and prediction. {listed}.",
        caption=f"{listed}.",
        suffix=".webp",
        wide=True,
    )
    return Block(title=source.name, pictures=[shown_cases])
