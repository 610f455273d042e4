"""The paper's figures, one by one.

    python -m benchmarks.composing.figures 1 --data DATA              # densities of single pixels (fits one posterior)
    python -m benchmarks.composing.figures 3 5 6 4 9 10               # from the rows and draws that runs left behind
    python -m benchmarks.composing.figures 7 8 --data DATA --images 8 # sigma from 1 to 1e-5 (its own fits, resumable)

PNG files in docs/benchmarks/composing. 1, 3 and 5 take ``--case`` (faces-top, faces-top, mnist-bottom), 3 and 6 ``--method`` (svi),
1 ``--image``. 7 and 8 take the options of ``benchmarks.composing.smoothing``; without ``--data`` they draw what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.command import command_of, in_one_line
from benchmarks.composing import smoothing
from benchmarks.composing.figures import bump, completions, samples, sensing, sigma, uncertainty
from benchmarks.composing.run import RESULTS

FIGURES: dict[int, Callable[[argparse.Namespace], Path]] = {
    1: uncertainty.main,
    3: completions.figure_3,
    4: sensing.main,
    5: completions.figure_5,
    6: completions.figure_6,
    7: sigma.figure_7,
    8: sigma.figure_8,
    9: bump.main,
    10: samples.main,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.composing.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("numbers", type=int, nargs="+", choices=list(FIGURES))
    parser.add_argument("--data", help="folder with the images and the perceptual networks' weights")
    parser.add_argument("--case")
    parser.add_argument("--method")
    parser.add_argument("--image", type=int, default=0, help="place of the image that figure 1 is of")
    parser.add_argument("--rows", type=int, default=6, help="of figures 3 and 5")
    parser.add_argument("--draws", type=int, help="of figure 1")
    parser.add_argument("--images", type=int, default=8, help="of figures 7 and 8")
    parser.add_argument("--variants", nargs="+", default=list(smoothing.SCALES), choices=list(smoothing.SCALES))
    parser.add_argument("--steps", type=int, help="of each fit of figures 7 and 8")
    parser.add_argument("--paper", action="store_true", help="figures 7 and 8 with the paper's settings")
    parser.add_argument("--shrink", type=int, default=1, help="figure 1 with so many times fewer steps, to try it")
    parser.add_argument("--prior")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nice", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows are")
    parser.add_argument("--figures", type=Path, default=Path("docs/benchmarks/composing"), help="where pictures go")
    options = parser.parse_args(arguments)
    options.command = command_of("benchmarks.composing.figures", arguments)
    torch.set_num_threads(options.threads)
    given = options.case
    for number in options.numbers:
        options.case = given or ("mnist-bottom" if number in (7, 8) else None)
        if number == 1 and options.data is None:
            parser.error("figure 1 needs --data")
        with in_one_line(parser, f"figure {number}"):
            FIGURES[number](options)


if __name__ == "__main__":
    main()
