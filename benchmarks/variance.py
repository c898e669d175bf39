"""How much a contrast of pixels varies by the draw, on the features of a trained run.

python benchmarks/variance.py RUN [--out FILE] [--figure FILE.png]

RUN is a finished run of MONA or ARCO. Its network sees one batch of its training. In a
class of 32 pixels or more each gets its InfoNCE against the mean of the class and
`num_negatives` keys of the bank, drawn once. The variance of the mean over n such
pixels is computed for every way to draw them, and measured by drawing 10,000 times.
Strata are those of the package, a cell of all slices together; and beside them, "by
slice", the quarters of every slice, which the package has not.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import numpy as np

from pclseg import building, cohort, models, rundir
from pclseg.config import settings
from pclseg.data import make_batches
from pclseg.data.tfds_store import open_store
from pclseg.losses import sampling
from pclseg.losses.anatomical import class_means
from pclseg.losses.contrastive import info_nce_of, unit_length
from pclseg.parts.sampler import draw_of
from pclseg.reports import drawing
from pclseg.runner import trained_state

NUMBERS = (16, 32, 64, 128, 256, 512, 1024)
WAYS = ("naive", "stratified", "antithetic")
QUARTERS = (2, 2)  # of a slice
DRAWS = 10_000
LEAST = 32  # pixels of a class
# Of the columns SG / NS and SAG / NS: prefix of what they are compared with, and own.
KINDS = (("", ""), ("drawn_", "drawn_"), ("", "slice_"), ("drawn_", "drawn_slice_"))
HEADS = ("SG / NS", "SAG / NS", "drawn: SG", "SAG")
HEADS += ("by slice: SG", "SAG", "drawn: SG", "SAG")


def main(argv: list[str]) -> None:
    """Measures, prints a table, and writes numbers and figure where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--figure", type=Path, help="a PNG file")
    measuring.add_out(parser)
    args = parser.parse_args(argv)
    rows = measured(args.run)
    print(
        measuring.table(
            ["class", "pixels", "n", *WAYS, *HEADS],
            [
                [
                    row["class"],
                    str(row["pixels"]),
                    str(row["number"]),
                    *(f"{row[way]:.2e}" for way in WAYS),
                    *(
                        f"{row[f'{kind}{way}'] / row[f'{drawn}naive']:.2f}"
                        for drawn, kind in KINDS
                        for way in WAYS[1:]
                    ),
                ]
                for row in rows
            ],
        )
    )
    measuring.save(args.out, {"run": args.run.name, "rows": rows})
    if args.figure:
        draw(rows, args.figure)


def measured(run: Path) -> list[dict[str, Any]]:
    """Variances, a row for each class and number of draws."""
    config = rundir.read_config(run)
    outline = building.outline(config)
    stage = outline.stages["finetune"]
    state = trained_state(stage, run / "finetune")
    path = cohort.prepare_dataset(config.data, outline.dataset, measuring.tell)
    batch = next(
        make_batches(
            "numpy",
            store=open_store(path),
            plan=stage.plan,
            unlabelled=None,
            keys=frozenset({"image", "label"}),
            first_step=0,
            num_steps=1,
            prefetch=1,
        )
    )
    method = config.finetune.method
    model = models.make(**settings(config.finetune.model))
    trained = {"params": state.params, **state.model_state}
    _, features = model.apply(trained, batch["image"], train=False, method="dense")
    _, taught = model.apply(
        state.method_state["teacher"], batch["image"], train=False, method="taught"
    )
    stride = config.finetune.model.stride
    label = np.asarray(batch["label"])[:, ::stride, ::stride]
    banks = state.method_state["tail"]["banks"]
    features, taught = (x.reshape(-1, x.shape[-1]) for x in (features, taught))
    flat = jnp.asarray(label.reshape(-1))
    names = outline.dataset.class_names
    means = unit_length(class_means(taught, flat, len(names)))
    rows = []
    for kind, name in enumerate(names):
        place = np.flatnonzero(label.reshape(-1) == kind)
        filled = int(banks.filled[kind])
        if len(place) < LEAST or not filled:
            continue
        key = jax.random.key(kind)
        drawn = jax.random.randint(key, (method.num_negatives,), 0, filled)
        keys = unit_length(banks.rows["key"][kind][drawn])
        each = info_nce_of(
            unit_length(features[place]),
            jnp.broadcast_to(means[kind], (len(place), means.shape[1])),
            jnp.broadcast_to(keys, (len(place), *keys.shape)),
            temperature=method.contrast_temperature,
        )
        rows += variances(name, np.asarray(each), place, label.shape, method)
    return rows


def variances(
    name: str,
    values: np.ndarray,
    place: np.ndarray,
    shape: tuple[int, int, int],
    method: Any,
) -> list[dict[str, Any]]:
    """Of the pixels of a class, at `place` of `shape`."""
    cells = tuple(method.sampler_cells)
    pooled = np.tile(sampling.grid_strata(shape[1:], cells), shape[0])
    quarter = sampling.grid_strata(shape[1:], QUARTERS)
    number_by_slice = shape[0] * (quarter.max() + 1)
    by_slice = np.arange(number_by_slice).reshape(shape[0], -1)[:, quarter].reshape(-1)
    ways: dict[str, Any] = {way: draw_of(way, cells, [shape]) for way in WAYS}
    for way in WAYS[1:]:
        ways[f"slice_{way}"] = functools.partial(
            ways[way], strata=by_slice, num_strata=number_by_slice
        )
    whole = np.zeros(int(np.prod(shape)), np.float32)
    whole[place] = values
    classes = np.ones(whole.shape, np.int32)
    classes[place] = 0
    rows = []
    for number in NUMBERS:
        exact, other = (
            sampling.estimator_variances(values, strata[place], number)
            for strata in (pooled, by_slice)
        )
        row: dict[str, Any] = dict(
            {"class": name}, pixels=len(place), number=number, **exact._asdict()
        )
        row |= {f"slice_{way}": getattr(other, way) for way in WAYS[1:]}
        for way, sampler in ways.items():

            def mean(key: jax.Array, sampler: Any = sampler, n: int = number) -> Any:
                drawn = sampler(jnp.asarray(classes), key, 1, n)
                return jnp.asarray(whole)[drawn.pixels].mean()

            key = jax.random.fold_in(jax.random.key(0), number)
            keys = jax.random.split(key, DRAWS)
            many = jax.jit(functools.partial(jax.lax.map, mean))(keys)
            row[f"drawn_{way}"] = float(many.var())
        rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """SD against n, a panel for each class: computed, lines; drawn, marks."""
    kinds = list(dict.fromkeys(row["class"] for row in rows))
    with drawing.plain_matplotlib():
        figure = drawing.new_figure(3.2 * len(kinds), 3.4)
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            own = [row for row in rows if row["class"] == kind]
            numbers = [row["number"] for row in own]
            for index, way in enumerate(WAYS):
                style = drawing.line_style(index)
                exact = np.sqrt([row[way] for row in own])
                found = np.sqrt([row[f"drawn_{way}"] for row in own])
                axes.plot(numbers, exact, label=way, **style)
                marker = drawing.MARKERS[index]
                axes.plot(numbers, found, marker, color=style["color"], markersize=4)
            axes.set_xscale("log", base=2)
            axes.set_xticks(NUMBERS[::2], [str(number) for number in NUMBERS[::2]])
            drawing.set_log_scale(axes)
            drawing.plain_axes(axes)
            axes.set_title(f"{kind} ({own[0]['pixels']} pixels)", fontsize=9)
            axes.set_xlabel("pixels drawn")
        panels[0].set_ylabel("SD of the mean contrast")
        panels[-1].legend(fontsize=8, frameon=False)
        drawing.save_figure(figure, path)


if __name__ == "__main__":
    main(sys.argv[1:])
