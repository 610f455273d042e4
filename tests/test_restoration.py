"""The restoration benchmark's own arithmetic: settings, measurements, the paper's decibels."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.restoration.cases import CASES, Case
from benchmarks.restoration.methods import METHODS
from benchmarks.restoration.page import pooled
from benchmarks.restoration.run import settings_of
from flowinv import Flow
from flowinv.flows import Elementwise


def normal_images() -> Flow:
    return Flow(Elementwise((3, 32, 32)), (3, 32, 32))


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_every_method_has_settings_for_every_weight(case: Case) -> None:
    for name, method in METHODS.items():
        settings_of(case, name, "prior", None)
        for weight in method.weights(case):
            if method.settings is not None:
                assert method.settings(weight).weight == (0 if "none" in name else weight)


def test_the_hole_and_the_noise_are_the_papers() -> None:
    prior, x = normal_images(), torch.full((2, 3, 32, 32), 0.5)
    hole = CASES["inpaint"].problem(prior, x, 0)
    assert int((~hole.operator.mask[0, 0]).sum()) == 169 and not hole.operator.mask[..., 9:22, 9:22].any()
    noisy = CASES["denoise"].problem(prior, x, 3)
    assert float((noisy.y - x).std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(noisy.y[1:], CASES["denoise"].problem(prior, x[1:], 4).y)


def test_pooled_decibels_by_hand() -> None:
    rows = [{"image": i, "squared_error_5bit": 64.0 if i < 32 else 256.0} for i in range(64)]
    expected = 20 * math.log10(255) - 10 * (math.log10(64) + math.log10(256)) / 2
    assert pooled(rows).value == pytest.approx(expected)
