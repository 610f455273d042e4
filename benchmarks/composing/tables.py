"""Tables 1 and 2 and the studies, from whatever rows there are: Markdown for docs/benchmarks, and JSON.

    python -m benchmarks.composing.tables

Writes benchmarks/results/composing/tables.json and docs/benchmarks/composing.md. What stands in that page between the two
"findings" marks is written by hand and kept. Cells that are missing say how many images are done.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.command import in_one_line
from benchmarks.composing import semi, smoothing
from benchmarks.composing.aggregate import common_images, paired, summary
from benchmarks.composing.cases import CASES
from benchmarks.composing.methods import METHODS, TUNED
from benchmarks.composing.page import page, read_page, write_page
from benchmarks.composing.run import RESULTS, result_path
from benchmarks.composing.store import read_rows
from flowinv.store import to_json, write_text

Tables = dict[str, dict[str, dict[str, Any]]]
STUDIES = ("ideal", "semi", "avi_speed", "smoothing")


def tables(out: Path) -> Tables:
    """All cells: case, then method (with "-paper" for the paper's budget), then what ``aggregate.summary`` gives."""
    found: Tables = {}
    for case in CASES.values():
        entry = {}
        # in compressed sensing, methods stand side by side in a row of their own
        paths = [result_path(out, case.name, method) for method in METHODS]
        only = common_images(paths) if case.measurements is not None else None
        for budget in ("equal", "paper"):
            for method in METHODS:
                path, svi = result_path(out, case.name, method, budget), result_path(out, case.name, "svi")
                cells = summary(path, case, out, only)
                if cells is not None:
                    if path != svi:
                        cells["paired"] = {k: asdict(v) for k, v in paired(path, svi, out / "reference").items()}
                    entry[method if budget == "equal" else f"{method}-paper"] = cells
        if entry:
            found[case.name] = entry
    return found


def studies(out: Path) -> dict[str, Any]:
    """The studies' files, with summaries made anew from their rows."""
    found = {name: read_rows(out / f"{name}.json") for name in STUDIES}
    found["tuned"] = json.loads(TUNED.read_text(encoding="utf-8"))
    found["tried"] = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["rows"] for path in (out / "tuning").glob("*.json")
    }
    if (smoothed := found["smoothing"]) is not None:
        smoothed["summary"] = smoothing.summarise(smoothed["rows"])
        smoothed["gains"] = smoothing.gains(smoothed["rows"])
    if (started := found["semi"]) is not None:
        started["variants"] = semi.summarise(started["rows"], started["settings"]["lengths"][-1])
    return found


def write(path: Path, found: Tables, out: Path) -> None:
    """The page, whose figures are in a folder of its name."""
    figures = sorted(picture.name for picture in path.with_suffix("").glob("figure-*.png"))
    write_page(path, page(found, studies(out), read_page(path), figures))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows are")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks/composing.md"))
    options = parser.parse_args(arguments)
    with in_one_line(parser):
        found = tables(options.out)
        write_text(options.out / "tables.json", to_json(found))
        write(options.page, found, options.out)
        print(f"{sum(map(len, found.values()))} methods in {len(found)} cases")


if __name__ == "__main__":
    main()
