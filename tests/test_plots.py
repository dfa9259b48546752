"""Pictures: what is on which axis, for every number of dimensions; and the best temperature."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from training_cases import generator

from ade_fast import plots
from ade_fast.training import plots as files
from ade_fast.training.temperature import best_scale

N = 400
HISTORY = [
    {"update": 0, "nll": 60.0, "ess": 0.01, "initial_ess": 0.01, "mmd2": 0.3},
    {"update": 100, "nll": 3.0, "ess": 0.3, "initial_ess": 0.1, "mmd2": 1e-3},
    {"update": 200, "nll": 2.9, "ess": 0.5, "initial_ess": 0.2, "mmd2": -1e-4},
]


def normal(n: int, d: int, std: float = 1.0, seed: int = 7) -> torch.Tensor:
    return std * torch.randn(n, d, generator=generator(seed))


def log_normal(std: float = 1.0, constant: float | None = None):
    """log N(0, std² I), or -|x|²/2 std² plus another constant."""

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        right = -x.shape[1] * math.log(std * math.sqrt(2 * math.pi))
        return -0.5 * (x / std).square().sum(1) + (right if constant is None else constant)

    return log_prob


def texts(axes) -> list[str]:
    """The legend's entries and the texts inside of an axis."""
    legend = axes.get_legend()
    return [text.get_text() for text in [*(legend.get_texts() if legend else []), *axes.texts]]


def learned(d: int, **changes):
    given = {
        "exact": normal(N, d, seed=8),
        "log_prob": log_normal(1.2),
        "true_log_prob": log_normal(),
        "title": "name",
        "scores": "NLL 1.42",
    }
    return plots.learned(normal(N, d), normal(N, d, 3.0, seed=9), **{**given, **changes})


# --- what was learned


def test_a_plane_shows_exact_and_raw_samples_over_the_data_and_both_densities():
    figure = learned(2)
    exact, raw, density, truth, colours = figure.axes
    for ax, entry in (exact, "exact samples, of $p_f$"), (raw, "raw samples of the dual sampler"):
        assert [len(cloud.get_offsets()) for cloud in ax.collections] == [N, N]
        assert [cloud.get_label() for cloud in ax.collections] == ["data", entry]
        below, above = ax.collections
        assert below.get_sizes() > 4 * above.get_sizes()  # a halo: neither hides the other
        assert texts(ax)[:2] == ["data", entry]
    for ax in (exact, raw, density, truth):
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("$x_{1}$", "$x_{2}$")
        assert ax.get_xlim() == exact.get_xlim() and len(ax.get_xticks()) > 2 and len(ax.get_yticks()) > 2
    assert (density.get_title(), truth.get_title()) == ("learned density exp f / Z", "true density")
    assert colours.get_ylabel() == "density (log scale)"
    ours, theirs = density.images[0], truth.images[0]
    assert ours.get_clim() == theirs.get_clim()
    assert ours.get_clim()[1] == pytest.approx(1 / (2 * math.pi), rel=1e-2)  # the higher peak is the truth's
    assert ours.get_clim()[1] / ours.get_clim()[0] == pytest.approx(1000)
    assert figure.get_suptitle() == "name\nNLL 1.42"


def test_samples_outside_of_the_window_are_counted():
    data, samples = normal(N, 2), normal(N, 2)
    samples[:7] += 100.0
    samples[7, 0] = math.nan
    within = plots.window(data, margin=1.0)
    figure = plt.figure()
    ax = plots.points(data, samples, figure.add_subplot(), within=within)
    assert texts(ax) == ["data", "samples", "8 of 400 outside"]
    assert texts(plots.points(data, data, figure.add_subplot(), within=within)) == ["data", "samples"]
    plt.close(figure)


def test_what_is_not_known_has_no_panel():
    assert [ax.get_title() for ax in learned(2, true_log_prob=None).axes[2:3]] == ["learned density exp f / Z"]
    assert len(learned(2, true_log_prob=None).axes) == 4  # with the colour bar
    alone = learned(2, exact=None, log_prob=None, true_log_prob=None)
    assert [texts(ax)[1] for ax in alone.axes] == ["raw samples of the dual sampler"]


def test_a_line_shows_histograms_and_curves():
    exact, raw, linear, log = learned(1).axes
    assert texts(exact)[:2] == ["data", "exact samples, of $p_f$"] and texts(raw)[0] == "data"
    for ax, scale in (linear, "linear"), (log, "log"):
        assert ax.get_yscale() == scale
        assert [line.get_label().split(",")[0] for line in ax.lines] == ["learned", "true"]
    for line, std in zip(linear.lines, (1.2, 1.0), strict=True):
        x, y = line.get_data()
        expected = log_normal(std)(torch.as_tensor(x)[:, None]).exp().numpy()
        assert abs(y - expected).max() < 1e-6 and len(x) > 500


@pytest.mark.parametrize("d", [3, 7])
def test_more_dimensions_show_planes_of_the_first_coordinates(d):
    figure, shown = learned(d), min(d, 5)
    grid = [figure.axes[i * shown : (i + 1) * shown] for i in range(shown)]
    assert len(figure.axes) == shown**2
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["data", "exact samples, of $p_f$ (below)", "raw samples of the dual sampler (above)"]
    exact, raw = normal(N, d, seed=8), normal(N, d, 3.0, seed=9)
    for row, column, points in (2, 0, exact), (0, 2, raw):
        drawn = torch.as_tensor(grid[row][column].collections[1].get_offsets().data)
        torch.testing.assert_close(drawn, points[:, [column, row]].double())
    assert [ax.get_xlabel() for ax in grid[-1]] == [f"$x_{{{i + 1}}}$" for i in range(shown)]
    assert [row[0].get_ylabel() for row in grid[1:]] == [f"$x_{{{i + 1}}}$" for i in range(1, shown)]
    assert len(learned(3, scores="word " * 40).get_suptitle().splitlines()) > 2  # a long heading is wrapped
    assert ("the first 5 of 7 coordinates" in figure.get_suptitle()) == (d == 7)


def test_the_mass_in_the_window_is_the_densitys_integral_there():
    """exp f without its Z shows: the integral is not 1."""
    within = [(-1.0, 2.0), (-5.0, 5.0)]
    figure = plt.figure()
    ax = plots.density(log_normal(), within)
    assert ax is figure.axes[0]  # pyplot's own
    expected = 0.5 * (math.erf(2 / math.sqrt(2)) + math.erf(1 / math.sqrt(2)))
    assert texts(ax) == [f"mass in this window {expected:.3f}"]
    unnormalised = plots.density(log_normal(constant=0.0), within, figure.add_subplot())
    assert texts(unnormalised) == [f"mass in this window {2 * math.pi * expected:.3f}"]
    plt.close(figure)


def test_normalising_within_the_window_finds_the_constant():
    data, x = normal(20_000, 2).double(), normal(50, 2).double()
    log_prob = files.normalised_within(log_normal(0.5, constant=3.0), data)
    torch.testing.assert_close(log_prob(x), log_normal(0.5)(x), atol=1e-6, rtol=0)


def test_a_window_is_square_unless_units_differ():
    data = normal(10_000, 2)
    data[0] = 1e6  # one wild point does not make the rest a dot
    (left, right), (low, high) = plots.window(data * torch.tensor([1.0, 2.0]))
    assert right - left == pytest.approx(high - low) and 12 < right - left < 18
    (left, right), (low, high) = plots.window(data * torch.tensor([1.0, 100.0]))
    assert high - low > 50 * (right - left)
    (constant,) = plots.window(torch.full((10, 1), 3.0))
    assert constant[0] < 3 < constant[1]


# --- how it converges


@pytest.mark.parametrize("d", [1, 2, 4])
def test_convergence_shows_training_steps_and_scores(d):
    snapshots = [(100 * k, normal(N, d, 3.0 - 0.2 * k)) for k in range(9)]
    stages = [normal(N, d, 3.0 - 0.3 * t) for t in range(4)]
    figure = plots.convergence(normal(N, d), snapshots, stages, HISTORY, 200, entropy=2.84, title="name", scores="s")
    over_training, training, over_steps, steps, scores = figure.subfigs
    shown = [[ax.get_title() for ax in part.axes if ax.get_visible()] for part in (training, steps)]
    assert shown[0] == ["update 0", "update 200", "update 300", "update 500", "update 600", "update 800"]
    assert shown[1] == ["$x^{0}$", "$x^{1}$", "$x^{2}$", "$x^{3}$"]
    figure.canvas.draw()
    for strip, part, name in (
        (over_training, training, "samples, over the training"),
        (over_steps, steps, "samples, over the steps of the dynamics"),
    ):
        assert [text.get_text() for text in strip.legends[0].get_texts()] == ["data", name]
        assert not any(strip.legends[0].get_window_extent().overlaps(ax.title.get_window_extent()) for ax in part.axes)
        assert all((ax.collections if d > 1 else ax.patches) for ax in part.axes if ax.get_visible())  # the data
    nll, ess, mmd2 = scores.axes
    assert texts(nll) == ["validation", "data's entropy, 2.840", "chosen: update 200"]
    assert texts(ess) == ["sampler", "q⁰ alone", "chosen: update 200"] and ess.get_ylim() == (0, 1)
    assert mmd2.get_ylabel() == "MMD², raw samples" and nll.get_xlabel() == "updates of f"
    assert list(nll.lines[0].get_ydata()) == [60.0, 3.0, 2.9] and list(nll.lines[1].get_ydata()) == [2.84, 2.84]
    low, high = nll.get_ylim()
    assert low < 2.84 and 3.0 < high < 10  # the first values do not flatten the rest
    assert figure.get_suptitle() == "name\ns"


def test_scores_that_were_not_measured_have_no_panel():
    history = [{"update": 0, "mmd2": 0.1, "nll": None}, {"update": 5, "mmd2": math.nan}]
    figure = plots.convergence(normal(N, 2), [(0, normal(N, 2))], [normal(N, 2)], history, 0)
    (ax,) = figure.subfigs[4].axes
    assert ax.get_ylabel() == "MMD², raw samples" and list(ax.lines[0].get_ydata()) == [0.1]
    assert len(plots.convergence(normal(N, 2), [(0, normal(N, 2))], [normal(N, 2)], []).subfigs) == 4
    assert [len(part.axes) for part in plots.convergence(normal(N, 2), [], [], HISTORY).subfigs] == [3]


# --- files


@pytest.mark.parametrize("d", [1, 2, 3])
def test_pictures_are_written(d, tmp_path):
    data = normal(N, d)
    files.save_learned(tmp_path / "figure.png", data, data, data, log_normal(), log_normal(), title="t", scores="s")
    files.save_convergence(tmp_path / "convergence.png", data, [(0, data)], [data], HISTORY, 100, entropy=1.0)
    for name in ("figure.png", "convergence.png"):
        content = (tmp_path / name).read_bytes()
        width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
        assert content[:4] == b"\x89PNG" and len(content) > 10_000 and min(width, height) > 400


def test_stages_are_in_the_datas_units_when_asked():
    import ade_fast as ade

    sampler = ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(2, 0.1))
    potential = ade.GaussianPotential(2)
    plain = files.stages(potential, sampler, 5, generator())
    scaled = files.stages(potential, sampler, 5, generator(), to_data=lambda z: 100 * z + 3)
    assert len(plain) == 3
    for x, y in zip(plain, scaled, strict=True):
        torch.testing.assert_close(y, 100 * x + 3)


# --- the best temperature


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_best_temperature_by_weights_is_that_of_the_closed_form(d):
    """f = factor * log N(0, I): the best c is 1 / factor times d over the data's mean |x|²."""
    data, x = normal(5_000, d).double(), normal(100_000, d, 1.5, seed=3).double()
    log_q = log_normal(1.5)(x)
    for factor in (0.8, 1.0, 1.25):
        f, at_data = -0.5 * factor * x.square().sum(1), -0.5 * factor * data.square().sum(1)
        expected = d / data.square().sum(1).mean().item() / factor
        assert best_scale(f, at_data, f - log_q + 12.3) == pytest.approx(expected, rel=0.02)


def test_the_best_temperature_stays_within_its_interval_and_refuses_nonsense():
    values = torch.linspace(-3, 0, 50)
    assert best_scale(values, torch.tensor([0.5])) == pytest.approx(10)  # likelier the sharper
    assert best_scale(values, torch.tensor([-9.0])) == pytest.approx(0.01)
    with pytest.raises(ValueError, match=r"best_scale: log_weights must have values' shape \(50,\), got \(3,\)"):
        best_scale(values, values, torch.zeros(3))
    with pytest.raises(ValueError, match="best_scale: data_values must be finite"):
        best_scale(values, torch.tensor([math.nan]))
    with pytest.raises(ValueError, match=r"best_scale: values must be a vector, got shape \(50, 1\)"):
        best_scale(values[:, None], values)


# --- misuse


def test_misuse_is_named():
    data = normal(N, 2)
    with pytest.raises(ValueError, match=r"plots.learned: samples must have shape \(n, 2\) like data, got \(400, 3\)"):
        plots.learned(data, normal(N, 3))
    with pytest.raises(ValueError, match=r"plots.window: data must have shape \(n, d\), got \(2,\)"):
        plots.window(data[0])
    with pytest.raises(ValueError, match=r"plots.convergence: stages must have shape"):
        plots.convergence(data, [(0, data)], [data[:0]], [])
    with pytest.raises(ValueError, match=r"plots.convergence: there are no snapshots, no stages and no scores to draw"):
        plots.convergence(data, [], [], [{"update": 0}])
    with pytest.raises(ValueError, match=r"plots.curve: score must be one of nll, ess, mmd2, got 'loss'"):
        plots.curve(HISTORY, "loss")
    with pytest.raises(ValueError, match=r"plots.density: within must have 1 or 2 intervals, got 3"):
        plots.density(log_normal(), [(0.0, 1.0)] * 3)
