"""docs/benchmarks/restoration.md, from the rows and times that the other commands left.

    python -m benchmarks.restoration.page

Findings, between their marks, are written by hand and kept.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.composing.bootstrap import Interval, indices, mean_interval, number
from benchmarks.composing.cells import NONE, table
from benchmarks.composing.page import findings
from benchmarks.restoration.cases import BATCH, CASES, FACES, Case
from benchmarks.restoration.methods import METHODS, applies
from benchmarks.restoration.run import RESULTS, path_of

PAGE = Path("docs/benchmarks/restoration.md")
INTRODUCTION = """# Restoring faces: point estimates with a flow prior

Counterparts of the tables and figures of *Generative Flows as a General Purpose Solution for Inverse Problems* on 32x32 faces,
made by `python -m benchmarks.restoration` (the module's docstring has the commands). This page is written by
`python -m benchmarks.restoration.page`.

"""
PROTOCOL = """## How it was measured

- **Faces** of the first of a fixed random permutation of the test images, in 5 bits, under the shipped `faces` prior. Denoising
  has noise of standard deviation .1; the other measurements are exact.
- **Weights** (alpha, gamma; sigma of the posterior mean) are the best by PSNR on 32 validation faces (4 for the mean).
- **PSNR** is the mean over images, data range 1. **Pooled** is the paper's: over 32 images floored to 5 bits, before the
  logarithm (mean of the batches). **Paper** is what the paper reports, with its square root taken out (dB = 2 x printed - 48.13):
  other prior, other faces, so that orders compare, values do not.
- **Intervals** are 95 % bootstrap intervals over images; seconds are processor seconds of one thread for one image.

"""


def rows_of(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if "failed" not in row]


def pooled(rows: list[dict[str, Any]]) -> Interval:
    """The paper's PSNR of batches of 32 images, averaged, with an interval over images."""
    values = [row["squared_error_5bit"] for row in sorted(rows, key=lambda r: r["image"])]

    def score(errors: list[float]) -> float:
        batches = [errors[i : i + BATCH] for i in range(0, len(errors), BATCH)]
        return sum(20 * math.log10(255) - 10 * math.log10(sum(b) / len(b)) for b in batches) / len(batches)

    again = sorted(score([values[i] for i in found]) for found in indices(len(values), 500).tolist())
    return Interval(score(values), again[12], again[-13], len(values))


def case_section(case: Case, out: Path) -> str:
    paper = {name: (decibels, ssim) for name, decibels, ssim in case.paper}
    lines = []
    for name, method in METHODS.items():
        if not applies(method, case):
            continue
        rows = rows_of(path_of(out, case, name, "test"))
        known = paper.get(name)
        quoted = f"{known[0]:.2f} / {known[1]:.3f}" if known else NONE
        if not rows:
            lines.append([method.label, "not run", *[NONE] * 5, quoted])
            continue
        found = [mean_interval([row[k] for row in rows]) for k in ("psnr", "ssim")]
        weight = f"{rows[0]['weight']:g}" if len(method.weights(case)) > 1 else NONE
        seconds = number(sum(row["cpu_seconds"] for row in rows) / len(rows))
        lines.append(
            [
                method.label,
                str(len(rows)),
                weight,
                found[0].text(4),
                pooled(rows).text(4),
                found[1].text(3),
                seconds,
                quoted,
            ]
        )
    head = ["method", "images", "weight", "PSNR, dB ↑", "pooled, dB ↑", "SSIM ↑", "seconds", "paper: dB / SSIM"]
    title = case.name.capitalize() if case.prior == FACES.prior else f"{case.task.capitalize()}, under the prior `{case.prior}`"
    return f"## {title}\n\n{table(head, lines)}"


def tuning_section(out: Path) -> str:
    lines = []
    for case in CASES.values():
        for name, method in METHODS.items():
            weights = method.weights(case)
            rows = rows_of(path_of(out, case, name, "validation"))
            if len(weights) < 2 or not rows:
                continue
            scores = []
            for weight in weights:
                values = [row["psnr"] for row in rows if row["weight"] == weight]
                scores.append(f"{weight:g}: {sum(values) / len(values):.2f}" if values else f"{weight:g}: {NONE}")
            lines.append([case.name, method.label, *scores, *[""] * (4 - len(scores))])
    if not lines:
        return ""
    return "## Weights, on 32 validation faces\n\nweight: PSNR in dB.\n\n" + table(
        ["task", "method", *["tried"] * 4], lines
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
        f"on {found['machine']['cpu']}. Plain: trainable weights and torch's default memory format, as published codes run. "
        "Speed-up: of an iteration, frozen and frozen in bf16 over plain. MB kept: what an iteration holds for its backward pass, "
        "in the three. The paper (GPU, one image): 4.46 against 10.86 ms for an inverse.\n\n" + table(head, lines)
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows are")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    before = options.page.read_text(encoding="utf-8") if options.page.is_file() else None
    parts = [INTRODUCTION, findings(before), PROTOCOL, *(case_section(case, options.out) for case in CASES.values())]
    parts += [tuning_section(options.out), speed_section(options.out)]
    pictures = sorted((options.page.parent / "restoration").glob("figure-*.png"))
    if pictures:
        parts.append("## Figures\n\n" + "\n".join(f"![{p.stem}](restoration/{p.name})\n" for p in pictures))
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text("\n".join(part.rstrip() + "\n" for part in parts if part), encoding="utf-8")
    print(f"written to {options.page}")


if __name__ == "__main__":
    main()
