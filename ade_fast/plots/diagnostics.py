"""Diagnostics of an unroll by its steps."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..dynamics import Diagnostics
from .axes import DATA, EXACT, RAW, TRUTH, current, heading, new_figure

# Panels: (title, logarithmic, lines (figure, label, colour)).
_PANELS = {
    "energy": (
        "energy error H - H₀",
        False,
        (("energy_error", "mean", EXACT), ("energy_error_max", "largest |H - H₀|", TRUTH)),
    ),
    "acceptance": (
        "acceptance and clipped fractions",
        False,
        (
            ("acceptance", "would-be acceptance", RAW),
            ("grad_clipped", "∇f clipped", DATA),
            ("momentum_clipped", "v clipped", TRUTH),
        ),
    ),
    "norms": ("norms", False, (("grad_norm", "‖∇f(x)‖", DATA), ("momentum_norm", "‖v‖", EXACT))),
    "adjoint": (
        "adjoint of the backward pass",
        True,
        (("adjoint_norm", "mean ‖(dx, dv)‖", EXACT), ("adjoint_max", "largest", TRUTH)),
    ),
}


def diagnostics(diagnostics: Diagnostics, ax: Axes | None = None, *, panel: str = "energy") -> Axes:
    """Some of an unroll's diagnostics over its steps t.

    Args:
        diagnostics: of a dynamics after a call with ``diagnostics=True``.
        ax: where to draw, pyplot's current axis by default.
        panel: "energy", "acceptance" (with the clipped fractions), "norms" or "adjoint".

    Returns:
        The axis.

    Raises:
        TypeError: there are no diagnostics. ValueError: there is no such panel, or nothing to draw in it.
    """
    rows = _rows(diagnostics)
    if panel not in _PANELS:
        raise ValueError(f"plots.diagnostics: panel must be one of {', '.join(_PANELS)}, got {panel!r}")
    if not _has(rows, panel):
        raise ValueError(f"plots.diagnostics: there is no {panel} in these diagnostics of {diagnostics.layer}")
    ax, (title, logarithmic, lines) = current(ax), _PANELS[panel]
    for name, label, colour in lines:
        if name in rows:
            ax.plot(rows[name], color=colour, linewidth=1.4, marker=".", markersize=5, label=label)
    if logarithmic:
        ax.set_yscale("log")
    elif panel == "acceptance":
        ax.set_ylim(-0.03, 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("step t")
    ax.set_title(title, fontsize=10)
    ax.legend(frameon=False, fontsize=8)
    return ax


def unroll(diagnostics: Diagnostics, *, title: str = "") -> Figure:
    """All that there is of an unroll's diagnostics, as a new figure.

    Raises:
        TypeError: there are no diagnostics.
    """
    rows = _rows(diagnostics)
    panels = [panel for panel in _PANELS if _has(rows, panel)]
    figure = new_figure(3.6 * len(panels), 3.2)
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(diagnostics, ax, panel=panel)
    heading(figure, title or f"{diagnostics.layer}, {len(diagnostics)} evaluations of ∇f", "")
    return figure


_draw = diagnostics


def _rows(diagnostics: Diagnostics) -> dict[str, list[float]]:
    if not isinstance(diagnostics, Diagnostics):
        raise TypeError(
            f"plots.diagnostics: diagnostics must be those of a dynamics after a call with diagnostics=True, got "
            f"{type(diagnostics).__name__}"
        )
    return diagnostics.rows()


def _has(rows: dict[str, list[float]], panel: str) -> bool:
    _, _, lines = _PANELS[panel]
    return lines[0][0] in rows or (panel == "acceptance" and "grad_clipped" in rows)
