"""Images to train on: the same bytes by every road, and one clear line for what is not a data set."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowinv.training.data import Preparation, floor_bits, load_images


def bytes_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_npz(tmp_path: Path, channels: int) -> None:
    last = (channels,) if channels else ()
    train, test = bytes_of(5, 4, 6, *last), bytes_of(2, 4, 6, *last, seed=1)
    np.savez(tmp_path / "a.npz", train_x=train, test_x=test, train_y=np.arange(5))
    data = load_images(tmp_path / "a.npz")
    assert data.train.shape == (5, max(1, channels), 4, 6) and data.train.dtype == torch.uint8
    for found, array in ((data.train, train), (data.test, test)):
        assert np.array_equal(found.permute(0, 2, 3, 1).numpy().reshape(array.shape), array)
    assert data.source == "a.npz"


@pytest.mark.parametrize("name", ["train_x", "test_x"])
def test_npz_with_one_part(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", **{name: bytes_of(5, 4, 6)})
    data = load_images(str(tmp_path / "a.npz"))
    counts = {"train_x": len(data.train), "test_x": len(data.test)}
    assert counts == {"train_x": 0, "test_x": 0, name: 5} and data.train.shape[1:] == data.test.shape[1:] == (1, 4, 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_x": np.zeros((2, 4, 4), np.float32)}, "train_x must hold bytes .uint8., got float32"),
        ({"train_x": np.zeros((2, 4, 4), np.int64)}, "train_x must hold bytes .uint8., got int64"),
        ({"train_x": np.zeros((2, 16), np.uint8)}, r"train_x must have shape \(N, H, W\) or .*, got \(2, 16\)"),
        ({"train_x": np.zeros((2, 3, 4, 4), np.uint8)}, r"C 1 or 3, got \(2, 3, 4, 4\)"),
        ({"x": np.zeros((2, 4, 4), np.uint8)}, r"must hold train_x and/or test_x .*, got \['x'\]"),
        (
            {"train_x": np.zeros((2, 4, 4), np.uint8), "test_x": np.zeros((2, 4, 6), np.uint8)},
            r"must have one shape .* train_x \(2, 1, 4, 4\) and test_x \(2, 1, 4, 6\)",
        ),
        ({"train_x": np.array([{}], dtype=object)}, "cannot be read as .npz"),
    ],
)
def test_npz_that_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load_images(tmp_path / "a.npz")
    assert "\n" not in str(error.value) and "a.npz" in str(error.value)


@pytest.mark.parametrize("kind", ["empty", "text", "npy", "truncated", "scrambled"])
def test_damaged_npz(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, train_x=bytes_of(50, 8, 8))
    whole = path.read_bytes()
    if kind == "npy":
        np.save(tmp_path / "b.npy", np.zeros(3, np.uint8))
        path.write_bytes((tmp_path / "b.npy").read_bytes())
    else:
        scrambled = whole[:500] + bytes(40) + whole[540:]
        path.write_bytes({"empty": b"", "text": b"a,b\n", "truncated": whole[:200], "scrambled": scrambled}[kind])
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as \.npz") as error:
        load_images(path)
    assert "\n" not in str(error.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no such data: .*expected an \.npz, a folder of images, or torchvision"
    ):
        load_images(tmp_path / "nothing")


@pytest.mark.parametrize("channels", [1, 3])
def test_folder(tmp_path: Path, channels: int) -> None:
    arrays = bytes_of(5, 4, 6, 3)[..., : 3 if channels == 3 else 1].squeeze()
    names = ["b.png", "a.png", "deep/c.png", "test/e.png", "test/deep/d.png"]
    for name, array in zip(names, arrays, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    data = load_images(tmp_path)
    assert data.train.shape == (3, channels, 4, 6)
    order = lambda part: torch.from_numpy(arrays[part].reshape(-1, 4, 6, channels)).permute(0, 3, 1, 2)  # noqa: E731
    assert torch.equal(data.train, order([1, 0, 2])) and torch.equal(data.test, order([4, 3]))


def test_a_folder_named_test_is_not_all_test_images(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    Image.fromarray(bytes_of(4, 4)).save(tmp_path / "test" / "a.png")
    assert len(load_images(tmp_path / "test").train) == 1


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        load_images(tmp_path)
    Image.fromarray(bytes_of(4, 4)).save(tmp_path / "a.png")
    Image.fromarray(bytes_of(4, 6)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"one shape: .*b\.png has \(4, 6\), .*a\.png has \(4, 4\)"):
        load_images(tmp_path)
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image: its mode is I;16"):
        load_images(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image") as error:
        load_images(tmp_path)
    assert "\n" not in str(error.value)


# -- torchvision, with data sets of our own in its place ---------------------------------------------


class Numbers:
    """As MNIST: a tensor (N, H, W), told train or test by a flag."""

    def __init__(self, root: Path, train: bool = True, transform: Any = None, download: bool = False):
        print("downloading with a bar")
        print("downloading with a bar", file=sys.stderr)
        assert download
        self.data = torch.from_numpy(bytes_of(3 if train else 2, 4, 6, seed=int(train)))


class Splits:
    """As SVHN: channels first, told by a word."""

    def __init__(self, root: Path, split: str = "train", download: bool = False):
        self.data = bytes_of(3 if split == "train" else 2, 3, 4, 6)


class Offline:
    def __init__(self, root: Path, train: bool = True, download: bool = False):
        raise RuntimeError("Error downloading numbers.gz:\nTried http://a\nTried http://b")


class Paths:
    """As Food101: nothing in memory."""

    def __init__(self, root: Path, split: str = "train", download: bool = False):
        self.files = ["a.jpg"]


class Letters:
    """As EMNIST: which part is meant must be said."""

    def __init__(self, root: Path, part: str, train: bool = True, download: bool = False):
        self.data = bytes_of(2, 4, 6)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torchvision")
    kinds = {k.__name__: k for k in (Numbers, Splits, Offline, Paths, Letters)}
    module.datasets = SimpleNamespace(**kinds, utils=ModuleType("utils"))
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_torchvision(torchvision: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = load_images("torchvision:Numbers", tmp_path)
    assert torch.equal(data.train, torch.from_numpy(bytes_of(3, 4, 6, seed=1))[:, None])
    assert torch.equal(data.test, torch.from_numpy(bytes_of(2, 4, 6, seed=0))[:, None])
    assert data.source == "torchvision:Numbers"
    assert capfd.readouterr() == ("", ""), "no bar where there is no terminal"


def test_torchvision_by_split_and_channels_first(torchvision: None, tmp_path: Path) -> None:
    data = load_images("torchvision:Splits", tmp_path)
    assert torch.equal(data.train, torch.from_numpy(bytes_of(3, 3, 4, 6))) and len(data.test) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nothing", "has no data set 'Nothing'; for example MNIST"),
        ("utils", "has no data set 'utils'; for example MNIST"),
        ("", "has no data set ''"),
        ("Offline", "could not provide Offline in .*: Error downloading numbers.gz:$"),
        ("Paths", "Paths is not a plain set of training and test images"),
        ("Letters", "Letters is not a plain set of training and test images: .*'part'"),
    ],
)
def test_torchvision_that_is_refused(torchvision: None, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_images(f"torchvision:{name}", tmp_path)
    assert "\n" not in str(error.value)


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="need torchvision: pip install torchvision"):
        load_images("torchvision:MNIST", tmp_path)


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_floor_bits(bits: int) -> None:
    images = torch.arange(256, dtype=torch.uint8)
    assert floor_bits(images, bits).tolist() == [k // 2 ** (8 - bits) for k in range(256)]


# -- pictures as bytes ---------------------------------------------------------------------------------


def jpeg_archive(path: Path, arrays: list[np.ndarray], **more: np.ndarray) -> None:
    parts = []
    for array in arrays:
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")  # lossless, so that the bytes can be compared
        parts.append(stream.getvalue())
    offsets = np.cumsum([0, *map(len, parts)])
    np.savez(path, blob=np.frombuffer(b"".join(parts), np.uint8), offsets=offsets, **more)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_kept_as_bytes(tmp_path: Path, channels: int) -> None:
    arrays = [bytes_of(6, 5, *((3,) if channels == 3 else ()), seed=i) for i in range(5)]
    is_train = np.array([True, False, True, True, False])
    jpeg_archive(tmp_path / "a.npz", arrays, is_train=is_train, labels=np.arange(5))
    data = load_images(tmp_path / "a.npz")
    assert data.train.shape == (3, channels, 6, 5) and data.test.shape == (2, channels, 6, 5)
    wanted = arrays[1][..., None] if channels == 1 else arrays[1]
    assert np.array_equal(data.test[0].permute(1, 2, 0).numpy(), wanted)


def test_crop_resize_and_a_test_set_of_the_last(tmp_path: Path) -> None:
    arrays = [bytes_of(12, 10, 3, seed=i) for i in range(5)]
    jpeg_archive(tmp_path / "a.npz", arrays)
    prepare = Preparation((1, 2, 9, 10), (4, 4), test=2)
    data = load_images(tmp_path / "a.npz", prepare=prepare)
    assert data.train.shape == (3, 3, 4, 4) and data.test.shape == (2, 3, 4, 4)
    by_hand = Image.fromarray(arrays[4]).crop((1, 2, 9, 10)).resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(data.test[1].permute(1, 2, 0).numpy(), np.asarray(by_hand))
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    (tmp_path / "a.npz").unlink()
    assert torch.equal(load_images(tmp_path, prepare=prepare).test, data.test)


@pytest.mark.parametrize(
    ("change", "prepare", "message"),
    [
        ({}, Preparation((0, 0, 11, 4), (4, 4)), "does not lie inside a picture of 10 x 12"),
        ({}, Preparation(test=5), "holds 5 images, no more than the 5 for the test"),
        ({"offsets": np.array([0, 5, 3])}, Preparation(), "offsets must rise"),
        ({"offsets": np.array([0.0, 5.0])}, Preparation(), "offsets whole numbers"),
        ({"blob": np.zeros((3, 3), np.uint8)}, Preparation(), "blob must be bytes"),
        ({"offsets": np.array([0, 5, 9])}, Preparation(), "picture 0 cannot be read"),
        ({"is_train": np.ones(3, bool)}, Preparation(), "is_train must hold one bool for each of the 5"),
    ],
)
def test_bytes_that_are_refused(tmp_path: Path, change: dict, prepare: Preparation, message: str) -> None:
    jpeg_archive(tmp_path / "a.npz", [bytes_of(12, 10, 3, seed=i) for i in range(5)])
    with np.load(tmp_path / "a.npz") as file:
        arrays = {**{name: file[name] for name in file.files}, **change}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "a.npz", prepare=prepare)
