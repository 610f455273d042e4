"""One HTML page that shows a posterior and answers for every pixel; it needs no network and no other file."""

from __future__ import annotations

import html
import json
import platform
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__, store
from .payload import Facts, gather, payload


def write_report(
    posterior: Any,
    path: str | Path,
    *,
    generator: torch.Generator | None = None,
    seed: int = 0,
    draws: int = 256,
    truth: Tensor | None = None,
    title: str | None = None,
    observations: int = 16,
    budget: int = 24_000_000,
    overwrite: bool = False,
) -> Path:
    """Write the report on ``posterior`` to ``path`` (.html) and return the path.

    ``draws`` posterior draws are taken with ``generator`` (or one seeded with ``seed``); every number on the page is
    computed from them by ``flowinv.summaries``, so the page and Python agree. ``truth`` (B, *shape), where known, is
    shown beside the posterior and never used otherwise. The first ``observations`` of the B are shown. Where draws x
    observations x elements exceeds ``budget`` bytes, fewer draws are taken (at least 32), and the page says how many.

    An existing file is kept, with FileExistsError, unless ``overwrite``.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a report is one file, for example {path / 'report.html'}")
    store.refuse_existing(path, overwrite)
    if draws < 2:
        raise ValueError(f"a report needs at least 2 draws, got {draws}")
    if truth is not None and tuple(truth.shape) != (posterior.batch, *posterior.shape):
        raise ValueError(f"truth must have shape {(posterior.batch, *posterior.shape)}, got {tuple(truth.shape)}")
    generator = generator if generator is not None else torch.Generator().manual_seed(seed)
    facts = gather(posterior, generator, draws, truth, observations, budget)
    text = _fill(title or "Posterior report", posterior, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(path, text)
    return path


def _fill(title: str, posterior: Any, facts: Facts) -> str:
    """The template with its marks replaced, in one pass, so that nothing put in is looked at again."""
    assets = resources.files(__package__)
    # "</" would end the script element wherever it stood in a string
    data = (
        json.dumps(payload(facts), separators=(",", ":"), allow_nan=False)
        .replace("</", "<\\/")
        .replace("<!--", "<\\u0021--")
    )
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(_subtitle(posterior, facts)),
        "target": _target(facts),
        "provenance": _rows(provenance(posterior, facts)),
        "style": (assets / "style.css").read_text(encoding="utf-8"),
        "script": (assets / "app.js").read_text(encoding="utf-8"),
        "data": data,
    }
    template = (assets / "template.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _subtitle(posterior: Any, facts: Facts) -> str:
    task = _task(posterior)
    size = " x ".join(map(str, facts.shape))
    draws = f"{facts.draws.shape[0]} draws"
    if facts.draws.shape[0] < facts.asked:
        draws += f" (of {facts.asked} asked for, to keep this page small)"
    count = facts.batch if facts.batch == facts.total else f"the first {facts.batch} of {facts.total}"
    return f"{task} · {count} observation{'s' if facts.total != 1 else ''} of {size} · {draws}"


def _target(facts: Facts) -> str:
    text = (
        "What is shown is the <strong>posterior under the learned prior</strong>: "
        "right for this prior, operator and noise, no more."
    )
    if not facts.normalised:
        text += (
            " Its likelihood is not normalised, so this is an <strong>unnormalised generalised posterior</strong>: "
            "its ELBO is a bound up to an unknown constant, comparable only within this problem."
        )
    return text


def _task(posterior: Any) -> str:
    spec = getattr(posterior.problem.operator, "spec", None)
    if isinstance(spec, Mapping) and "task" in spec:
        return str(spec["task"])
    return type(posterior.problem.operator).__name__


def provenance(posterior: Any, facts: Facts) -> dict[str, str]:
    """What the page's reader needs to make it again: task, likelihood, prior, seed, versions, and the ELBO in nats."""
    operator, likelihood = posterior.problem.operator, posterior.problem.likelihood
    spec = getattr(operator, "spec", None)
    rows: dict[str, Any] = {
        "target": "posterior under the learned prior"
        if facts.normalised
        else "unnormalised generalised posterior under the learned prior",
        "task": json.dumps(spec, default=str) if spec else repr(operator),
        "likelihood": repr(likelihood),
    }
    # of the prior as it was given: the problem's own copy is folded, and has other weights
    rows["prior fingerprint (SHA-256)"] = (
        getattr(posterior.problem, "prior_fingerprint", None) or posterior.prior.fingerprint()
    )
    if facts.elbo is not None:
        errors = facts.elbo_se if facts.elbo_se is not None else [None] * len(facts.elbo)
        shown = [f"{v:.2f}" + ("" if e is None else f" ± {e:.2f}") for v, e in zip(facts.elbo, errors, strict=True)]
        rows["ELBO ± standard error (nats)"] = "; ".join(shown)
    rows["draws on this page"] = facts.draws.shape[0]
    rows["seed of these draws"] = facts.seed
    told = _flatten(getattr(posterior, "provenance", None) or {})
    rows.update((k, v) for k, v in told.items() if v != rows["prior fingerprint (SHA-256)"])
    rows.setdefault("python", platform.python_version())
    rows.setdefault("torch", torch.__version__)
    rows.setdefault("flowinv", __version__)
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in rows.items()}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _rows(table: Mapping[str, str]) -> str:
    cells = (f'<tr><th scope="row">{html.escape(k)}</th><td>{html.escape(v)}</td></tr>' for k, v in table.items())
    return "\n".join(cells)
