"""Figures: they are written whole, with what they say in them, and without warnings."""

import os
import subprocess
import sys

import numpy as np
import pytest
from test_tables import PCL, SCRATCH, write_run

from pclseg.cli import figures as command
from pclseg.errors import UserError
from pclseg.evaluation import embeddings
from pclseg.reports import figures

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that were saved, as they were."""
    kept, save = [], figures.save_figure
    monkeypatch.setattr(
        figures, "save_figure", lambda f, p: (kept.append(f), save(f, p))
    )
    return kept


def _is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def _csv(path, text):
    path.write_text(text)
    return path


def _overlay(role="worst", **changes):
    label = np.zeros((6, 20, 24), np.uint8)
    label[1:5, 5:10, 6:12], label[2:4, 12:16, 6:12] = 1, 2
    image = np.random.default_rng(0).normal(size=label.shape).astype("f4") + label
    values = {
        "role": role,
        "case": "patient1_frame1",
        "dice": 0.8125,
        "image": image,
        "label": label,
        "prediction": np.roll(label, 1, axis=2),
        "spacing": (5.0, 2.0, 1.0),
    }
    return figures.Overlay(**(values | changes))


def test_curves_are_the_mean_and_range_at_common_steps(tmp_path, drawn):
    a = _csv(tmp_path / "a.csv", "step,loss,dice\n1,4.0,\n2,2.0,0.5\n3,1.0,\n")
    b = _csv(tmp_path / "b.csv", "step,loss,dice\n1,2.0,\n2,1.0,0.7\n")
    c = _csv(tmp_path / "c.csv", "step,loss\n5,0.5\n")
    columns = {"loss": "loss", "dice": "Dice"}
    path = tmp_path / "curves.png"
    figures.training_curves(path, {"pcl": [a, b], "scratch": [c]}, columns=columns)
    loss, dice = drawn[0].axes
    pcl, scratch = loss.get_lines()
    assert pcl.get_xydata().tolist() == [[1, 3], [2, 1.5]]
    assert scratch.get_xydata().tolist() == [[5, 0.5]]
    assert len(loss.collections) == 1  # the range of the two runs
    assert [line.get_xydata().tolist() for line in dice.get_lines()] == [[[2, 0.6]]]
    assert (loss.get_xlabel(), dice.get_ylabel()) == ("optimizer step", "Dice")
    assert _is_png(path)


def test_many_noisy_lines_are_means_of_steps_with_one_legend(tmp_path, drawn):
    text = "step,loss\n" + "".join(f"{s},{s + s % 2}\n" for s in range(80))
    files = {f"arm {n}": [_csv(tmp_path / f"{n}.csv", text)] for n in range(10)}
    figures.training_curves(tmp_path / "c.png", files, columns={"loss": "loss"})
    (axes,) = drawn[0].axes
    lines = axes.get_lines()
    assert len({(x.get_color(), x.get_linestyle()) for x in lines}) == 10
    points = lines[0].get_xydata()
    assert len(points) == 40
    np.testing.assert_allclose(points[:2], [[0, 1], [2, 3]])
    (legend,) = drawn[0].legends
    assert [t.get_text() for t in legend.get_texts()] == list(files)
    assert axes.get_legend() is None
    frame = legend.get_window_extent()
    assert frame.x0 >= 0 and frame.x1 <= drawn[0].bbox.width
    assert axes.get_window_extent().y0 > frame.y1
    assert axes.get_window_extent().height > 200


def test_runs_with_other_epochs_are_interpolated(tmp_path, drawn):
    a = _csv(tmp_path / "a.csv", "step,dice\n4,0.0\n8,0.4\n12,0.6\n")
    b = _csv(tmp_path / "b.csv", "step,dice\n6,0.2\n12,0.8\n")
    figures.training_curves(
        tmp_path / "curves.png", {"pcl": [a, b]}, columns={"dice": "Dice"}
    )
    (line,) = drawn[0].axes[0].get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[6, 0.2], [8, 0.4], [12, 0.7]])


@pytest.mark.parametrize(
    ("losses", "scale"),
    [((1.0, 0.05), "log"), ((6.0, 5.0), "linear"), ((1.0, 0.0), "linear")],
)
def test_a_loss_that_falls_tenfold_is_drawn_on_a_log_axis(
    tmp_path, drawn, losses, scale
):
    text = "step,loss,rate\n" + "".join(
        f"{step},{loss},{loss}\n" for step, loss in enumerate(losses)
    )
    figures.training_curves(
        tmp_path / "curves.png",
        {"pcl": [_csv(tmp_path / "a.csv", text)]},
        columns={"loss": "loss", "rate": "rate"},
        log_scale=("loss",),
    )
    loss, rate = drawn[0].axes
    assert (loss.get_yscale(), rate.get_yscale()) == (scale, "linear")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,lr\n1,0.1\n", "no file of pcl .* 'loss'; the columns are: lr, step"),
        ("", "no rows with a column 'step'"),
        (None, "cannot be read"),
    ],
)
def test_metrics_without_numbers_are_named(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        figures.training_curves(
            tmp_path / "curves.png", {"pcl": [path]}, columns={"loss": "loss"}
        )
    assert not (tmp_path / "curves.png").exists()


def test_overlays_name_case_and_dice_and_draw_both_contours(tmp_path, drawn):
    path = tmp_path / "overlays.png"
    shown = [_overlay("worst"), _overlay("best", dice=float("nan"))]
    figures.overlays(path, shown, ("background", "RV", "LV"), num_slices=2)
    rows = drawn[0].subfigs
    titles = [row.get_suptitle() for row in rows]
    assert titles == [
        "worst: patient1_frame1, mean Dice 0.812",
        "best: patient1_frame1, no Dice",
    ]
    first, second = rows[0].axes
    # Foreground is in slices 1..4; the middles of two halves are its indices 1 and 3.
    assert [a.get_title() for a in (first, second)] == ["slice 3 of 6", "slice 5 of 6"]
    assert first.get_aspect() == 2  # y spacing / x spacing
    assert len(first.collections) == 4 and len(second.collections) == 2
    assert _is_png(path)


def test_contour_of_a_mask_at_the_border_is_closed(tmp_path, drawn):
    full = np.ones((1, 6, 6), np.uint8)
    case = _overlay(image=full.astype("f4"), label=full, prediction=full)
    figures.overlays(tmp_path / "o.png", [case], ("background", "RV"), num_slices=1)
    outline = drawn[0].subfigs[0].axes[0].collections[0].get_paths()[0].vertices
    assert outline.min() == -0.5 and outline.max() == 5.5


def test_overlay_of_a_case_without_foreground_is_drawn(tmp_path):
    empty = np.zeros((2, 20, 24), np.uint8)
    case = _overlay(image=np.zeros(empty.shape), label=empty, prediction=empty)
    figures.overlays(tmp_path / "o.png", [case], ("background", "RV"))
    assert _is_png(tmp_path / "o.png")


def test_similarity_leaves_empty_bins_out(tmp_path, drawn):
    position, patient = np.array([0.5, 1.0, 0.5, 1.0]), np.array([0, 0, 1, 1])
    z = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    curve = embeddings.similarity_curve(z, position, patient, bins=4)
    figures.similarity_against_distance(tmp_path / "s.png", {"after": curve})
    line = drawn[0].axes[0].get_lines()[0]
    assert line.get_xydata().tolist() == [[0.125, 1], [0.625, 0]]
    assert line.get_label() == "after (4 pairs)"
    assert _is_png(tmp_path / "s.png")


def test_a_curve_without_pairs_has_no_line_but_keeps_its_colour(tmp_path, drawn):
    none, one = np.zeros(0), (np.array([0.5]), np.array([0.2]), np.array([3]))
    figures.similarity_against_distance(
        tmp_path / "s.png", {"scratch": (none, none, none), "pcl": one}
    )
    (line,) = drawn[0].axes[0].get_lines()[:-1]  # the last is that of 0
    assert line.get_color() == figures.COLOURS[1]
    figures.similarity_against_distance(tmp_path / "s.svg", {"x": (none, none, none)})
    assert not drawn[1].legends


def test_names_with_dollars_are_no_formulas(tmp_path, drawn):
    path = _csv(tmp_path / "a.csv", "step,loss\n1,1\n2,0.01\n")
    name = "costs $5 or $\\frac$"
    figures.training_curves(
        tmp_path / "c.svg",
        {name: [path]},
        columns={"loss": "loss"},
        log_scale=("loss",),
    )
    (entry,) = drawn[0].legends[0].get_texts()
    assert entry.get_text() == name and not entry.get_parse_math()
    assert (tmp_path / "c.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("patients", [3, 20])
def test_map_shows_every_slice_twice(tmp_path, drawn, patients):
    rng = np.random.default_rng(0)
    patient, position = (
        np.repeat(np.arange(patients), 4),
        np.tile([0.25, 0.5, 0.75, 1], patients),
    )
    maps = {
        name: embeddings.principal_components(rng.normal(size=(4 * patients, 5)), 2)
        for name in ("before", "after")
    }
    figures.embedding_map(tmp_path / "m.png", maps, position, patient)
    above, _, below, _, bar = drawn[0].axes
    np.testing.assert_array_equal(above.collections[0].get_offsets(), maps["before"][0])
    assert above.collections[0].get_array().tolist() == position.tolist()
    assert [len(dots.get_offsets()) for dots in below.collections] == [4] * patients
    colours = {(*dots.get_facecolor()[0],) for dots in below.collections}
    assert len(colours) == patients
    assert bar.get_ylabel() == "position (1 = last slice)"
    assert len(drawn[0].legends) == (patients == 3)
    assert _is_png(tmp_path / "m.png")


def _point(labelled, mean, interval, *, patients=None):
    return {
        "labelled": labelled,
        "labelled_patients": patients or labelled,
        "mean": mean,
        "interval": interval,
    }


def test_label_efficiency_shows_every_mean_with_its_interval(tmp_path, drawn):
    every = _point(0, 0.8, [0.7, 0.85], patients=79.8)
    curves = [
        {"arm": "scratch", "points": [_point(2, 0.4, [0.3, 0.6]), every]},
        {"arm": "pcl", "points": [_point(2, 0.5, None), _point(6, 0.6, [0.5, 0.7])]},
        {"arm": "empty", "points": [_point(2, None, None)]},
    ]
    efficiency = {"full": 0.8, "shares": [0.9], "curves": curves}
    path = tmp_path / "l.png"
    figures.label_efficiency(path, efficiency, level=0.95)
    (axes,) = drawn[0].axes
    scratch, pcl, empty = (container.lines for container in axes.containers)
    np.testing.assert_allclose(scratch[0].get_ydata(), [0.4, 0.8])
    assert [round(x) for x in scratch[0].get_xdata()] == [0, 2]  # 6 lies between
    assert [round(x) for x in pcl[0].get_xdata()] == [0, 1]
    assert scratch[0].get_xdata()[0] < pcl[0].get_xdata()[0]
    ends = [segment[:, 1].tolist() for segment in scratch[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[0.3, 0.6], [0.7, 0.85]])
    ends = [segment[:, 1].tolist() for segment in pcl[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[0.5, 0.5], [0.5, 0.7]])
    assert not len(empty[0].get_ydata())
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["2", "6", "all (79.8)"]
    dotted = [y for line in axes.get_lines()[-2:] for y in set(line.get_ydata())]
    np.testing.assert_allclose(dotted, [0.8, 0.72])
    (legend,) = drawn[0].legends
    assert [t.get_text() for t in legend.get_texts()] == ["scratch", "pcl", "empty"]
    said = legend.get_title().get_text()
    assert "95% interval over patients" in said
    assert "dotted: 100%, 90% of full supervision of scratch" in said
    assert _is_png(path)


def test_command_draws_label_efficiency_of_several_label_counts(
    tmp_path, drawn, caplog
):
    few = [write_run(tmp_path / f"{r['arm']}{r['fold']}", r) for r in SCRATCH + PCL]
    out = tmp_path / "out"
    command.draw_label_efficiency(few, out, baseline=None)
    assert not drawn  # one label count
    most = {"labelled": 0, "labelled_patients": "vwxyz"}
    more = [write_run(tmp_path / f"all{r['fold']}", r | most) for r in SCRATCH]
    command.draw_label_efficiency([*few, tmp_path, *more], out, baseline=None)
    assert _is_png(out / "label_efficiency.png") and len(drawn) == 1
    command.draw_label_efficiency([*few, *more], out, baseline="none")
    assert len(drawn) == 1 and "no figure of label efficiency: --base" in caplog.text


def test_a_failed_save_leaves_the_old_figure_alone(tmp_path, monkeypatch):
    path = tmp_path / "s.png"
    path.write_bytes(b"old")

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full_disk)
    with pytest.raises(UserError, match="s.png cannot be written: No space left"):
        bins = np.arange(3)
        figures.similarity_against_distance(path, {"after": (bins, bins, bins)})
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["s.png"]


def test_settings_of_the_user_change_no_figure(tmp_path):
    drawing = (
        "import sys, pathlib; import numpy as np; from pclseg.reports import figures;"
        " bins = np.arange(3); figures.similarity_against_distance("
        "pathlib.Path(sys.argv[1]), {'after': (bins, bins, bins)})"
    )
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\n")
    own = {"MPLBACKEND": "foo", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    for name, settings in (("plain", {}), ("own", own)):
        done = subprocess.run(
            [sys.executable, "-c", drawing, str(tmp_path / f"{name}.svg")],
            env={**os.environ, **settings},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    same = (tmp_path / "own.svg").read_bytes() == (tmp_path / "plain.svg").read_bytes()
    assert same


def test_import_loads_neither_matplotlib_nor_jax():
    check = (
        "import sys; import pclseg.reports.figures, pclseg.reports.tables,"
        " pclseg.evaluation.inference, pclseg.evaluation.embeddings;"
        " sys.exit(bool({'matplotlib', 'jax', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
