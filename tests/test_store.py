"""Bundles: what is written is read back; what is missing, corrupt, foreign or in the way is refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowinv.store import CONFIG, WEIGHTS, BundleError, read_bundle, refuse_existing, write_bundle, write_text

KIND = {"format": "test-bundle", "shape": [1, 2], "note": "é"}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).view(2, 3), "flag": torch.tensor(True), "d": torch.eye(2, dtype=torch.float64)}


@pytest.fixture
def bundle(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    return write_bundle(tmp_path / "one", KIND, tensors)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_round_trip(bundle: Path, tensors: dict[str, Tensor]) -> None:
    config, found = read_bundle(bundle, "test-bundle")
    assert config == KIND
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], t) and found[k].dtype == t.dtype for k, t in tensors.items())
    assert sorted(p.name for p in bundle.iterdir()) == [CONFIG, WEIGHTS]


def test_files_are_readable_by_others(bundle: Path) -> None:
    assert {p.stat().st_mode & 0o777 for p in bundle.iterdir()} == {0o644}


def test_views_shared_storage_and_gradients_are_no_obstacle(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"t": base.T, "again": base, "part": base[:, 1:], "g": torch.ones(2, requires_grad=True)}
    _, found = read_bundle(write_bundle(tmp_path, KIND, tensors), "test-bundle")
    assert all(torch.equal(found[k], t) for k, t in tensors.items())


def test_an_existing_bundle_is_kept_unless_asked(bundle: Path, tensors: dict[str, Tensor]) -> None:
    before = contents(bundle)
    with pytest.raises(FileExistsError, match="already holds a bundle; choose another path or ask to overwrite"):
        write_bundle(bundle, {**KIND, "new": 1}, tensors)
    assert contents(bundle) == before
    write_bundle(bundle, {**KIND, "new": 1}, {"b": torch.zeros(1)}, overwrite=True)
    config, found = read_bundle(bundle, "test-bundle")
    assert config["new"] == 1 and list(found) == ["b"]


def test_weights_without_a_config_are_not_written_over(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_bundle(tmp_path, KIND, tensors)
    assert (tmp_path / WEIGHTS).read_bytes() == b"precious"


def test_a_file_in_the_way_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    (tmp_path / "x").write_text("text")
    with pytest.raises(NotADirectoryError, match="is a file; a bundle is a folder"):
        write_bundle(tmp_path / "x", KIND, tensors, overwrite=True)


@pytest.mark.parametrize("fault", ["config", "weights", "rename"])
def test_a_failed_write_leaves_the_old_bundle_and_no_litter(
    bundle: Path, tensors: dict[str, Tensor], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(bundle)
    config: dict[str, Any] = dict(KIND)
    error: type[Exception] = OSError
    if fault == "config":
        config, error = {**KIND, "bad": object()}, TypeError
    elif fault == "weights":

        def full(*_: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr("safetensors.torch.save_file", full)
    else:
        write = Path.write_text

        def cut_short(path: Path, text: str, **options: str) -> int:
            write(path, text[:3], **options)
            raise OSError("no space left on device")

        monkeypatch.setattr(Path, "write_text", cut_short)
    with pytest.raises(error):
        write_bundle(bundle, config, {"other": torch.ones(3)}, overwrite=True)
    assert contents(bundle) == before


def test_a_failed_first_write_leaves_no_bundle(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(TypeError):
        write_bundle(tmp_path / "new", {"bad": object()}, tensors)
    assert not (tmp_path / "new").exists()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_bundle(tmp_path / "nowhere", "test-bundle")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_half_a_bundle(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"has no {name}: expected a folder with"):
        read_bundle(bundle, "test-bundle")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00", b"{'format': 1}"])
def test_a_config_that_is_not_json(bundle: Path, text: bytes) -> None:
    (bundle / CONFIG).write_bytes(text)
    with pytest.raises(BundleError, match="is not JSON") as error:
        read_bundle(bundle, "test-bundle")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [{"format": "another"}, {}, [1, 2], "text", None])
def test_a_foreign_config(bundle: Path, config: object) -> None:
    (bundle / CONFIG).write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"has format .*, expected 'test-bundle'"):
        read_bundle(bundle, "test-bundle")


@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle", "noise"])
def test_weights_that_are_not_safetensors(bundle: Path, damage: str) -> None:
    whole = (bundle / WEIGHTS).read_bytes()
    damaged = {
        "truncated": whole[: len(whole) - 10],
        "empty": b"",
        "pickle": pickle.dumps({"a": 1}),
        "noise": bytes(range(256)),
    }
    (bundle / WEIGHTS).write_bytes(damaged[damage])
    with pytest.raises(BundleError, match="cannot be read as safetensors") as error:
        read_bundle(bundle, "test-bundle")
    assert "\n" not in str(error.value)


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\ud800")
    assert target.read_text() == "old"
    write_text(target, "new é")
    assert target.read_text(encoding="utf-8") == "new é"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_refusing_what_exists(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "new", overwrite=False)
    refuse_existing(tmp_path, overwrite=False)
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="exists already; choose another path or ask to overwrite"):
            refuse_existing(path, overwrite=False)
        refuse_existing(path, overwrite=True)


def test_numbers_that_json_has_no_word_for_become_null() -> None:
    import json
    import math

    from flowinv.store import to_json

    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, "x", 2)}], "d": None}
    assert json.loads(to_json(value)) == {"a": None, "b": [1.5, None, {"c": [None, "x", 2]}], "d": None}
