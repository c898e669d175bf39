"""The result of a check: one HTML page, a table of the volumes, and JSON."""

import csv
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import numpy as np

from pclseg.data import examine
from pclseg.data.check import Checked, facts_table
from pclseg.data.datasets.base import Case
from pclseg.data.examine import Facts
from pclseg.data.findings import ERROR, WARNING
from pclseg.data.fitness import Plans
from pclseg.data.geometry import orient, prepared_geometry
from pclseg.data.volume_file import read_volume
from pclseg.errors import UserError
from pclseg.files import write_json, write_text
from pclseg.reports import check_figures
from pclseg.reports.page import environment
from pclseg.reports.pictures import Picture, picture
from pclseg.reports.tables import Table

FILES = ("check.html", "volumes.csv", "fingerprint.json")
_SHOWN = 12  # volumes of which a slice is shown
_MOST_ROWS = 200  # of findings on the page
_COLUMNS = (
    "name patient image label orientation dtype slices slice_spacing_mm rows columns"
    " pixel_y_mm pixel_x_mm lowest percentile_1 median percentile_99 highest"
).split()


def write(folder: Path, checked: Checked, plans: Plans) -> None:
    """Writes the FILES into `folder`; old ones are replaced.

    Raises:
        UserError: a place that cannot be written.
    """
    texts = (page(checked, plans), volumes_csv(checked))
    for name, text in zip(FILES, texts, strict=False):
        # The name of a file may hold bytes that are no text.
        write_text(folder / name, text.encode("utf-8", "replace").decode())
    write_json(folder / FILES[2], checked.to_json())


def page(checked: Checked, plans: Plans) -> str:
    """The page as HTML, without network and script."""
    found = checked.findings
    rows = tuple(
        (f.level, f.where, f.path, f.what, f.consequence, f.remedy)
        for f in found[:_MOST_ROWS]
    )
    table = Table(
        title="What was found",
        columns=("level", "case", "file", "what", "what follows", "what mends it"),
        rows=rows,
    )
    template: jinja2.Template = environment().get_template("check.html.jinja")
    return template.render(
        title=f"{checked.dataset.name}: {len(checked.dataset.cases)} volumes",
        facts=facts_table(checked),
        verdict=verdict(checked),
        findings=[table] if rows else [],
        more=f"{len(found) - _MOST_ROWS} more are in {FILES[2]}."
        if len(found) > _MOST_ROWS
        else "",
        pictures=list(_pictures(checked, plans)),
    )


def verdict(checked: Checked) -> str:
    """Whether training can begin, in one sentence."""
    errors, warnings = checked.count(ERROR), checked.count(WARNING)
    if errors:
        return (
            f"{_number(errors, 'error')} and {_number(warnings, 'warning')}: training"
            " does not start before the errors are mended."
        )
    if warnings:
        return f"No error, {_number(warnings, 'warning')}: training can start."
    return "No error and no warning."


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def volumes_csv(checked: Checked) -> str:
    """One row a volume; voxels and ml of every label value behind."""
    values = checked.dataset.label_values
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(f"label_{value}_voxels" for value in values)])
    for v in checked.volumes:
        low, middle, high = (
            v.percentiles[examine.PERCENTILES.index(p)] for p in (1.0, 50.0, 99.0)
        )
        row = [v.name, v.patient, v.image, v.label, v.orientation, v.dtype]
        row += [v.slices, v.slice_spacing, *v.plane, *v.plane_spacing]
        row += [v.percentiles[0], low, middle, high, v.percentiles[-1]]
        counts = [v.label_voxels.get(value, 0) for value in values]
        writer.writerow(row + (counts if v.label else [""] * len(counts)))
    return text.getvalue()


def _pictures(checked: Checked, plans: Plans) -> Iterator[Picture]:
    volumes = checked.volumes
    if not volumes:
        return
    names, values = checked.dataset.class_names, checked.dataset.label_values
    for draw, alt in (
        (check_figures.sizes, "How many slices volumes have, and how high they are"),
        (check_figures.spacings, "Pixel size and slice distance, a mark a volume"),
        (
            check_figures.grey_values,
            "Grey values: the median of every volume, and 1 to 99 % of its voxels",
        ),
        (
            check_figures.profiles,
            "Mean grey value along the slices, a line a volume (grey), and their"
            " median; lines that run against it may be stored upside down",
        ),
    ):
        yield picture(
            functools.partial(draw, volumes=volumes), alt=f"{alt}.", caption=alt
        )
    labelled = [v for v in volumes if v.label_voxels]
    if labelled and len(values) > 1:
        for draw, alt in (
            (check_figures.label_sizes, "Size of every class, a dot a label"),
            (
                check_figures.label_heights,
                "Area of every class along the slices: median and middle half",
            ),
        ):
            yield picture(
                functools.partial(draw, volumes=labelled, names=names, values=values),
                alt=f"{alt}.",
                caption=alt,
            )
    about = "Positives that PCL gives a slice in a batch, its own view included"
    yield picture(
        functools.partial(
            check_figures.positives,
            volumes=volumes,
            threshold=plans.threshold,
            batch_size=plans.batch_size,
        ),
        alt=f"{about}, against the threshold.",
        caption=about,
    )
    slices = list(_middle_slices(checked.dataset.cases, volumes))
    if slices:
        about = "The middle slice of some volumes, labels as contours"
        yield picture(
            lambda path: check_figures.middle_slices(path, slices, values),
            alt=f"{about}: {', '.join(name for name, *_ in slices)}.",
            caption=about,
            suffix=".webp",
            wide=True,
        )


def _middle_slices(
    cases: Sequence[Case], volumes: Sequence[Facts]
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None, float]]:
    case_of = {case.name: case for case in cases}
    chosen = np.unique(np.linspace(0, len(volumes) - 1, _SHOWN).round().astype(int))
    for facts in (volumes[number] for number in chosen):
        case = case_of[facts.name]
        try:
            image, affine = read_volume(case.image_path, case.time_index)
            label = None
            if facts.label_voxels and case.label_path is not None:
                label, _ = read_volume(case.label_path, case.time_index)
        except UserError:  # gone since it was read
            continue
        geometry, _, _ = prepared_geometry(
            image.shape, affine, slice_axis=facts.slice_axis, spacing=()
        )
        middle = facts.slices // 2
        _, height, width = geometry.native_spacing
        yield (
            facts.name,
            np.array(orient(image, geometry)[middle], np.float32),
            None if label is None else np.rint(orient(label, geometry)[middle]),
            height / width,
        )
