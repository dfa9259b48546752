"""The results of bench/images*.py and bench/reversible.py to markdown. Needs nothing but Python."""

from __future__ import annotations

import tables

METHODS = {
    "recipe": "**`train --data digits`**",
    "exact": "the same, exact gradient, λ = 0",
    "exact, lambda of (9)": "the same, exact gradient, λ = 1/σ² of (9)",
    "T = 30": "`train`, 30 steps and 1,000 chains, truncated",
    "T = 30, exact": "the same, exact gradient",
    "leapfrog, exact, lambda 0": "leapfrog, exact gradient, λ = 0",
    "torchebm": "torchebm's persistent CD",
}
PEERS = {
    "eager-truncated": "eager 2T, truncated",
    "eager-2t": "eager 2T, exact",
    "eager-t1": "eager T+1, exact",
    "checkpoint": "`torch.utils.checkpoint`, exact",
    "ade-graph": "**ade_fast**, graph",
    "ade-masks": "**ade_fast**, masks",
    "ade-states": "**ade_fast**, states",
    "ade-reversible": "**ade_fast**, reversible",
    "eager-t1-bf16": "eager T+1, exact, bf16",
    "eager-truncated-bf16": "eager 2T, truncated, bf16",
    "ade-graph-bf16": "**ade_fast**, graph, bf16",
    "ade-masks-bf16": "**ade_fast**, masks, bf16",
    "bare": "the convolutions of an exact one alone",
    "jax": "JAX, exact",
    "jax-checkpoint": "JAX, exact, `jax.checkpoint`",
}


def digits(results: tables.Results) -> str:
    """A line for each method and seed, the test digits' first."""
    head = [
        "",
        "seed",
        "updates",
        "ms per update, one thread",
        "score",
        "of the test digits'",
        "nearest training digit",
        "tenth",
    ]
    rows = []
    for row in sorted(results["rows"], key=lambda row: ([*METHODS].index(row["method"]), row["seed"])):
        name = METHODS[row["method"]]
        if not rows:
            test = row["test"]
            cells = [f"{test['score']:.2f}", "1", f"{test['nearest']:.2f}", f"{test['nearest_low']:.2f}"]
            rows.append([f"{row['images']} test digits", "", "", "", *cells])
        if "skipped" in row:
            rows.append([name, str(row["seed"]), str(row["updates"]), row["skipped"], "-", "-", "-", "-"])
            continue
        share = f"{row['score'] / row['test']['score']:.2f}"
        cells = [f"{row['score']:.2f}", share, f"{row['nearest']:.2f}", f"{row['nearest_low']:.2f}"]
        rows.append([name, str(row["seed"]), str(row["updates"]), tables.number(row["ms"]), *cells])
    commits = ", ".join(dict.fromkeys(row["commit"] for row in results["rows"]))
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)} Rows made at {commits}."


def iteration(results: tables.Results) -> str:
    """A line for each peer that ran: milliseconds, the time over the truncated gradient's, peak memory, the error."""
    cases = results["cases"]
    head = [""]
    for case in cases:
        head += [f"`{case['case']}`, ms", "over truncated", "peak, MB", "error"]
    rows = []
    for name in [name for name in PEERS if any(name in case["peers"] for case in cases)]:
        cells = []
        for case in cases:
            found = case["peers"].get(name, {})
            over = tables.ratio(case["peers"], "ms", name, "eager-truncated")
            peak = found.get("peak_bytes")
            cells += [tables.ms(found), "-" if over is None else f"{over:.2f}"]
            cells += ["-" if peak is None else tables.number(peak / 1e6), tables.error(found)]
        rows.append([PEERS[name], *cells])
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)}"


def reversible(results: tables.Results) -> str:
    """A line for each dynamics and number of steps."""
    names = {"leapfrog": "leapfrog", "damped": "damped ½, clips ±0.01, samples clipped"}
    head = ["", "T", "peak, MB: states", "reversible", "pixels on a bound", "error of reversible"]
    rows = []
    for row in results["rows"]:
        peaks = [tables.number(row[f"{memory}_peak_bytes"] / 1e6) for memory in ("states", "reversible")]
        share = f"{100 * row['on_bound']:.0f} %"
        rows.append([names[row["dynamics"]], f"{row['steps']:,}", *peaks, share, tables.error(row)])
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)}"


GRADIENTS = {
    "full": "exact",
    "truncated": "truncated (stopped is the same)",
    "full, step learned": "exact, η learned",
    "truncated, step learned": "truncated (stopped is the same), η learned",
}


def gradients(results: tables.Results) -> str:
    """A line for each gradient and seed, the test digits' first."""
    head = ["", "seed", "updates", "ms per update", "η at the end", "score", "of the test digits'", "kinds", "wavering"]
    head += ["Fréchet", "nearest", "tenth"]
    rows = []
    for row in sorted(results["rows"], key=lambda row: ([*GRADIENTS].index(row["method"]), row["seed"])):
        cells = [GRADIENTS[row["method"]], str(row["seed"]), f"{row['updates']:,}", tables.number(row["ms"])]
        if "skipped" in row:
            rows.append([*cells, row["skipped"], *["-"] * 7])
            continue
        if not any(line[0].endswith("test digits") for line in rows):
            test = row["test"]
            rows.insert(0, [f"{row['images']} test digits", *[""] * 4, f"{test['score']:.2f}", "1", *_rest(test)])
        score = f"{row['score']:.2f} ± {row['score_error']:.2f}"
        share = f"{row['score'] / row['test']['score']:.2f}"
        rows.append([*cells, f"{row['step_size']:.3f}", score, share, *_rest(row)])
    commits = ", ".join(dict.fromkeys(row["commit"] for row in results["rows"]))
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)} Rows made at {commits}."


def runs(results: tables.Results) -> str:
    """A line for each run, and before it one for its test images where no line has those yet: a set without test images
    of its own has others for each seed."""
    head = ["", "seed", "updates", "score", "of the test images'", "kinds", "wavering"]
    head += ["Fréchet", "nearest", "tenth"]
    rows, known = [], []
    for row in results["rows"]:
        test, name = row["test"], row["data"]
        if (name, test) not in known:
            known.append((name, test))
            rows.append([f"{row['images']} test images of {name}", "", "", f"{test['score']:.2f}", "1", *_rest(test)])
        error = "" if row["score_error"] is None else f" ± {row['score_error']:.2f}"
        cells = [f"{row['score']:.2f}{error}", f"{row['score'] / test['score']:.2f}", *_rest(row)]
        rows.append([f"`train --data {name}`", str(row["seed"]), f"{row['updates']:,}", *cells])
    commits = ", ".join(dict.fromkeys(row["commit"] for row in results["rows"]))
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)} Rows made at {commits}."


def density(results: tables.Results) -> str:
    """A line for each run: bits per pixel of the Gaussians, and at least so many of f at each temperature."""
    rows = results["rows"]
    temperatures = sorted({entry["temperature"] for row in rows for entry in row["temperatures"]}, reverse=True)
    head = [
        "",
        "seed",
        "a Gaussian",
        "a mixture of Gaussians",
        "`ade.fit` on rows",
        *(f"f, temperature {t:g}" for t in temperatures),
    ]
    lines = []
    for row in rows:
        cells = [f"{row['gaussian']:.2f}", f"{row['mixture']:.2f} ({row['components']})"]
        cells.append(f"{row['tight']['lower']:.3f}, {row['tight']['upper']:.3f}")
        found = {entry["temperature"]: entry for entry in row["temperatures"]}
        cells += [
            f"≥ {found[t]['bits']:.2f} (down {found[t]['down']:.2f})" if t in found else "-" for t in temperatures
        ]
        lines.append([f"`train --data {row['data']}`", str(row["seed"]), *cells])
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    return f"{tables.table(head, lines)}\n\n{tables.origin(results)} Rows made at {commits}."


def _rest(scores: dict[str, float]) -> list[str]:
    keys = ("kinds", "wavering", "frechet", "nearest", "nearest_low")
    return [f"{scores[key]:.2f}" if key in scores else "-" for key in keys]
