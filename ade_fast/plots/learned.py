"""What a model has learned: its samples over the data, and its density beside the true one."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .axes import EXACT, RAW, TRUTH, check, heading, new_figure, window
from .density import DECADES, Gridded, LogProb, draw_curve, draw_plane
from .points import corner, data_on_line, points

_MOST_DIMS = 5
_LEARNED, _TRUE = "learned density exp f / Z", "true density"
_EXACT, _RAW = "exact samples, of $p_f$", "raw samples of the dual sampler"


def learned(
    data: Tensor,
    samples: Tensor,
    exact: Tensor | None = None,
    log_prob: LogProb | None = None,
    true_log_prob: LogProb | None = None,
    *,
    title: str = "",
    scores: str = "",
) -> Figure:
    """Exact samples and raw samples over the data, the density at temperature 1, and beside it the true density.

    d = 2: clouds and planes; both densities have the same colours, logarithmic and three decades deep (:func:`density`
    says why). d = 1: histograms, and the densities as curves over the data, linear and logarithmic. d > 2: the planes
    of the first five coordinates, exact samples below the diagonal and raw ones above, and no density.

    Args:
        data: [n, d], in its own units.
        samples: [m, d], of the dual sampler as it is.
        exact: [k, d], of p_f itself (resampled by their weights, or Metropolis), or None.
        log_prob: [n, d] -> [n], log p_f in the data's units, normalised, or None.
        true_log_prob: the same of the data's own distribution, where it is known.
        title: first line of the heading.
        scores: second line: what was measured.

    Returns:
        A new figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: shapes do not fit.
    """
    check("learned", data, samples=samples, exact=exact)
    d = data.shape[1]
    if d > 2:
        n_dims = min(d, _MOST_DIMS)
        figure = new_figure(2.1 * n_dims + 0.4, 2.1 * n_dims + 1.0)
        corner(figure, data, samples, exact, n_dims)
        shown = "" if n_dims == d else f"the first {n_dims} of {d} coordinates"
        heading(figure, ", ".join(filter(None, (title, shown))), scores)
        return figure
    within = window(data)
    densities = {
        name: Gridded(function, within, data)
        for name, function in ((_LEARNED, log_prob), (_TRUE, true_log_prob))
        if function is not None
    }
    clouds = [(points_, name, colour) for points_, name, colour in ((exact, _EXACT, EXACT), (samples, _RAW, RAW))]
    clouds = [cloud for cloud in clouds if cloud[0] is not None]
    n_panels = len(clouds) + (len(densities) if d == 2 else 2 * bool(densities))
    figure = new_figure(4.1 * n_panels + (0.8 if densities and d == 2 else 0), 4.75)
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    for ax, (cloud, name, colour) in zip(axes, clouds, strict=False):
        points(data, cloud, ax, within=within, label=name, colour=colour, legend=False)
        _legend(ax)
    draw = _draw_planes if d == 2 else _draw_curves
    if densities:
        draw(axes[len(clouds) :], densities, data)
    heading(figure, title, scores)
    return figure


def _draw_planes(axes: Sequence[Axes], densities: dict[str, Gridded], data: Tensor) -> None:
    peak = max(float(gridded.values.max()) for gridded in densities.values())
    for ax, (name, gridded) in zip(axes, densities.items(), strict=True):
        draw_plane(ax, gridded, peak, colorbar=False)
        ax.set_title(name, fontsize=10)
    image = axes[0].images[0]
    axes[0].figure.colorbar(image, ax=list(axes), label="density (log scale)", extend="min", shrink=0.8)


def _draw_curves(axes: Sequence[Axes], densities: dict[str, Gridded], data: Tensor) -> None:
    """The same curves on a linear and on a logarithmic axis: the one shows blur, the other stray mass."""
    for ax, scale in zip(axes, ("linear", "log"), strict=True):
        within = next(iter(densities.values())).within[0]
        data_on_line(ax, data, within)
        for (name, gridded), colour, style in zip(densities.items(), (EXACT, TRUTH), ("-", "--"), strict=False):
            draw_curve(ax, gridded, f"{name.split()[0]}, mass {gridded.mass:.3f}", colour, style)
        if scale == "log":
            peak = max(float(gridded.values.max()) for gridded in densities.values())
            ax.set(yscale="log", ylim=(peak * 10.0**-DECADES, 2 * peak), ylabel="density (log scale)")
        ax.set_box_aspect(1)
        _legend(ax)


def _legend(ax: Axes) -> None:
    """Above the axis, where it hides nothing."""
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8.5, columnspacing=1.2)
