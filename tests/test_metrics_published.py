"""LPIPS, FID and the inception score through torchmetrics, with stand-ins for the weights that would be downloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from flowinv import metrics

pytest.importorskip("torchmetrics")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Extractor(nn.Module):
    """Bytes (N, 3, H, W) to D numbers: means of quarters of the channels."""

    num_features = 12

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return nn.functional.adaptive_avg_pool2d(x.float() / 25.6, 2).flatten(1)


def test_fid_is_the_frechet_distance_of_its_features() -> None:
    x, reference = images(5, 20, 1, 8, 8), images(90, 1, 8, 8, seed=1) * 0.8
    before = torch.get_rng_state()
    found = metrics.frechet_inception_distance(x, reference, Extractor())
    assert torch.equal(before, torch.get_rng_state())

    def features(v: Tensor) -> Tensor:
        grey = (v.flatten(0, -4) * 256).floor().byte().expand(-1, 3, -1, -1)
        return Extractor()(grey).double()[:, :4]

    # grey repeats each feature three times: three equal distances
    assert found == pytest.approx(3 * metrics.frechet_distance(features(x), features(reference)), rel=1e-3)


def test_scores_of_bytes_refuse_other_units_than_0_to_1() -> None:
    x, reference = images(5, 20, 1, 8, 8), images(90, 1, 8, 8, seed=1)
    told = r"images must hold values in \[0, 1\], got values from 0\.\d+ to 25"
    for wrong in ((255 * x, reference), (x, 255 * reference)):
        with pytest.raises(ValueError, match=told):
            metrics.frechet_inception_distance(*wrong, Extractor())
    with pytest.raises(ValueError, match=told):
        metrics.inception_score(255 * x, torch.Generator().manual_seed(0), 1, Extractor())


@pytest.mark.filterwarnings("ignore:std:UserWarning", "ignore:Metric `InceptionScore`:UserWarning")
def test_inception_score_of_its_logits() -> None:
    torchmetrics = pytest.importorskip("torchmetrics.image.inception")
    x, before = images(30, 3, 8, 8), torch.get_rng_state()
    found, spread = metrics.inception_score(x, torch.Generator().manual_seed(0), splits=1, extractor=Extractor())
    assert torch.equal(before, torch.get_rng_state()) and spread != spread
    with torch.random.fork_rng():
        metric = torchmetrics.InceptionScore(feature=Extractor(), splits=1)
        metric.update((x * 256).floor().byte())
        wanted = float(metric.compute()[0])
    assert found == pytest.approx(wanted, rel=1e-5) and found > 1
    parts = [metrics.inception_score(x, torch.Generator().manual_seed(s), 3, Extractor()) for s in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network\nand a second line")

    for module in ("torchvision.models._api", "torch_fidelity.feature_extractor_inceptionv3"):
        pytest.importorskip(module)
        monkeypatch.setattr(f"{module}.load_state_dict_from_url", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("call", "counterpart"),
    [
        (lambda: metrics.LPIPS("squeeze"), "STLPIPS"),
        (lambda: metrics.frechet_inception_distance(images(3, 1, 8, 8), images(3, 1, 8, 8)), "frechet_distance"),
        (lambda: metrics.inception_score(images(3, 1, 8, 8), torch.Generator()), "inception_type_score"),
    ],
)
def test_weights_out_of_reach(call: Callable[[], Any], counterpart: str) -> None:
    with pytest.raises(metrics.WeightsUnavailable, match=counterpart) as caught:
        call()
    assert "\n" not in str(caught.value) and "no network" in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("torchmetrics.image.lpip", lambda: metrics.LPIPS()),
        ("torchmetrics.image.fid", lambda: metrics.frechet_inception_distance(images(3, 1, 8, 8), images(3, 1, 8, 8))),
        ("torchmetrics.image.inception", lambda: metrics.inception_score(images(3, 1, 8, 8), torch.Generator())),
    ],
)
def test_without_torchmetrics(module: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"flowinv\[metrics\]"):
        call()


def test_lpips_with_stand_in_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of torchmetrics's LPIPS but for its trunk's weights, which are random ones."""
    models = pytest.importorskip("torchvision.models")
    functional = pytest.importorskip("torchmetrics.functional.image.lpips")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = models.squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    before = torch.get_rng_state()
    distance = metrics.LPIPS("squeeze")
    assert torch.equal(before, torch.get_rng_state()) and not any(p.requires_grad for p in distance.parameters())
    a, b = images(3, 3, 64, 64), images(3, 3, 64, 64, seed=1)
    wanted = functional.learned_perceptual_image_patch_similarity(
        a, b, net_type="squeeze", reduction=None, normalize=True
    )
    torch.testing.assert_close(distance(a, b), wanted)
    assert distance(a, a).abs().max() == 0
    small = images(1, 1, 28, 28).requires_grad_()
    value = distance(images(1, 1, 28, 28, seed=1), small)
    (gradient,) = torch.autograd.grad(value.sum(), small)
    assert value.shape == (1,) and torch.isfinite(gradient).all() and gradient.abs().max() > 0
    assert metrics.distance_to_truth(distance, images(2, 3, 1, 28, 28), images(3, 1, 28, 28)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"\(3, 3, 64, 64\) and \(1, 3, 64, 64\)"):
        distance(a, b[:1])
    with pytest.raises(ValueError, match="alex, vgg or squeeze"):
        metrics.LPIPS("resnet")  # type: ignore[arg-type]
