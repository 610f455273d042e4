"""docs/benchmarks/closed_forms.md: the Gaussian images and the SAT instances, whose posteriors are known, from their rows.

    python -m benchmarks.gaussian_images
    python -m benchmarks.hardness --json benchmarks/results/hardness.json
    python -m benchmarks.closed_forms

Findings, between their marks, are written by hand and kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.command import in_one_line
from benchmarks.composing.bootstrap import number
from benchmarks.composing.cells import NONE, table
from benchmarks.composing.page import findings, read_page, write_page

RESULTS = Path("benchmarks/results")
LABELS = {"uf20-91": "d 20, m 91"}  # in the rows the size goes by SATLIB's name for it
PAGE = Path("docs/benchmarks/closed_forms.md")
INTRODUCTION = """# Solvers where the posterior is known

Made by `python -m benchmarks.gaussian_images` and `python -m benchmarks.hardness --json benchmarks/results/hardness.json`; this
page by `python -m benchmarks.closed_forms`.

"""
COLUMNS = {
    "mean_error": "error of the mean",
    "monte_carlo": "of exact draws",
    "law_mean_error": "in the limit",
    "sd_ratio": "ratio of deviations",
    "law_sd_ratio": "in the limit",
    "law_kl": "KL, image",
    "law_kl_unobserved": "KL, hidden half",
    "acceptance": "acceptance",
    "rhat_pixels": "largest R-hat of a pixel",
    "ess_pixels": "median ESS of pixels",
    "objective": "objective",
    "objective_least": "least possible",
    "seconds": "seconds",
}


def gaussian(found: dict[str, Any]) -> str:
    lines = [
        [name, *(NONE if row.get(c) is None else number(float(row[c]), 3) for c in COLUMNS)]
        for name, row in found["rows"].items()
    ]
    return (
        "## 784 pixels, Gaussian prior and noise\n\n"
        "Images of 28x28 pixels with a Gaussian prior, the upper half observed with noise of standard deviation .1 (for PL-MCMC "
        "without). *Error of the mean*: root mean square over pixels, in posterior standard deviations; *of exact draws*: what "
        "exact draws of the same effective number would have. *In the limit*: computed from the fitted weights, LMC's recursion "
        "or the normal equations, without Monte-Carlo error. *Ratio of deviations* to the posterior's. KL: from the posterior, "
        "in nats. Point solvers: their own objective, and its least value. Wall seconds of one thread.\n\n"
        + table(["solver", *COLUMNS.values()], lines)
    )


def hardness(found: dict[str, Any]) -> str:
    names = list(found["rows"][0]["solvers"])
    lines = []
    for row in found["rows"]:
        shares = [f"{row['solvers'][name]['satisfied']:.3g}" for name in names]
        lines.append(
            [
                LABELS.get(row["size"], row["size"]),
                f"{row['solutions']} / {row['solutions_by_sat_solver']}",
                f"{row['log10_prior_mass_of_cores']:.1f}",
                f"{row['oracle']['satisfied']:.3g}",
                *shares,
                f"{row['coin']['satisfied']:.3g}",
            ]
        )
    head = ["instance", "solutions (SAT solver's)", "log10 of the cores' prior mass", "exact sampler", *names, "coin"]
    return (
        "## Random 3-SAT as a posterior (Theorem 1)\n\n"
        "Share of draws whose signs satisfy the formula. The exact sampler is the oracle that knows the assignments; *coin* is "
        "the share among uniform random assignments. The formulas are random ones of d variables and m clauses; d 20 and m 91 are "
        "the sizes of SATLIB's uf20-91, whose own formulas these are not.\n\n" + table(head, lines)
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows are")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    with in_one_line(parser):
        read = {
            name: json.loads((options.out / f"{name}.json").read_text()) for name in ("gaussian_images", "hardness")
        }
    parts = [
        INTRODUCTION,
        findings(read_page(options.page)),
        gaussian(read["gaussian_images"]),
        hardness(read["hardness"]),
    ]
    write_page(options.page, parts)


if __name__ == "__main__":
    main()
