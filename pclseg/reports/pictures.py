"""Figures as parts of a page: drawn, and embedded without a file beside it."""

import base64
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

TYPES = {".svg": "image/svg+xml", ".png": "image/png", ".webp": "image/webp"}
MOST_SVG_BYTES = 150_000  # of a picture with so much in it that pixels are smaller


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """An embedded image.

    Attributes:
        source: a data URI.
        alt: what it shows, for who does not see it.
        caption: text below it.
        wide: it scrolls rather than shrinks where the screen is narrow.
    """

    source: str
    alt: str
    caption: str
    wide: bool


def picture(
    draw: Callable[[Path], None],
    *,
    alt: str,
    caption: str,
    suffix: str = ".svg",
    wide: bool = False,
) -> Picture:
    """Draws a picture.

    Args:
        draw: writes the file it is given, in the format of its suffix.
        alt: as in Picture.
        caption: as in Picture.
        suffix: ".svg", which becomes ".png" where that file is large; ".webp" for
            photographs.
        wide: as in Picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"figure{suffix}"
        draw(path)
        if path.suffix == ".svg" and path.stat().st_size > MOST_SVG_BYTES:
            path = path.with_suffix(".png")
            draw(path)
        encoded = base64.b64encode(path.read_bytes()).decode()
    source = f"data:{TYPES[path.suffix]};base64,{encoded}"
    return Picture(source=source, alt=alt, caption=caption, wide=wide)
