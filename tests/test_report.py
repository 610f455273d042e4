"""The report: its numbers are those of flowinv.summaries, in the file and in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct

import pytest
import torch
from gaussian_posterior import GaussianPosterior, upper_half

from flowinv import summaries
from flowinv.flows.flow import UNIT
from flowinv.operators import Operator
from flowinv.report import write_report
from flowinv.store import to_json

SHAPES = {"grey": (1, 10, 8), "colour": (3, 8, 8), "vector": (12,)}


def posterior_of(kind: str, batch: int = 2, **options) -> GaussianPosterior:
    shape = SHAPES[kind]
    return GaussianPosterior(
        shape, upper_half(shape), batch, support=UNIT if kind != "vector" else (-torch.inf, torch.inf), **options
    )


def data_of(path) -> dict:
    found = re.search(r'<script type="application/json" id="flowinv-data">(.*?)</script>', path.read_text(), re.S)
    assert found
    return json.loads(found[1])


def numbers(text: str) -> torch.Tensor:
    raw = base64.b64decode(text)
    return torch.tensor(struct.unpack(f"<{len(raw) // 4}f", raw))


def drawn(posterior, n: int, seed: int) -> torch.Tensor:
    return torch.cat(list(summaries.restartable(posterior, n, torch.Generator().manual_seed(seed))()))


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
def test_numbers_in_the_page_are_those_of_summaries(kind, tmp_path):
    posterior = posterior_of(kind)
    path = write_report(posterior, tmp_path / "report.html", seed=5, draws=80, truth=posterior.truth)
    data, held = data_of(path), summaries.from_tensor(drawn(posterior, 80, 5))
    density = summaries.density(held, UNIT if kind != "vector" else None)
    lower, upper = summaries.credible_interval(held, 0.9)
    expected = {
        "mean": summaries.mean(held),
        "std": summaries.std(held),
        "lower": lower,
        "upper": upper,
        "entropy": density.differential_entropy() if kind == "vector" else density.entropy(),
        "truth": posterior.truth,
    }
    for name, value in expected.items():
        assert torch.equal(numbers(data[name]), value.flatten().float()), name
    observed = numbers(data["observed"]).view(2, *posterior.shape)
    mask = upper_half(posterior.shape).expand(observed.shape)
    assert torch.equal(observed[mask], posterior.problem.y[mask]) and torch.isnan(observed[~mask]).all()
    # and they are right: the mean lies within Monte-Carlo error of the closed form
    error = posterior.exact_std / 80**0.5
    assert ((summaries.mean(held) - posterior.exact_mean).abs() < 4.5 * error).all()
    assert data["draws"] == 80 and len(base64.b64decode(data["levels"])) == 80 * 2 * posterior.truth[0].numel()


def test_chains_in_the_page(tmp_path):
    from exact_posterior import Exact

    from flowinv import Sampler, SamplingSettings

    settings = SamplingSettings("hmc", steps=40, warmup=20, chains=3, leapfrogs=5)
    posterior = Sampler(settings).solve(Exact((6,), batch=2).problem)
    data = data_of(write_report(posterior, tmp_path / "r.html", draws=500))
    assert data["draws"] == data["mixing"]["draws"] == 120 and data["mixing"]["exact"] is True
    assert data["mixing"]["rhat"] == pytest.approx(posterior.rhat.tolist())
    assert data["mixing"]["acceptance"] == pytest.approx(posterior.acceptance.mean(0).tolist())
    assert data["mixing"]["stuck"] == [False, False]
    assert data["elbo"] is None and data["trace"]["label"] == "log p(z, y)" and len(data["trace"]["curve"]) == 2
    assert data["trace"]["curve"][1][-1] == pytest.approx(-posterior.trace["potential"][-1][1])


def test_chains_that_never_moved_are_said_to_disagree(tmp_path):
    from exact_posterior import Exact

    from flowinv import Sampler, SamplingSettings
    from flowinv.cli.outcome import _summary

    settings = SamplingSettings("mala", steps=40, warmup=0, chains=3, step_size=1e4, adapt=False)
    posterior = Sampler(settings).solve(Exact((6,), batch=2).problem)
    assert posterior.acceptance.max() == 0
    data = data_of(write_report(posterior, tmp_path / "r.html", draws=500))
    assert data["mixing"]["stuck"] == [True, True] and data["mixing"]["rhat"] == [None, None]
    assert json.loads(to_json(_summary(posterior, 100, None, 0)))["rhat"] == ["inf", "inf"]


def test_data_fit_and_elbo_in_the_page(tmp_path):
    posterior = posterior_of("grey")
    data = data_of(write_report(posterior, tmp_path / "r.html", draws=64))
    fit = summaries.data_fit(posterior.problem, summaries.from_tensor(drawn(posterior, 64, 0)))
    assert data["fit"]["value"] == pytest.approx(fit.value.tolist(), rel=1e-6)
    assert data["fit"]["count"] == [40, 40] and abs(data["fit"]["value"][0] - 1) < 4 * (2 / 40) ** 0.5
    assert data["elbo"] == pytest.approx(posterior.elbo.tolist())
    assert len(data["trace"]["curve"]) == 2 and data["trace"]["label"] == "ELBO" and len(data["trace"]["step"]) == 200


def test_same_seed_same_page(tmp_path):
    posterior = posterior_of("grey")
    pages = [
        write_report(posterior, tmp_path / f"{i}.html", seed=s, draws=40).read_bytes() for i, s in enumerate((1, 1, 2))
    ]
    assert pages[0] == pages[1] != pages[2]


def test_nothing_from_outside_and_nothing_left_to_fill(tmp_path):
    text = write_report(posterior_of("colour"), tmp_path / "r.html", draws=40).read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:|//|[\w./]+\.(js|css|png))", text)
    assert not re.search(r"@import|url\((?!data:|#)", text) and not re.search(r"\{\{\w+\}\}", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert len(text) < 120_000


def test_provenance_is_told(tmp_path):
    posterior = posterior_of("grey")
    text = write_report(posterior, tmp_path / "r.html", draws=40, seed=17).read_text()
    for piece in (
        posterior.prior.fingerprint(),
        torch.__version__,
        "closed form",
        "Gaussian(sigma=0.1)",
        "<td>17</td>",
        "inpaint-mask",
    ):
        assert piece in text
    assert "posterior under the learned prior" in text and "unnormalised generalised posterior" not in text
    assert f"{posterior.elbo[0]:.2f} ± 0.25" in text
    posterior.problem.normalised = False
    assert "unnormalised generalised posterior" in write_report(posterior, tmp_path / "u.html", draws=40).read_text()


def test_titles_cannot_break_the_page(tmp_path):
    posterior = posterior_of("grey")
    posterior.provenance = {"note": "</script><script>alert(1)</script>{{data}}"}
    text = write_report(
        posterior, tmp_path / "r.html", draws=40, title="<script>alert(2)</script> & {{style}}"
    ).read_text()
    assert "<script>alert" not in text and text.count("</script>") == 2
    assert "&lt;script&gt;alert(2)&lt;/script&gt; &amp; {{style}}" in text


def test_large_posteriors_take_fewer_draws_and_observations(tmp_path):
    posterior = posterior_of("grey", batch=5)
    path = write_report(
        posterior, tmp_path / "r.html", draws=500, observations=3, budget=3 * 80 * 40, truth=posterior.truth
    )
    data = data_of(path)
    assert data["observations"] == 3 and data["draws"] == 40
    assert "the first 3 of 5" in path.read_text() and "40 draws (of 500 asked for" in path.read_text()
    assert torch.equal(numbers(data["truth"]), posterior.truth[:3].flatten())


def test_a_coarser_measurement_is_laid_over_the_pixels_it_covers(tmp_path):
    class Blocks(Operator):
        def apply(self, x):
            return torch.nn.functional.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])

    posterior = posterior_of("grey", batch=1)
    posterior.problem.operator = Blocks(posterior.shape)
    posterior.problem.y = posterior.problem.operator(posterior.truth)
    data = data_of(write_report(posterior, tmp_path / "r.html", draws=40))
    assert data["picture"]["shape"] == [1, 5, 4]
    observed = numbers(data["observed"]).view(10, 8)
    assert observed[5, 3] == posterior.problem.y[0, 0, 2, 1]


def test_measurements_that_are_no_pictures(tmp_path):
    class Sums(Operator):
        def apply(self, x):
            return x.flatten(2)[..., :7]

    posterior = posterior_of("grey", batch=1)
    posterior.problem.operator = Sums(posterior.shape)
    posterior.problem.y = posterior.problem.operator(posterior.truth)
    posterior.trace, posterior.elbo, posterior.elbo_se = {}, None, None
    data = data_of(write_report(posterior, tmp_path / "r.html", draws=40))
    assert data["picture"] is None and data["observed"] is None and data["trace"] is None and data["elbo"] is None


def test_bad_calls_write_nothing(tmp_path):
    posterior, path = posterior_of("grey"), tmp_path / "r.html"
    with pytest.raises(ValueError, match=r"truth must have shape \(2, 1, 10, 8\), got \(1, 10, 8\)"):
        write_report(posterior, path, truth=posterior.truth[0])
    with pytest.raises(ValueError, match="at least 2 draws"):
        write_report(posterior, path, draws=1)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_report(posterior, tmp_path)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        write_report(posterior, path, draws=40)
    assert path.read_text() == "mine"
    assert write_report(posterior, path, draws=40, overwrite=True) == path and path.read_text() != "mine"


# -- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium found on PATH")
    switches = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=switches)
        yield started
        started.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens the report of a posterior; afterwards no error may have been logged and nothing asked of a network."""
    contexts, troubles = [], []

    def go(posterior, **options):
        path = write_report(posterior, tmp_path / "report.html", seed=5, draws=80, **options)
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}, has_touch=True))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("request", lambda r: troubles.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert not troubles


def expected_pixel(posterior, b: int, index: tuple[int, ...], unbounded: bool = False) -> dict:
    held = summaries.from_tensor(drawn(posterior, 80, 5))
    lower, upper = summaries.credible_interval(held, 0.9)
    density = summaries.density(held, None if unbounded else UNIT)
    entropy = density.differential_entropy() if unbounded else density.entropy()
    seen = bool(upper_half(posterior.shape)[index])
    return {
        "mean": summaries.mean(held)[b][index].item(),
        "std": summaries.std(held)[b][index].item(),
        "entropy": entropy[b][index].float().item(),
        "interval": [lower[b][index].item(), upper[b][index].item()],
        "observed": posterior.problem.y[b][index].item() if seen else None,
        "truth": posterior.truth[b][index].item(),
    }


def shown(page, number: str, channel: int = 0) -> str:
    return page.locator(f'#numbers tr[data-number="{number}"] td').nth(channel).inner_text()


def click_pixel(page, name: str, row: int, col: int, height: int, width: int) -> None:
    box = page.get_by_label(name, exact=True).bounding_box()
    page.mouse.click(box["x"] + (col + 0.5) / width * box["width"], box["y"] + (row + 0.5) / height * box["height"])


@pytest.mark.parametrize("kind", SHAPES)
def test_javascript_gives_the_numbers_of_python(kind, visit):
    posterior = posterior_of(kind)
    page = visit(posterior, truth=posterior.truth)
    places = {
        "grey": [(0, 0, 1, 2), (1, 0, 9, 7)],
        "colour": [(0, 2, 1, 5), (1, 1, 6, 0)],
        "vector": [(0, 0, 0, 3), (1, 0, 0, 11)],
    }[kind]
    held = summaries.from_tensor(drawn(posterior, 80, 5))
    masses = summaries.density(held, None if kind == "vector" else UNIT).masses()
    for b, c, row, col in places:
        index = (col,) if kind == "vector" else (c, row, col)
        found = page.evaluate("([b, c, r, k]) => flowinv.pixel(b, c, r, k)", [b, c, row, col])
        assert found == expected_pixel(posterior, b, index, kind == "vector")
        mass = page.evaluate("([b, c, r, k]) => flowinv.density(b, c, r, k).mass", [b, c, row, col])
        torch.testing.assert_close(torch.tensor(mass, dtype=torch.float64), masses[b][index], rtol=1e-5, atol=1e-9)
    refused = page.evaluate("() => { try { flowinv.pixel(0, 0, 99, 0); return null } catch (e) { return e.message } }")
    assert "no pixel (0, 0, 99, 0)" in refused


def test_a_click_shows_and_holds_the_pixel(visit):
    posterior = posterior_of("grey")
    page = visit(posterior, truth=posterior.truth)
    click_pixel(page, "Posterior mean", 2, 5, 10, 8)
    expected = expected_pixel(posterior, 0, (0, 2, 5))
    assert page.locator("#where").inner_text() == "row 2, column 5"
    assert shown(page, "mean") == f"{expected['mean']:.3f}" and shown(page, "std") == f"{expected['std']:.3f}"
    assert shown(page, "interval") == f"{expected['interval'][0]:.3f} … {expected['interval'][1]:.3f}"
    assert shown(page, "entropy") == f"{expected['entropy']:.2f} bits"
    assert (
        shown(page, "observed") == f"{expected['observed']:.3f}" and shown(page, "truth") == f"{expected['truth']:.3f}"
    )
    truth = page.get_by_label("Truth", exact=True)
    truth.hover()
    assert page.locator("#where").inner_text() == "row 2, column 5" and page.locator("#held").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#held").is_visible()
    truth.hover(position={"x": 1, "y": truth.bounding_box()["height"] - 2})
    assert page.locator("#where").inner_text() == "row 9, column 0" and shown(page, "observed") == "not measured"


def test_keys_touch_and_the_other_observation(visit):
    posterior = posterior_of("grey")
    page = visit(posterior, truth=posterior.truth)
    page.evaluate("flowinv.select(0, 0)")
    page.get_by_label("Standard deviation", exact=True).focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Shift+ArrowRight", "End", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator("#where").inner_text() == "row 2, column 6"
    page.locator("#announce", has_text="row 2, column 6: mean").wait_for(state="attached")
    page.get_by_label("Observation").select_option("1")
    assert shown(page, "mean") == f"{expected_pixel(posterior, 1, (0, 2, 6))['mean']:.3f}"
    box = page.get_by_label("Entropy", exact=True).bounding_box()
    page.touchscreen.tap(box["x"] + 2, box["y"] + 2)
    assert page.locator("#where").inner_text() == "row 0, column 0"


def test_colour_has_a_density_for_every_channel(visit):
    posterior = posterior_of("colour")
    page = visit(posterior)
    click_pixel(page, "Posterior mean", 1, 6, 8, 8)
    assert page.locator("#densities svg").count() == 3
    for c in range(3):
        assert shown(page, "mean", c) == f"{expected_pixel(posterior, 0, (c, 1, 6))['mean']:.3f}"
    assert page.locator('#numbers tr[data-number="truth"]').count() == 0


def test_a_vector_is_picked_from_its_plot(visit):
    posterior = posterior_of("vector")
    page = visit(posterior, truth=posterior.truth)
    root = page.locator("#vector > svg")
    root.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#where").inner_text() == "element 1"
    box = root.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2)
    assert page.locator("#where").inner_text() == "element 11"
    assert shown(page, "truth").replace("\N{MINUS SIGN}", "-")[:4] == f"{posterior.truth[0, 11].item():.4f}"[:4]


def test_pictures_show_the_pixels(visit):
    posterior = posterior_of("grey")
    page = visit(posterior, truth=posterior.truth)
    script = """(name) => {
        const c = document.querySelector(`[aria-label="${name}"] canvas`);
        return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data];
    }"""
    grey = torch.tensor(page.evaluate(script, "Posterior mean")).view(10, 8, 4)
    mean = summaries.mean(summaries.from_tensor(drawn(posterior, 80, 5)))[0, 0]
    assert ((grey[..., 0] - mean.clamp(0, 1) * 255).abs() <= 0.51).all() and (grey[..., 3] == 255).all()
    measured = torch.tensor(page.evaluate(script, "Measurement")).view(10, 8, 4)
    assert (measured[:5, :, 3] == 255).all() and (measured[5:, :, 3] == 0).all()
    painted = torch.tensor(page.evaluate(script, "Draw 3")).view(10, 8, 4)[..., 0]
    draw = drawn(posterior, 80, 5)[2, 0, 0].clamp(0, 1)
    assert ((painted - draw * 255).abs() <= 1.01).all()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", SHAPES)
def test_no_sideways_scrolling(kind, width, visit):
    posterior = posterior_of(kind)
    page = visit(posterior, truth=posterior.truth)
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
