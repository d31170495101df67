"""How the project's pages are made: templates that escape every word and share one look.

A page is one file: it loads nothing and runs no script.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reward.figures import Figure
from sft.files import write_text

if TYPE_CHECKING:
    from reward.judge_card import Card

ASSETS = Path(__file__).parent / "assets"
_FORMS = {"share": (100, 1, " %"), "coefficient": (1, 2, ""), "points": (1, 2, "")}


def environment(folder: Path) -> Environment:
    """Return the environment of a folder's templates; `page.css` of this package is beside them."""
    return Environment(
        loader=FileSystemLoader([folder, ASSETS]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def written(figure: Figure, kind: str) -> tuple[str, str]:
    """Write a figure's value and its interval: ("63.3 %", "51.3 to 71.4").

    Args:
        figure: One that was measured.
        kind: "share", "coefficient" or "points" (1..5), see `reward.agreement.Line`.

    Raises:
        ValueError: The figure was not measured.
    """
    if figure.value is None or figure.low is None or figure.high is None:
        raise ValueError(f"not measured: {figure.missing}")
    scale, digits, unit = _FORMS[kind]
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    value, low, high = (
        f"{round(scale * x, digits) + 0.0:.{digits}f}"
        for x in (figure.value, figure.low, figure.high)
    )
    return value + unit, f"{low} to {high}"


def counted(figure: Figure) -> str:
    """Write what is behind a figure: "n = 1217 of 111 prompts"."""
    return f"n = {figure.n}" + (f" of {figure.groups} prompts" if figure.groups != figure.n else "")


def bar(figure: Figure, kind: str) -> dict[str, float]:
    """Return where a figure lies on its axis, in percent of the width: left, width and value.

    The axis of a share is 0..1, of a coefficient -1..1, of points -4..4.
    """
    if figure.value is None or figure.low is None or figure.high is None:
        raise ValueError(f"not measured: {figure.missing}")
    low, high = {"share": (0, 1), "coefficient": (-1, 1), "points": (-4, 4)}[kind]

    def at(x: float) -> float:
        return round(100 * (min(high, max(low, x)) - low) / (high - low), 2)

    left, right = at(figure.low), at(figure.high)
    return {"left": left, "width": round(right - left, 2), "value": at(figure.value)}


def write_card(card: Card, path: Path) -> None:
    """Write a judge card as one HTML page.

    Raises:
        StorageError: The disk is full, or the folder may not be written.
    """
    page = environment(ASSETS).get_template("judge_card.html.j2")
    write_text(path, page.render(card=card, written=written, counted=counted, bar=bar))
