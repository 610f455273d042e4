"""docs/benchmarks/restoration.md, from the rows and times that the other commands left.

    python -m benchmarks.restoration.page

Findings, between their marks, are written by hand and kept.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.composing.bootstrap import Interval, indices, mean_interval, number
from benchmarks.composing.cells import NONE, table
from benchmarks.composing.page import findings, read_page, write_page
from benchmarks.restoration.cases import BATCH, CASES, FACES, Case
from benchmarks.restoration.methods import METHODS, PACE, PACES, applies
from benchmarks.restoration.run import RESULTS, path_of
from benchmarks.restoration.store import best_weight

PAGE = Path("docs/benchmarks/restoration.md")
REFERENCE = "solverip"
INTRODUCTION = """# Restoring faces: point estimates with a flow prior

Counterparts of the tables and figures of *Generative Flows as a General Purpose Solution for Inverse Problems* on 32x32 faces,
made by the commands that `benchmarks/restoration/__init__.py` lists. This page is written by
`python -m benchmarks.restoration.page`.

"""
PROTOCOL = """## How it was measured

- **Faces**, the first of a fixed random permutation of the test images, in 5 bits, under the shipped `faces` prior. Denoising
  has noise of standard deviation .1; the other measurements are exact.
- **Steps.** Every point solver takes 500 steps of Adam at 5e-2. The paper's 1,500 at 5e-3 (MAP at 1.5e-3; `--pace paper`) do not
  converge under this prior, and neither does a third of them at three times the rate (`--pace third`, with whose weights the
  former is run). `--pace long` and `--pace longer` have 1,500 and 4,500 steps whose rate falls from 5e-2 to 0, with the
  weights of the 500.
  Networks run in bfloat16 while stepping (not those of the 1x1-coupling flow); what is reported is decoded in full precision.
- **Weights** (alpha, gamma; sigma of the posterior mean) are the best by PSNR on 32 validation faces (16 for the last five
  rows, 4 for the mean).
- **Posterior mean**: of 256 draws of `svi`, started at the Laplace approximation (`from-laplace`) around the estimate of CSGM
  (denoising) or the L1 solver (exact measurements), at most 300 steps of 8 draws.
- **PSNR** is the mean over images, data range 1. **Ahead** is the mean difference to the likelihood-regularised L1 solver on the
  *same* images: what was run on 32 faces is compared by it alone. **Pooled** is the paper's: over batches of 32 images (or what
  there is of them) floored to 5 bits, before the logarithm, where hard images count for more. **Paper** is what the paper
  reports, pooled as well, with its square root taken out (dB = 2 x printed - 48.13): other prior, other faces, so that orders
  compare, values do not.
- **Intervals** are 95 % bootstrap intervals over images; seconds are processor seconds of one thread for one image, solved in a
  batch of 32 (the mean: of 4).

"""


def read(path: Path) -> dict[str, Any] | None:
    """A method's file; None where it was not run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def whole(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that did not fail."""
    return [row for row in rows if "failed" not in row]


def pooled(rows: list[dict[str, Any]]) -> Interval:
    """The paper's PSNR of batches of 32 images, averaged, with an interval over images."""
    values = [row["squared_error_5bit"] for row in sorted(rows, key=lambda r: r["image"])]

    def decibels(errors: list[float]) -> float:
        error = sum(errors) / len(errors)
        return 20 * math.log10(255) - 10 * math.log10(error) if error else math.inf

    def score(errors: list[float]) -> float:
        batches = [errors[i : i + BATCH] for i in range(0, len(errors), BATCH)]
        return sum(map(decibels, batches)) / len(batches)

    again = sorted(score([values[i] for i in found]) for found in indices(len(values), 500).tolist())
    return Interval(score(values), again[12], again[-13], len(values))


def ahead(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> Interval | None:
    """How many dB a method is ahead of another on the images that both have; None where there are none."""
    theirs = {row["image"]: row["psnr"] for row in others}
    gains = [row["psnr"] - theirs[row["image"]] for row in rows if row["image"] in theirs]
    return mean_interval(gains) if gains else None


def seconds(rows: list[dict[str, Any]]) -> float:
    """Of one image, over those solved in full batches."""
    most = max(row["together"] for row in rows)
    taken = [row["cpu_seconds"] for row in rows if row["together"] == most]
    return sum(taken) / len(taken)


def case_section(case: Case, out: Path) -> str:
    paper = {name: (decibels, ssim) for name, decibels, ssim in case.paper}
    used = [name for name, method in METHODS.items() if applies(method, case)]
    files = {(name, PACE): read(path_of(out, case, name, "test")) for name in used}
    for name, pace in product(used, [pace for pace in PACES if pace != PACE]):
        if METHODS[name].settings and (more := read(path_of(out, case, name, "test", pace))):
            files[name, pace] = more
    if len({found["settings"]["prior"] for found in files.values() if found}) > 1:
        raise ValueError(f"rows of {case.name} were made with more than one prior: run them again, or move them away")
    best = files.get((REFERENCE, PACE))
    lines = []
    for (name, pace), found in files.items():
        method, known = METHODS[name], paper.get(name)
        label = method.label + ("" if pace == PACE else f" (pace {pace})")
        quoted = f"{known[0]:.2f} / {known[1]:.3f}" if known else NONE
        rows = whole(found["rows"]) if found else []
        if found is None or not rows:
            lines.append([label, "not run", *[NONE] * 6, quoted])
            continue
        failed = len(found["rows"]) - len(rows)
        gain = ahead(rows, whole(best["rows"])) if best and found is not best else None
        weights = method.weights(case)
        weight = rows[0]["weight"]
        edge = len(weights) > 2 and weight in ({min(weights), max(weights)} - {0})
        lines.append(
            [
                label,
                str(len(rows)) + (f", {failed} diverged" if failed else ""),
                (f"{weight:.3g}" + (" (last tried)" if edge else "")) if len(weights) > 1 else NONE,
                mean_interval([row["psnr"] for row in rows]).text(4),
                gain.text(2) if gain else NONE,
                pooled(rows).text(4),
                mean_interval([row["ssim"] for row in rows]).text(3),
                number(seconds(rows), 2),
                quoted,
            ]
        )
    head = [
        "method",
        "images",
        "weight",
        "PSNR, dB ↑",
        "ahead, dB",
        "pooled, dB ↑",
        "SSIM ↑",
        "seconds",
        "paper: dB / SSIM",
    ]
    plain = case.name.capitalize()
    title = plain if case.prior == FACES.prior else f"{case.task.capitalize()}, under the prior `{case.prior}`"
    return f"## {title}\n\n{table(head, lines)}"


def tuning_section(out: Path) -> str:
    lines = []
    for case in CASES.values():
        for name, method in METHODS.items():
            found = read(path_of(out, case, name, "validation"))
            if len(method.weights(case)) < 2 or found is None:
                continue
            scores = []
            for weight in sorted({row["weight"] for row in found["rows"]}):
                rows = [row for row in found["rows"] if row["weight"] == weight]
                values = [row["psnr"] for row in whole(rows)]
                score = f"{sum(values) / len(values):.2f}" if values else NONE
                failed = len(rows) - len(values)
                scores.append(f"{weight:.3g}: {score}" + (f" ({failed} diverged: not taken)" if failed else ""))
            lines.append([case.name, method.label, *scores])
    if not lines:
        return ""
    most = max(map(len, lines))
    lines = [[*line, *[""] * (most - len(line))] for line in lines]
    return (
        "## Weights, on validation faces\n\nweight: PSNR in dB, over 32 faces (16 for the last five methods, 4 for the mean).\n\n"
        + table(["task", "method", *["tried"] * (most - 2)], lines)
    )


def pace_section(out: Path) -> str:
    """Pace third beside the default one, each with its best weight on validation faces."""
    lines = []
    for case in CASES.values():
        for name, method in METHODS.items():
            slow, fast = (read(path_of(out, case, name, "validation", pace)) for pace in ("third", PACE))
            if method.settings is None or slow is None or fast is None:
                continue
            cells = []
            for found in (slow, fast):
                best = best_weight(found["rows"], {row["weight"] for row in found["rows"]})
                if best is None:
                    cells += [NONE] * 3
                    continue
                weight, score = best
                misfits = [row["misfit"] for row in found["rows"] if row["weight"] == weight]
                cells += [f"{score:.2f}", f"{weight:.3g}", number(sum(misfits) / len(misfits), 3)]
            lines.append([case.name, method.label, *cells])
    if not lines:
        return ""
    head = ["task", "method", "third: PSNR, dB", "weight", "misfit", "converging: PSNR, dB", "weight", "misfit"]
    return (
        "## Has it converged?\n\n500 steps at three times the paper's rate, and at 5e-2; each with its best weight, on validation "
        "faces. How far the first goes beside the paper's 1,500 steps, at the same weights: rows `pace third` and `pace paper` "
        "above. Misfits are L2 or L1 as the method has "
        "them, summed over an image's measurements.\n\n" + table(head, lines)
    )


def speed_section(out: Path) -> str:
    path = out / "speed.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for name, entry in found["flows"].items():
        cells = [
            f"{entry[v]['inverse']['median']:.0f} / {entry[v]['iteration']['median']:.0f}"
            for v in ("plain", "frozen", "bf16")
        ]
        ratio = f"{entry['speed_up']['frozen']:.2f} / {entry['speed_up']['bf16']:.2f}"
        memory = " / ".join(f"{entry['kept_mb'][v]:.0f}" for v in ("plain", "frozen", "bf16"))
        work = f"{entry['gflop'] / found['batch']:.2f}"
        lines.append([name, f"{entry['weights'] / 1e6:.1f} M", work, *cells, ratio, memory])
    head = ["flow", "weights", "GFLOP per image", "plain", "frozen", "frozen, bf16", "speed-up", "MB kept"]
    return (
        "## Table 2: time of an inverse and of an iteration\n\n"
        f"Processor milliseconds of one thread for a batch of {found['batch']} images: inverse / iteration of the point solver, "
        f"on {found['machine']['cpu']}. GFLOP count a multiplication and an addition as two. Plain: trainable weights and "
        "torch's default memory format, as published codes run. Speed-up: of an iteration, frozen and frozen in bf16 over "
        "plain. MB kept: what an iteration holds for its backward pass, in the three. The paper (on a GPU): 4.46 against "
        "10.86 ms for an inverse.\n\n" + table(head, lines)
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows are")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    parts = [INTRODUCTION, findings(read_page(options.page)), PROTOCOL]
    parts += [case_section(case, options.out) for case in CASES.values()]
    parts += [tuning_section(options.out), pace_section(options.out), speed_section(options.out)]
    pictures = sorted((options.page.parent / "restoration").glob("figure-*.png"))
    if pictures:
        parts.append("## Figures\n\n" + "\n".join(f"![{p.stem}](restoration/{p.name})\n" for p in pictures))
    write_page(options.page, parts)


if __name__ == "__main__":
    main()
