"""Tables 1 and 2 and the studies, from whatever rows there are: Markdown for docs/benchmarks, and JSON.

    python -m benchmarks.composing.tables

Writes benchmarks/results/composing/tables.json and docs/benchmarks/composing.md. What stands in that page between the two
"findings" marks is written by hand and kept. Cells that are missing say how many images are done.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.composing.aggregate import summary
from benchmarks.composing.cases import CASES
from benchmarks.composing.methods import METHODS
from benchmarks.composing.page import page, read_page
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
        for budget in ("equal", "paper"):
            for method in METHODS:
                cells = summary(result_path(out, case.name, method, budget), case, out)
                if cells is not None:
                    entry[method if budget == "equal" else f"{method}-paper"] = cells
        if entry:
            found[case.name] = entry
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows are")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks/composing.md"))
    options = parser.parse_args(arguments)
    found = tables(options.out)
    studies = {name: read_rows(options.out / f"{name}.json") for name in STUDIES}
    write_text(options.out / "tables.json", to_json(found))
    options.page.parent.mkdir(parents=True, exist_ok=True)
    before = read_page(options.page)
    figures = options.page.parent / "composing"
    write_text(options.page, page(found, studies, before, sorted(path.name for path in figures.glob("figure-*.png"))))
    print(f"{sum(map(len, found.values()))} methods in {len(found)} cases; written to {options.page}")


if __name__ == "__main__":
    main()
