"""Tasks by name: masks counted by hand, operators against plain arithmetic, descriptions rebuilt."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from flowinv.likelihoods import Gaussian, Laplace, Poisson
from flowinv.operators import Identity, Mask, MatrixOperator
from flowinv.tasks import TASKS, motion_kernel, operator_from_spec, parse_options, read_mask, task, task_from_spec

SHAPE = (3, 8, 8)
REQUIRED = {"inpaint-mask": {"mask": torch.eye(8)}}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=2, shape=SHAPE, dtype=torch.float32):
    return torch.rand(n, *shape, generator=generator(9), dtype=dtype)


def observed(name, shape=SHAPE, **options):
    operator = task(name, shape, **options).operator
    return operator.observed.expand(1, *shape)[0]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_in_both_precisions_and_rebuilds(name):
    made = task(name, SHAPE, **REQUIRED.get(name, {}))
    spec = json.loads(json.dumps(made.spec))
    tensors = {k: t.clone() for k, t in made.tensors().items()}
    again = task_from_spec(spec, SHAPE, tensors)
    assert json.loads(json.dumps(again.spec)) == spec
    for dtype in (torch.float32, torch.float64):
        x = images(dtype=dtype)
        y = made.operator(x)
        assert y.dtype == dtype and torch.equal(y, again.operator(x))
        noisy = made.observe(x, generator(1))
        assert torch.equal(noisy, again.observe(x, generator(1))) and not torch.equal(noisy, y)
        assert torch.equal(made.observe(x, generator(1), noise=False), y)
        draws = images(6, dtype=dtype).reshape(3, 2, *SHAPE)
        torch.testing.assert_close(made.operator(draws), torch.stack([made.operator(d) for d in draws]))


@pytest.mark.parametrize("name", ["inpaint-pixels", "inpaint-subpixels", "compressed-sensing"])
def test_seed_decides_and_the_global_generator_does_not(name):
    state = torch.get_rng_state()
    x = images()
    results = [task(name, SHAPE, seed=s).operator(x) for s in (0, 0, 1)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(state, torch.get_rng_state())


def test_the_named_half_is_the_observed_one():
    whole = torch.zeros(3, 5, 5, dtype=torch.bool)
    for name, rows in {
        "bottom": (slice(2, 5), slice(0, 5)),
        "top": (slice(0, 3), slice(0, 5)),
        "left": (slice(0, 5), slice(0, 3)),
        "right": (slice(0, 5), slice(2, 5)),
    }.items():
        expected = whole.clone()
        expected[:, rows[0], rows[1]] = True
        assert torch.equal(observed(f"inpaint-{name}", (3, 5, 5)), expected), name


def test_box():
    hidden = ~observed("inpaint-box", (1, 32, 32), size=13)[0]
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[9:22, 9:22] = True
    assert torch.equal(hidden, expected)
    assert torch.equal(~observed("inpaint-box", (1, 32, 32), rows="9:22", columns=(9, 22))[0], expected)
    assert (~observed("inpaint-box", (1, 8, 8)))[0, 2:6, 2:6].all()
    assert (~observed("inpaint-box", (1, 8, 8), size="2x4")).sum() == 8
    placed = ~observed("inpaint-box", (1, 8, 8), size=2, rows="0:1")[0]
    assert placed.nonzero().tolist() == [[0, 3], [0, 4]]


def test_random_pixels_and_subpixels():
    pixels = observed("inpaint-pixels", fraction=0.3)
    assert pixels[0].sum() == round(0.3 * 64) and (pixels == pixels[:1]).all()
    elements = observed("inpaint-subpixels", fraction=0.3)
    assert elements.sum() == round(0.3 * 192) and not (elements == elements[:1]).all()
    assert observed("inpaint-pixels", (10,), fraction=0.5).sum() == 5


def test_random_pixels_are_uniform_and_a_skewed_choice_is_rejected():
    counts = sum(observed("inpaint-pixels", (1, 4, 4), fraction=0.25, seed=s).double() for s in range(2_000)).flatten()
    error = math.sqrt(2_000 * 0.25 * 0.75)
    assert ((counts - 500).abs() < 5 * error).all()
    assert not ((counts * (1 + torch.linspace(0, 0.3, 16)) - 500).abs() < 5 * error).all()


def test_unobserved_elements_of_y_are_exact_zeros():
    made = task("inpaint-bottom", SHAPE)
    y = made.observe(images(), generator())
    assert (y[:, :, :4] == 0).all() and (y[:, :, 4:] != 0).all()


def test_observation_noise_has_the_stated_scale():
    made = task("inpaint-bottom", (1, 100, 100), sigma=0.3)
    x = images(4, (1, 100, 100))
    z = ((made.observe(x, generator()) - x) / 0.3)[:, :, 50:]
    error = 1 / math.sqrt(z.numel())
    assert abs(z.mean()) < 5 * error and abs(z.square().mean() - 1) < 5 * math.sqrt(2) * error
    assert abs((1.03 * z).square().mean() - 1) > 5 * math.sqrt(2) * error


def test_colorize_superres_and_denoise():
    x = images(dtype=torch.float64)
    torch.testing.assert_close(task("colorize", SHAPE).operator(x), x.mean(1, keepdim=True))
    luma = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    torch.testing.assert_close(task("colorize", SHAPE, weights="luma").operator(x), luma)
    torch.testing.assert_close(
        task("superres", SHAPE, factor=4).operator(x), x.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
    )
    assert torch.equal(task("denoise", SHAPE).operator(x), x)


def test_compressed_sensing_matrix_is_standard_and_scaled():
    made = task("compressed-sensing", SHAPE, measurements=400, seed=3)
    matrix = made.operator(torch.eye(192).view(192, *SHAPE)).T.double()
    assert matrix.shape == (400, 192)
    z = matrix * 20
    error = 1 / math.sqrt(z.numel())
    assert abs(z.mean()) < 5 * error and abs(z.square().mean() - 1) < 5 * math.sqrt(2) * error
    assert abs(z.square().mean() * 400 / 192 - 1) > 5 * math.sqrt(2) * error  # scaled by 1/n instead of 1/m
    assert task("compressed-sensing", SHAPE).operator(images()).shape == (2, 32)


def convolved(x, kernel):
    """The oracle: convolution with reflected borders, as a sum over shifted images."""
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = torch.nn.functional.pad(x, (columns, columns, rows, rows), mode="reflect")
    total = torch.zeros_like(x)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = 2 * rows - i, 2 * columns - j
            total += kernel[i, j] * padded[..., top : top + x.shape[-2], left : left + x.shape[-1]]
    return total


def test_deblurring_kernels():
    x = images(shape=(3, 20, 20), dtype=torch.float64)
    box = task("deblur", (3, 20, 20), kernel="box").operator
    torch.testing.assert_close(box(x), convolved(x, torch.full((3, 3), 1 / 9, dtype=torch.float64)))
    motion = task("deblur", (3, 20, 20), kernel="motion", size=5, angle=30).operator
    torch.testing.assert_close(motion(x), convolved(x, motion_kernel(5, 30)))
    gaussian = task("deblur", (3, 20, 20), width=(1.5, 0.8)).operator
    grid = torch.arange(-6, 7, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (grid[:, None] / 1.5).square() - 0.5 * (grid / 0.8).square())
    torch.testing.assert_close(gaussian(x), convolved(x, kernel / kernel.sum()), atol=1e-3, rtol=0)
    assert (gaussian(x) - convolved(x, kernel.T / kernel.sum())).abs().max() > 0.02
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    blurred = task("deblur", (1, 21, 21), width=1.5).operator(point)[0, 0]
    torch.testing.assert_close(blurred, blurred.T)  # both axes are blurred
    assert blurred[10, 8] > 0.01 and blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert task("deblur", (1, 20, 20), padding="valid", kernel="box").operator(x[:, :1]).shape == (2, 1, 18, 18)


def test_grey_beyond_the_border():
    x = images(shape=(1, 9, 9), dtype=torch.float64)
    operator = task("deblur", (1, 9, 9), kernel="box", padding="grey").operator
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=0.5)
    torch.testing.assert_close(operator(x), torch.nn.functional.avg_pool2d(padded, 3, stride=1))
    dark = task("deblur", (1, 9, 9), kernel="box", padding="constant").operator(x)
    assert (dark[..., 0, :] < operator(x)[..., 0, :]).all() and torch.equal(dark[..., 4, 4], operator(x)[..., 4, 4])


def test_motion_kernel():
    torch.testing.assert_close(motion_kernel(5, 0), torch.full((1, 5), 0.2, dtype=torch.float64))
    torch.testing.assert_close(motion_kernel(5, 90), torch.full((5, 1), 0.2, dtype=torch.float64))
    assert motion_kernel(1, 0).tolist() == [[1.0]]
    diagonal = motion_kernel(7, 45)
    torch.testing.assert_close(diagonal, diagonal.T.flip(0, 1))
    assert diagonal[1, -2] > 0.1 > diagonal[1, 1] and diagonal.sum() == pytest.approx(1)


@pytest.mark.parametrize("filter", ["gaussian", "bicubic", "none"])
def test_superresolution_filters_keep_constants_and_decimate(filter):
    operator = task("superres", SHAPE, filter=filter).operator
    torch.testing.assert_close(operator(torch.ones(2, *SHAPE)), torch.ones(2, 3, 4, 4), atol=1e-5, rtol=0)
    if filter == "none":
        assert torch.equal(operator(images()), images()[..., ::2, ::2])


def test_likelihood_can_be_replaced_and_comes_back():
    sigma = torch.full((8, 8), 0.2)
    for likelihood in (Laplace(0.2), Poisson(0.1), Gaussian(sigma)):
        made = task("inpaint-mask", SHAPE, likelihood=likelihood, mask=torch.eye(8))
        again = task_from_spec(json.loads(json.dumps(made.spec)), SHAPE, made.tensors())
        assert torch.equal(made.observe(images(), generator()), again.observe(images(), generator()))


def save(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


CHECKER = np.indices((8, 8)).sum(0) % 2


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("a.npy", CHECKER),
        ("a.npy", CHECKER.astype(bool)),
        ("a.npy", 255.0 * CHECKER),
        ("a.png", (255 * CHECKER).astype(np.uint8)),
        ("a.png", CHECKER.astype(np.uint8)),
        ("a.png", CHECKER.astype(bool)),
        ("a.png", np.repeat((255 * CHECKER).astype(np.uint8)[..., None], 3, 2)),
    ],
    ids=str,
)
def test_masks_are_read(tmp_path, name, array):
    path = save(tmp_path / name, array)
    expected = torch.from_numpy(CHECKER.astype(bool))
    assert torch.equal(read_mask(path), expected)
    made = task("inpaint-mask", SHAPE, mask=str(path))
    assert torch.equal(made.operator.observed.expand(1, *SHAPE)[0, 2], expected)
    spec, tensors = json.loads(json.dumps(made.spec)), made.tensors()
    path.unlink()
    assert torch.equal(task_from_spec(spec, SHAPE, tensors).operator.observed, made.operator.observed)


def test_colour_mask_is_read_per_channel(tmp_path):
    array = np.zeros((8, 8, 3), np.uint8)
    array[2, 3, 1] = 255
    mask = read_mask(save(tmp_path / "a.png", array))
    assert mask.nonzero().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8), "only 0 and 1, or only 0 and 255"),
        ("a.npy", np.array([[0, 1, 255]]), "only 0 and 1, or only 0 and 255"),
        ("a.npy", np.array([[0.0, np.nan]]), "only 0 and 1"),
        ("a.npy", np.array(["a"]), "numbers"),
        ("a.npy", np.zeros((0, 3)), "nothing"),
        ("a.png", np.full((8, 8, 4), 255, np.uint8), "transparency"),
        ("a.png", b"not a picture", "cannot be read as a picture"),
        ("a.npy", b"not an array", "cannot be read as .npy"),
        ("a.npy", b"", "cannot be read as .npy"),
    ],
    ids=lambda v: None if not isinstance(v, str) else v,
)
def test_bad_mask_files_are_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_mask(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("inpaint-middle", SHAPE, {}, "unknown task 'inpaint-middle'; known: inpaint-bottom, "),
        ("inpaint-pixels", SHAPE, {"part": 0.5}, "no option 'part'; known: fraction, seed"),
        ("denoise", SHAPE, {"seed": 1}, "no option 'seed'; known: none"),
        ("denoise", SHAPE, {"shape": 1}, "no option 'shape'"),
        ("denoise", SHAPE, {"likelihood": "poisson"}, "must be a Likelihood"),
        ("inpaint-bottom", SHAPE, {"half": "top"}, "no option 'half'"),
        ("inpaint-mask", SHAPE, {}, "needs the option 'mask'"),
        ("inpaint-mask", SHAPE, {"mask": 3}, "tensor or a path"),
        ("inpaint-mask", SHAPE, {"mask": "nowhere.png"}, "no such mask file"),
        ("inpaint-mask", SHAPE, {"mask": torch.ones(4, 4)}, "does not fit samples"),
        ("inpaint-mask", SHAPE, {"mask": torch.full((8, 8), 0.5)}, "0.5"),
        ("inpaint-pixels", SHAPE, {"fraction": 0}, r"\(0, 1\]"),
        ("inpaint-pixels", SHAPE, {"fraction": 1.5}, r"\(0, 1\]"),
        ("inpaint-pixels", SHAPE, {"fraction": float("nan")}, "finite"),
        ("inpaint-pixels", SHAPE, {"fraction": "half"}, "'half'"),
        ("inpaint-pixels", SHAPE, {"seed": -1}, "seed"),
        ("inpaint-pixels", SHAPE, {"seed": 1.5}, "seed"),
        ("inpaint-box", SHAPE, {"size": 8}, "hides the whole image"),
        ("inpaint-box", SHAPE, {"size": 9}, "8x8"),
        ("inpaint-box", SHAPE, {"rows": "5:3"}, "0 <= a < b <= 8"),
        ("inpaint-box", SHAPE, {"rows": "abc"}, "a:b"),
        ("inpaint-box", SHAPE, {"size": 2, "rows": "1:2", "columns": "1:2"}, "not all three"),
        ("deblur", SHAPE, {"kernel": "square"}, "gaussian, box, motion"),
        ("deblur", SHAPE, {"kernel": "box", "width": 2}, "'width' does not go with kernel=box"),
        ("deblur", SHAPE, {"width": -1}, "positive"),
        ("deblur", SHAPE, {"width": 5}, "larger images"),
        ("deblur", SHAPE, {"kernel": "box", "padding": "none"}, "reflect, circular"),
        ("superres", SHAPE, {"factor": 3}, "divisible"),
        ("superres", SHAPE, {"factor": 1}, "at least 2"),
        ("superres", SHAPE, {"filter": "box"}, "average, gaussian"),
        ("superres", SHAPE, {"factor": 3, "filter": "bicubic"}, "divisible"),
        ("colorize", (1, 8, 8), {}, "colour images"),
        ("colorize", SHAPE, {"weights": "red"}, "mean, luma"),
        ("compressed-sensing", SHAPE, {"measurements": 0}, "at least 1"),
        ("inpaint-bottom", (12,), {}, r"images \(C, H, W\)"),
        ("denoise", (), {}, "shape of one sample"),
        ("denoise", 3, {}, "shape of one sample"),
        ("denoise", (1, 0, 2), {}, "shape of one sample"),
        ("denoise", SHAPE, {"sigma": 0}, "sigma must be positive"),
        ("denoise", SHAPE, {"sigma": float("nan")}, "sigma must be positive"),
    ],
)
def test_bad_input_is_refused_in_one_line(name, shape, options, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as caught:
        task(name, shape, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 1, 8, 8), r"\(B, 3, 8, 8\), got \(2, 1, 8, 8\)"),
        (torch.ones(3, 8, 8), "must have shape"),
        (torch.ones(1, 3, 8, 8).int(), "int32"),
        (torch.full((1, 3, 8, 8), float("nan")), "192 values"),
    ],
)
def test_observe_checks_its_images(x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        task("denoise", SHAPE).observe(x, generator())


def test_options_from_a_command_line():
    given = ["fraction=0.3", "seed=7", "kernel=box", "rows=9:22", "flag=True", "mask=a=b.png", "width=1e-1"]
    assert parse_options(given) == {
        "fraction": 0.3,
        "seed": 7,
        "kernel": "box",
        "rows": "9:22",
        "flag": True,
        "mask": "a=b.png",
        "width": 0.1,
    }
    assert type(parse_options(["seed=7"])["seed"]) is int and parse_options([]) == {}
    for bad in (["fraction"], ["=3"], ["seed="], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match=r"name=value|twice"):
            parse_options(bad)


def test_numbers_of_numpy_are_taken_and_described_in_json():
    made = task("inpaint-pixels", SHAPE, fraction=np.float32(0.25), seed=np.int64(3))
    assert json.loads(json.dumps(made.spec))["options"] == {"fraction": 0.25, "seed": 3}


@pytest.mark.parametrize(
    "operator",
    [MatrixOperator(torch.rand(5, 192, generator=torch.Generator().manual_seed(0))), Mask(torch.eye(8)), Identity()],
    ids=repr,
)
def test_operators_made_by_hand_are_rebuilt(operator):
    again = operator_from_spec(json.loads(json.dumps(operator.spec)), SHAPE, operator.tensors())
    assert torch.equal(again(images()), operator.on(SHAPE)(images()))
    with pytest.raises(ValueError, match="missing"):
        operator_from_spec({"task": "matrix", "options": {}}, SHAPE)


def test_incomplete_descriptions_are_refused():
    made = task("inpaint-mask", SHAPE, mask=torch.eye(8))
    for spec, message in (
        (made.spec, "missing"),
        ({"task": "denoise"}, "'options'"),
        ({"task": "denoise", "options": {}, "likelihood": None}, "was code"),
        ({"task": "nothing", "options": {}, "likelihood": {"kind": "gaussian", "sigma": 1.0}}, "unknown task"),
    ):
        with pytest.raises(ValueError, match=message):
            task_from_spec(spec, SHAPE)
