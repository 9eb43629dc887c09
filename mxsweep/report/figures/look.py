"""Give figures their look: Okabe and Ito's colours, which colour-blind readers can tell apart, shapes and dashes.

Lines differ in colour, marker and dash at once, and every second marker is hollow, so that they can be told apart in
grey, too.
"""

from dataclasses import dataclass
from typing import Any

# Dark colours follow light ones, to show on top of them; the yellow comes last, being faint on white. Black is the
# baseline's.
COLOURS = ("#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#F0E442")
# As paths within -1…1, which Vega and the page's legend draw alike.
SHAPES = (
    "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0Z",  # circle
    "M-0.9,-0.9H0.9V0.9H-0.9Z",  # square
    "M0,-1.05L1.05,0.85H-1.05Z",  # triangle
    "M0,-1.2L1,0L0,1.2L-1,0Z",  # diamond
    "M0,1.05L1.05,-0.85H-1.05Z",  # triangle down
    "M-0.35,-1H0.35V-0.35H1V0.35H0.35V1H-0.35V0.35H-1V-0.35H-0.35Z",  # plus
    "M-1,-0.5L-0.5,-1L0,-0.5L0.5,-1L1,-0.5L0.5,0L1,0.5L0.5,1L0,0.5L-0.5,1L-1,0.5L-0.5,0Z",  # cross
    "M0,-1.2L0.3,-0.4L1.15,-0.37L0.48,0.15L0.7,0.97L0,0.5L-0.7,0.97L-0.48,0.15L-1.15,-0.37L-0.3,-0.4Z",  # star
)
DASHES: tuple[tuple[float, ...], ...] = ((1, 0), (8, 3), (2, 2), (8, 3, 2, 3), (4, 3))
SIZE, LINE_WIDTH = 8.5, 1.9  # pixels, of a marker and a line
BASELINE_DASHES: tuple[tuple[float, ...], ...] = ((5, 3), (9, 3), (3, 3), (9, 3, 3, 3))

INK = "currentColor"  # in the page, where the theme says which
FILE_INK = "#000000"
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True)
class Look:
    """Describe how one line is drawn."""

    colour: str
    shape: str
    dash: tuple[float, ...]
    size: float  # pixels
    width: float  # pixels
    filled: bool


def look(index: int) -> Look:
    """Return the look of the line with this number; 280 are different."""
    return Look(
        COLOURS[index % len(COLOURS)],
        SHAPES[index % len(SHAPES)],
        DASHES[index % len(DASHES)],
        SIZE,
        LINE_WIDTH,
        index % 2 == 0,
    )


def config(ink: str) -> dict[str, Any]:
    """Return the Vega configuration of all figures: what is no data is drawn in `ink`."""
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    lines = {"domainColor": ink, "tickColor": ink, "gridColor": ink, "gridOpacity": 0.15, "domainOpacity": 0.6}
    return {
        "font": FONT,
        "background": "white" if ink == FILE_INK else "transparent",
        "view": {"stroke": None},
        "axis": {**text, **lines, "titlePadding": 8, "labelLimit": 220},
        "legend": text,
        "title": {"color": ink, "subtitleColor": ink, "fontSize": 14, "subtitleFontSize": 11, "anchor": "start"},
        "text": {"color": ink, "fontSize": 12},
    }
