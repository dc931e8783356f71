"""Features on disk: what is kept, what goes first, and what is not believed."""

import os
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fednano.errors import SettingsInvalid
from fednano.model.parts import resolve_model
from services.client.feature_cache import FeatureCache, features_key

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
CPU = torch.device("cpu")


def tensor(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((4, 16), value, dtype=dtype)


def opened(folder: Path, key: str = "key", most_bytes: int = 1 << 20) -> FeatureCache:
    cache = FeatureCache(folder, key, most_bytes)
    assert cache.open()
    return cache


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_put_is_there_for_the_next_process_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    first = opened(tmp_path)
    first.put(A, tensor(0.1, dtype))
    first.close()
    second = opened(tmp_path)
    found = second.get(A)
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, tensor(0.1, dtype))
    assert second.get(B) is None


def test_nobody_else_on_the_machine_may_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        opened(tmp_path / "cache").put(A, tensor(1.0))
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cache").rglob("*") if path.is_dir()}
    assert modes | {stat.S_IMODE((tmp_path / "cache").stat().st_mode)} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {0o600}


@pytest.mark.parametrize("kept", [b"", b"\0" * 20, None], ids=["empty", "rubbish", "one_bit"])
def test_a_damaged_file_is_as_good_as_none_and_goes(
    tmp_path: Path, kept: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = opened(tmp_path)
    cache.put(A, tensor(1.0))
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content if kept is None else kept)
    assert cache.get(A) is None
    assert not cache.has(A)
    assert not files(tmp_path)
    assert "feature_ignored" in capsys.readouterr().out
    cache.put(A, tensor(1.0))
    assert cache.get(A) is not None


def test_a_file_under_another_pictures_name_is_not_believed(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.put(A, tensor(1.0))
    cache.put(B, tensor(2.0))
    a, b = files(tmp_path)
    b.write_bytes(a.read_bytes())
    assert cache.get(B) is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.put(A, tensor(1.0))
    two = 2 * cache.held_bytes
    cache.close()
    cache = opened(tmp_path, most_bytes=two)
    cache.put(B, tensor(2.0))
    assert not cache.has_room(1)
    assert cache.get(A) is not None
    cache.put(C, tensor(3.0))
    assert [cache.has(name) for name in (A, B, C)] == [True, False, True]
    assert cache.held_bytes == two
    assert len(files(tmp_path)) == 2


def test_a_smaller_budget_is_kept_from_the_start_also_by_what_other_models_left(tmp_path: Path) -> None:
    first = opened(tmp_path, "one")
    first.put(A, tensor(1.0))
    first.close()
    second = opened(tmp_path, "other", most_bytes=first.held_bytes)
    assert second.get(A) is None
    second.put(B, tensor(2.0))
    assert [path.stem for path in files(tmp_path)] == [B]


def test_what_is_larger_than_the_budget_is_not_kept(tmp_path: Path) -> None:
    cache = opened(tmp_path, most_bytes=100)
    cache.put(A, tensor(1.0))
    assert not files(tmp_path)


def test_a_draft_that_a_killed_process_left_goes(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.put(A, tensor(1.0))
    draft = files(tmp_path)[0].with_name(".x.part")
    draft.write_bytes(b"half")
    cache.close()
    opened(tmp_path)
    assert not draft.exists()


def test_a_folder_has_one_process_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = opened(tmp_path)
    assert not FeatureCache(tmp_path, "key", 1 << 20).open()
    assert "feature_cache_busy" in capsys.readouterr().out
    first.close()
    opened(tmp_path)


def test_a_folder_that_cannot_be_is_named_with_its_flag(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsInvalid, match="--feature-cache: cannot write to"):
        FeatureCache(tmp_path / "file" / "cache", "key", 1).open()


def test_a_disk_that_refuses_is_not_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = opened(tmp_path)
    (tmp_path / "key" / A[:2]).write_text("in the way")
    cache.put(A, tensor(1.0))
    cache.put(B, tensor(2.0))
    assert not files(tmp_path)
    assert capsys.readouterr().out.count("feature_cache_refused") == 1


def test_the_key_changes_with_the_edge_half_the_type_and_the_device(tmp_path: Path) -> None:
    edge = resolve_model("nano") / "edge"
    copy = tmp_path / "edge"
    copy.mkdir()
    for path in edge.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    key = features_key(edge, torch.float32, CPU)
    assert features_key(copy, torch.float32, CPU) == key
    assert features_key(copy, torch.bfloat16, CPU) != key
    assert features_key(copy, torch.float32, torch.device("cuda")) != key
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert features_key(copy, torch.float32, CPU) != key
