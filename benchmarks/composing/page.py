"""The documentation page: what was measured and how, its tables, and room for what is to be learned from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.composing import cells as markdown
from benchmarks.composing.bootstrap import number
from benchmarks.composing.cases import CASES, MEASUREMENTS, Case
from benchmarks.composing.methods import METHODS, applies
from benchmarks.composing.paper import TABLES, TITLES
from benchmarks.composing.studies import study_sections
from flowinv.store import write_text

Cells = dict[str, Any]
ALWAYS = ("mnist-bottom", "faces-top", "faces-subpixels")
TABLE_2 = ("avi", "semi-amortized", "svi", "lmc", "ambient", "ivom")
OPEN, CLOSE = "<!-- findings: written by hand, kept -->", "<!-- /findings -->"

INTRODUCTION = """# Composed flows: the paper's experiments on a CPU

Counterparts of tables 1 and 2 and of the figures of Whang, Lindgren and Dimakis, *Composing Normalizing Flows for Inverse
Problems*, made by `python -m benchmarks.composing` (the module's docstring has the commands). This page is written by
`python -m benchmarks.composing.tables` from the rows in `benchmarks/results/composing`.

"""

PROTOCOL = """## How it was measured

- **Images.** The first of a fixed random permutation of the test images, which no prior was trained on; learning rates and
  step sizes were chosen on a few validation images (table below) by the energy score of the draws, of one point by its
  squared error. In compressed sensing points are tuned at every number of measurements, SVI at 250 for all of them.
- **Points.** CSGM and IvOM stand here twice: with a point from a random start of its own for each draw, as the paper has them in
  its table 2, tuned by the energy score, and as one point, the estimate they were made for, tuned by its squared error. A point
  of CSGM is the best of three restarts.
- **Observations.** y = A(x) exactly, and sigma only smooths, as in the paper: .1 for digits, .05 for colour. Every method sees
  the same y. Colour images have 5 bits. Random masks and matrices are drawn anew for each image.
- **Budget.** "Equal" is at most 1,000 prior passes for every chain or point and 5,000 of every fit, the draws that are kept
  aside; "paper" is the paper's lengths, rates and architectures, on fewer images. Amortized inference pays beforehand, in
  training. A Laplace start counts a pass for each measured element. Networks of SVI, LMC, CSGM and IvOM run in bfloat16 while
  stepping, those of Ambient VI, of the exact chains and of points at the paper's settings in float32, which costs these up to
  twice the seconds.
- **Seconds** are those of one processor thread, and of the wall beside them, of images solved in batches of the size that the
  method was given most often: chains and points by tens, fits by fours, amortized ones and fits of the paper's settings alone. The
  rest of a method's images count for its scores only.
- **Intervals** are 95 % bootstrap intervals over images (Fréchet and inception-type scores: value +- 1.96 bootstrap standard
  deviations). `of the mean of 32` is the error of the mean of 32 draws, that of chains of all states that were kept (some
  300). CSGM and IvOM have fewer points than 32, and so have chains of the paper's settings, of which the last states alone are
  kept: what the mean of 32 would have is reckoned from their error and their mean's.
- **Squared error** is summed over the image, in [0, 1] units: the paper's "MSE". A calibrated draw has twice the error of the
  posterior mean, so that less than that is over-confidence, and not merit. The **energy score** is the error that
  cannot be gamed so: its expectation is least for draws of the true posterior.
- **Perceptual** is {distance}.
  **Fréchet** is a distance of all draws to the test images, in {features}; beside it that of
  draws that all are the truth. It falls with the number of images, and with the diversity of draws: only methods with the
  same number of images and draws can be compared, and draws may have less than the truths.
  They have names of their own because they are neither LPIPS nor FID. **Diversity** is the mean perceptual distance of two
  draws, +- its standard deviation over pairs. **chi²** is the misfit per observed element in units of sigma²; y being free
  of noise, draws that fit have less than 1.
- **Paper's figures** are quoted beside, and are *not comparable* with ours: other prior, other networks, other images, a GPU.
  What can be compared is which method is ahead of which.

"""


def page(found: dict[str, Cells], studies: dict[str, Any], before: str | None, figures: list[str]) -> list[str]:
    """The page's parts in Markdown; ``before`` is the page as it was, whose findings are kept."""
    parts = [INTRODUCTION, findings(before), PROTOCOL.format(distance=_judge(found, 0), features=_judge(found, 1))]
    for name, case in CASES.items():
        if case.measurements is None and (name in ALWAYS or name in found):
            parts.append(case_section(case, found.get(name, {})))
    parts.append(sensing_section(found))
    parts.append(speed_section(found))
    parts += study_sections(studies, found)
    if figures:
        parts.append("## Figures\n\n" + "\n".join(f"![{name}](composing/{name})\n" for name in figures))
    return parts


def findings(before: str | None) -> str:
    """What stood between the marks, or room for it."""
    inside = "\n"
    if before is not None and OPEN in before and CLOSE in before:
        inside = before.split(OPEN, 1)[1].split(CLOSE, 1)[0]
    return f"{OPEN}{inside}{CLOSE}\n"


def read_page(path: Path) -> str | None:
    """A page as it stands, None where there is none yet."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


def write_page(path: Path, parts: Iterable[str]) -> None:
    """Parts, one after the other, whole or not at all; empty ones are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(part.rstrip() + "\n" for part in parts if part))
    print(f"written to {path}")


def _judge(found: dict[str, Cells], which: int) -> str:
    names = sorted({cells["judges"][which] for entry in found.values() for cells in entry.values()})
    return " or ".join(names) or "not known yet"


def cell(cells: Cells | None, name: str, digits: int = 3) -> str:
    """Value and interval of a method's column."""
    return markdown.text(cells["cells"].get(name) if cells else None, digits)


def value(cells: Cells | None, name: str, digits: int = 3) -> str:
    """The value alone."""
    return markdown.value(cells["cells"].get(name) if cells else None, digits)


def done(cells: Cells | None) -> str:
    """How many images there are of how many."""
    if cells is None:
        return "not run"
    images, planned, failed = cells["images"], cells["planned"], cells["failed"]
    text = str(images) if images + failed >= planned else f"{images} of {planned}"
    return text + (f", {failed} diverged" if failed else "")


def label(method: str) -> str:
    """A method's name in a table."""
    plain = method.removesuffix("-paper")
    return METHODS[plain].label + (", the paper's settings" if plain != method else "")


def case_section(case: Case, entry: Cells) -> str:
    """Quality, then cost and calibration, of all methods on a case."""
    asked = [name for name in METHODS if applies(name, case) and (case.name in ALWAYS or name in entry)]
    names = list(dict.fromkeys(name for name in (*asked, *entry) if name in entry))
    missing = [label(name) for name in asked if name not in entry]
    text = f"## {TITLES.get(case.name, case.name)}\n\n`{case.name}`, sigma {case.sigma:g}, {case.draws} draws of each image.\n\n"
    if entry:
        text += "\n".join(part for part in (quality(case, entry, names), differences(entry), costs(entry)) if part)
    return text + (f"\nNot run: {', '.join(missing)}.\n" if missing else "")


def quality(case: Case, entry: Cells, names: list[str]) -> str:
    """Scores of the draws."""
    digits, paper = case.data == "mnist", TABLES.get(case.name, {})
    head = [
        "method",
        "images",
        "Fréchet ↓",
        "of the truths",
        *["inception-type ↑"] * digits,
        "squared error of a draw ↓",
        "of the mean of 32 ↓",
    ]
    head += ["perceptual ↓", "diversity", "energy score ↓", *["paper: FID, MSE, LPIPS"] * bool(paper)]
    rows = []
    for name in names:
        cells = entry.get(name)
        row = [label(name), done(cells), cell(cells, "frechet"), _of_truths(cells)] + [
            cell(cells, "inception_type")
        ] * digits
        point = cells is not None and cells["mean_of"] == 1
        mean = markdown.NONE if point else cell(cells, "squared_error_mean")
        row += [cell(cells, "squared_error"), mean, cell(cells, "perceptual")]
        spread = f"{value(cells, 'diversity')} ± {value(cells, 'diversity_std')}"
        row += [spread if cells and not point else markdown.NONE, cell(cells, "energy_score")]
        rows.append(row + [_quoted(paper.get(name, {}))] * bool(paper))
    return markdown.table(head, rows)


def _of_truths(cells: Cells | None) -> str:
    """The Fréchet distance of the truths themselves, each as many times as there are draws of it."""
    found = cells["frechet_of_truths"] if cells else None
    return markdown.NONE if found is None or math.isnan(found) else number(found)


def differences(entry: Cells) -> str:
    """By how much each method exceeds SVI, on the images that both were run on."""
    columns = {
        "frechet": "Fréchet",
        "squared_error": "squared error of a draw",
        "squared_error_mean": "of the mean of 32",
    }
    columns |= {"perceptual": "perceptual", "energy_score": "energy score"}
    rows = []
    for name, cells in entry.items():
        if found := cells.get("paired"):
            count = str(found["squared_error"]["count"])
            rows.append([label(name), count, *(markdown.text(found.get(column)) for column in columns)])
    if not rows:
        return ""
    text = "More than SVI, image by image (95 % of paired bootstraps; where the interval holds no 0, the difference is there;\n"
    text += "`of the mean` of one point is its error less that of SVI's mean):\n\n"
    return text + markdown.table(["method", "images", *columns.values()], rows)


def costs(entry: Cells) -> str:
    """What the draws cost, and what the solvers say of them."""
    head = ["method", "prior passes per image", "seconds per draw", "seconds per image", "wall seconds"]
    head += ["chi²", "ELBO, nats"]
    rows = []
    for name, cells in entry.items():
        row = [label(name), value(cells, "passes", 4), cell(cells, "seconds_per_draw"), value(cells, "cpu_seconds")]
        row += [value(cells, "seconds"), cell(cells, "chi_squared"), cell(cells, "elbo", 4)]
        rows.append([*row, value(cells, "acceptance"), value(cells, "rhat")])
    return markdown.table([*head, "acceptance", "R-hat of lp"], rows)


def _quoted(figures: dict[str, float]) -> str:
    return _listed(figures, ("fid", "squared_error", "lpips"))


def _listed(figures: dict[str, float], names: tuple[str, ...]) -> str:
    """The paper's figures of those names, one dash where it has none of them."""
    return (
        ", ".join(number(figures[k], 4) if k in figures else markdown.NONE for k in names) if figures else markdown.NONE
    )


def speed_section(found: dict[str, Cells]) -> str:
    """Table 2: quality and seconds per draw."""
    head = ["method", "digits: Fréchet ↓", "perceptual ↓", "seconds per draw ↓", "paper: FID, LPIPS, seconds"]
    head += ["faces: Fréchet ↓", "perceptual ↓", "seconds per draw ↓", "paper: FID, LPIPS, seconds"]
    rows = []
    for name in TABLE_2:
        row = [label(name)]
        for case in ("mnist-bottom", "faces-top"):
            cells, paper = found.get(case, {}).get(name), TABLES[case].get(name, {})
            row += [value(cells, "frechet"), value(cells, "perceptual"), value(cells, "seconds_per_draw", 2)]
            row.append(_listed(paper, ("fid", "lpips", "seconds")))
        rows.append(row)
    text = "## Quality and speed (table 2)\n\n"
    text += "Processor seconds of one thread per draw (on a GPU wall seconds), the fit included.\n\n"
    return text + markdown.table(head, rows)


def sensing_section(found: dict[str, Cells]) -> str:
    """Figure 4 as a table: PSNR over the number of measurements."""
    entries = {m: found[f"faces-cs-{m}"] for m in MEASUREMENTS if f"faces-cs-{m}" in found}
    names = [name for name in METHODS if any(name in entry for entry in entries.values())]
    if not entries:
        return ""
    points = [name for name in names if METHODS[name].draws == 1]
    columns = [(n, c) for n in names for c in ("psnr", "psnr_mean") if c == "psnr" or n not in points]
    head = ["measurements of 3072", "images", *(METHODS[n].label + ", mean" * (c == "psnr_mean") for n, c in columns)]
    head += [f"SVI's mean over {METHODS[n].label}" for n in points if "svi" in names]
    rows = []
    for m, entry in entries.items():
        row = [str(m), str(max(cells["images"] for cells in entry.values()))]
        row += [cell(entry.get(name), column) for name, column in columns]
        leads = [(entry.get(name) or {}).get("paired", {}).get("psnr_of_mean") for name in points if "svi" in names]
        rows.append(row + [markdown.text(lead) for lead in leads])
    text = "## Compressed sensing of faces (figure 4)\n\n`faces-cs-M --draws 4`: PSNR in dB of single draws or points and of their "
    text += "mean, sigma .05, "
    text += "over the images that all were run on; "
    means = {n: max(e[n]["mean_of"] or 0 for e in entries.values() if n in e) for n in names if n not in points}
    text += "the mean is over " + ", ".join(f"{n} ({METHODS[name].label})" for name, n in means.items()) + ".\n\n"
    return text + markdown.table(head, rows)
