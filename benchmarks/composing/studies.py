"""The studies' sections of the documentation page, each empty where the study was not run."""

from __future__ import annotations

from typing import Any

from benchmarks.composing.bootstrap import number
from benchmarks.composing.cells import table, text
from benchmarks.composing.methods import METHODS

Cells = dict[str, Any]
SMOOTHING = ("observed", "squared_error", "perceptual", "energy_score")


def study_sections(studies: dict[str, Any], found: dict[str, Cells]) -> list[str]:
    """What the studies found, in the page's order."""
    return [
        _tuned(studies.get("tuned"), studies.get("tried", {})),
        _ideal(studies.get("ideal"), found.get("mnist-bottom", {})),
        _semi(studies.get("semi")),
        _avi_speed(studies.get("avi_speed")),
        _smoothing(studies.get("smoothing")),
    ]


def _tuned(tuned: Cells | None, tried: dict[str, list[Cells]]) -> str:
    if not tuned:
        return ""
    rows = []
    for case, methods in tuned.items():
        for method, entry in methods.items():
            rows_of = [row["solver"] for row in tried.get(case, []) if row["method"] == method]
            settings = ", ".join(
                f"{k} {v}{_at_end(k, entry['settings'], rows_of)}" for k, v in entry["settings"].items()
            )
            criterion = METHODS[method].criterion
            score = f"{criterion.replace('_', ' ')} {number(entry[criterion])}"
            rows.append([case, METHODS[method].label, settings, score, str(entry["validation_images"])])
    prose = """## What settings were tuned to

Each on so few validation images that the choice may be chance; * marks the end of the grid that was tried.

"""
    return prose + table(["case", "method", "settings", "its score there", "validation images"], rows)


def _at_end(name: str, chosen: Cells, solvers: list[Cells]) -> str:
    """A star where a number is the least or the greatest that was tried, with the same start."""
    same = [solver for solver in solvers if solver.get("start") == chosen.get("start", solver.get("start"))]
    values = {solver[name] for solver in same if not isinstance(solver[name], str)}
    return "*" if len(values) > 1 and chosen[name] in (min(values), max(values)) else ""


def _ideal(study: dict[str, Any] | None, digits: Cells) -> str:
    if study is None:
        return ""
    prose = f"""## What squared error a draw should have

For draws of the true posterior E|draw - truth|² = 2 E|E[x|y] - truth|²: twice the least error that any estimate can have. A
network trained to regress digits on their bottom halves ({study["weights"]} weights, {study["images"]} images) has a squared
error of {text(study["all"])} on the hidden half of {study["tested"]} test digits, {text(study["case"])} on those of
`mnist-bottom`. That bounds the least error from above, so that calibrated draws have at most about
**{text(study["twice_case"])}** ({text(study["twice_all"])} over all test digits). Draws with clearly less are over-confident, drawn
towards the mode; draws with more are of a prior, or an approximation, that knows less than can be known. The paper's 22.13,
over the whole image and other digits, is to be read beside these figures.

"""
    rows = [["twice the regression's error", text(study["twice_case"]), text(study["case"])]]
    for name, cells in digits.items():
        single, mean = (cells["cells"].get(f"squared_error{k}_hidden") for k in ("", "_mean"))
        rows.append([name, text(single), text(mean)])
    return prose + table(["hidden half only", "squared error of a draw", "of the mean"], rows)


def _semi(study: dict[str, Any] | None) -> str:
    if study is None:
        return ""
    start = study["settings"]["reference"]["start"]
    scratch = "from a Laplace approximation" if start == "laplace" else f"from the {start}"
    prose = f"""## How many steps an amortised start saves

Steps that a fit needs to come within {study["within"]:g} nat of the ELBO that SVI {scratch} has after
{study["reference_steps"]} steps, over {study["observations"]} observations of `{study["case"]}`; a fit of every length in
turn, with a schedule of its own. Where it never did, the longest one counts; negative shortfalls are leads.

"""
    rows = [
        [
            name,
            number(entry["median"]),
            f"{entry['reached']} of {entry['of']}",
            text(entry["gap_at_0"]),
            text(entry["gap_at_50"]),
        ]
        for name, entry in study["variants"].items()
    ]
    return prose + table(["start", "median steps", "reached", "nats short after 0 steps", "after 50"], rows)


def _avi_speed(study: dict[str, Any] | None) -> str:
    if study is None:
        return ""
    prose = "## What an amortised draw costs\n\nMilliseconds per draw of a 28x28 image, median over rounds.\n\n"
    rows = [
        [str(e["threads"]), e["networks"], e["what"], number(e["ms"]), f"{number(e['lower'])} – {number(e['upper'])}"]
        for e in study["rows"]
    ]
    return prose + table(["threads", "networks", "batch", "ms per draw", "quartiles"], rows)


def _smoothing(study: dict[str, Any] | None) -> str:
    if study is None:
        return ""
    prose = """## The smoothing parameter (figures 7 and 8)

SVI at several sigma, from the target sigma all along or annealed down from 1, and with a perceptual distance in place of the
squared error (exp(-beta d), a generalised posterior). `observed` is the mean squared error on the observed half.

"""
    rows = [
        [e["variant"], number(e["scale"]), str(e["images"]), *(text(e[name]) for name in SMOOTHING)]
        for e in study["summary"]
    ]
    head = ["smoothing", "sigma or beta", "images", "observed", "squared error of a draw", "perceptual", "energy score"]
    gains = [
        [e["variant"], number(e["scale"]), str(e["images"]), *(text(e[name]) for name in SMOOTHING)]
        for e in study.get("gains", [])
    ]
    paired = """
More than the plain fits have, image by image (where the interval holds no 0, the difference is there): annealed ones than those at
the same sigma, those of a perceptual distance than those at sigma .1, the best of the plain ones.

"""
    return prose + table(head, rows) + (paired + table(head, gains) if gains else "")
