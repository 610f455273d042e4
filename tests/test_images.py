"""Images and measurements from files: the values that were stored, in the prior's units, or one line saying why not."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowinv.images import read_image, read_measurement

GREY, COLOUR = (1, 4, 6), (3, 4, 6)


def bytes_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected(array: np.ndarray) -> torch.Tensor:
    """Byte k is the middle of its level: (k + 1/2) / 256."""
    return torch.from_numpy((array.astype(np.float64) + 0.5) / 256).float()


def one_line(error: pytest.ExceptionInfo[Exception]) -> None:
    assert "\n" not in str(error.value)


def test_a_grey_picture(tmp_path: Path) -> None:
    array = bytes_of((4, 6))
    Image.fromarray(array).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", GREY), expected(array)[None, None])
    assert torch.equal(read_measurement(tmp_path / "a.png"), expected(array)[None])


def test_a_colour_picture(tmp_path: Path) -> None:
    array = bytes_of((4, 6, 3))
    Image.fromarray(array).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", COLOUR), expected(array).permute(2, 0, 1)[None])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_a_grey_picture_stored_in_another_mode_is_still_grey(tmp_path: Path, mode: str) -> None:
    array = bytes_of((4, 6))
    Image.fromarray(array).convert(mode).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", GREY), expected(array)[None, None])


def test_black_and_white(tmp_path: Path) -> None:
    array = (bytes_of((4, 6)) > 127).astype(np.uint8) * 255
    Image.fromarray(array).convert("1").save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", GREY), expected(array)[None, None])


def test_a_colourful_picture_is_no_grey_image(tmp_path: Path) -> None:
    Image.fromarray(bytes_of((4, 6, 3))).save(tmp_path / "a.png")
    told = r"has shape \(3, 4, 6\), the prior's samples have \(1, 4, 6\); flowinv solve --fit resizes"
    with pytest.raises(ValueError, match=told):
        read_image(tmp_path / "a.png", GREY)


def test_fit_resizes_and_turns_to_the_priors_colours(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.png")
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)  # ITU-R BT.601, what Pillow's L is
    assert torch.equal(read_image(tmp_path / "a.png", GREY, fit=True), torch.full((1, *GREY), (luma + 0.5) / 256))
    colours = read_image(tmp_path / "a.png", COLOUR, fit=True)
    assert torch.equal(colours, expected(np.array([200, 100, 50], np.uint8)).view(1, 3, 1, 1).expand(1, *COLOUR))


def test_sixteen_bits_are_refused_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 30000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="expected 8 bits per channel") as error:
        read_image(tmp_path / "a.png", GREY)
    one_line(error)


def test_transparency_is_refused(tmp_path: Path) -> None:
    array = bytes_of((4, 6, 4))
    array[..., 3] = 128
    Image.fromarray(array).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="transparency"):
        read_image(tmp_path / "a.png", COLOUR)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (1, 1, 4, 6)])
def test_arrays(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape)
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, array)
    assert torch.equal(read_image(tmp_path / name, GREY), torch.from_numpy(array).float().view(1, *GREY))


def test_several_images_of_one_array(tmp_path: Path) -> None:
    array = bytes_of((5, *COLOUR))
    np.savez(tmp_path / "a.npz", x=array, y=np.zeros(3))
    assert torch.equal(read_image(tmp_path / "a.npz", COLOUR), expected(array))


def test_a_vector(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12.0))
    assert torch.equal(read_image(tmp_path / "a.npy", (12,)), torch.arange(12.0)[None])


def test_measurements_keep_their_shape(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32)
    np.savez(tmp_path / "a.npz", y=array, x=np.zeros(2))
    assert torch.equal(read_measurement(tmp_path / "a.npz"), torch.from_numpy(array))


def test_what_is_not_there(tmp_path: Path) -> None:
    for read in (read_measurement, lambda path: read_image(path, GREY)):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read(tmp_path / "nothing.png")
        with pytest.raises(IsADirectoryError, match="is a folder: expected a picture or an array"):
            read(tmp_path)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"a\.csv: expected one of \.bmp"):
        read_measurement(tmp_path / "a.csv")


def test_arrays_of_the_wrong_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "int.npy", np.ones((4, 6), np.int64))
    with pytest.raises(ValueError, match="must hold bytes or floating-point values, got int64"):
        read_image(tmp_path / "int.npy", GREY)
    np.save(tmp_path / "object.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read as an array") as error:
        read_measurement(tmp_path / "object.npy")
    one_line(error)
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    with pytest.raises(ValueError, match=r"holds \['a', 'b'\]; expected one array or one named 'y'"):
        read_measurement(tmp_path / "two.npz")
    np.save(tmp_path / "size.npy", np.ones((5, 6)))
    with pytest.raises(ValueError, match=r"has shape \(5, 6\), the prior's samples have \(1, 4, 6\)$"):
        read_image(tmp_path / "size.npy", GREY)


def damaged(whole: bytes, kind: str) -> bytes:
    middle = len(whole) // 2
    return {
        "empty": b"",
        "text": b"not an image\n",
        "truncated": whole[:middle],
        "scrambled": whole[: middle - 8] + bytes(255 - b for b in whole[middle - 8 : middle + 8]) + whole[middle + 8 :],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "scrambled"])
@pytest.mark.parametrize("name", ["a.npz", "a.png", "a.jpg", "a.npy"])
def test_damaged_files(tmp_path: Path, name: str, kind: str) -> None:
    if name == "a.npy" and kind == "scrambled":
        pytest.skip("an .npy has no checksum")
    if name == "a.jpg" and kind == "scrambled":
        pytest.skip("a .jpg has no checksum")
    buffer = io.BytesIO()
    array = bytes_of((40, 60))
    if name == "a.npz":
        np.savez_compressed(buffer, y=array)
    elif name == "a.npy":
        np.save(buffer, array)
    else:
        Image.fromarray(array).save(buffer, format="PNG" if name == "a.png" else "JPEG")
    (tmp_path / name).write_bytes(damaged(buffer.getvalue(), kind))
    for read in (read_measurement, lambda path: read_image(path, (1, 40, 60))):
        with pytest.raises(ValueError, match=f"{name} cannot be read as an (array|image)") as error:
            read(tmp_path / name)
        one_line(error)


def test_a_zip_that_is_no_npz(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_measurement(tmp_path / "a.npz")
