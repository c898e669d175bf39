"""How every figure is drawn: size, colours, styles, and the writing of its file."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pclseg.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart by all common kinds of colour vision, and on grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = "osD^vP"
DPI = 120


@contextlib.contextmanager
def plain_matplotlib() -> Iterator[None]:
    """Whatever a user has set, in a file or by MPLBACKEND, figures are the same."""
    # An unknown backend would stop the import; nothing here opens a window.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the line of that number."""
    # The dashes change too: a figure must survive being printed in grey.
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number % len(LINE_STYLES)],
    }


def plain_axes(axes: "Axes") -> None:
    """Two sides and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of that size in inches."""
    # Not pyplot: no window system is asked for, and no figure stays in memory.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def set_log_scale(axes: "Axes") -> None:
    """A logarithmic axis of values, told as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    plain = FuncFormatter(lambda value, _: f"{value:g}")  # 0.1, not a formula
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes the figure in the format of the suffix; equal figures give equal bytes."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    path = Path(path)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # the name of an arm or a patient may hold dollars
    vector = path.suffix == ".svg"
    # Neither dates nor random ids, so that the same run gives the same bytes.
    options: dict[str, Any] = {"metadata": {"Date": None}} if vector else {}
    with replacing(path) as temporary, rc_context({"svg.hashsalt": "pclseg"}):
        figure.savefig(temporary, format=path.suffix[1:], **options)
