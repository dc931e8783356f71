import io
from pathlib import Path

import pytest
from PIL import Image

from fednano.data.folder import load_examples
from fednano.errors import ExamplesInvalid

datasets = pytest.importorskip("datasets", reason="the parquet extra is not installed")


def picture() -> dict[str, object]:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 0, 0)).save(content, format="png")
    return {"bytes": content.getvalue(), "path": None}


def write(path: Path, **columns: list[object]) -> Path:
    datasets.Dataset.from_dict(columns).to_parquet(str(path))
    return path


def import_from(source: Path, out: Path) -> dict[str, int]:
    from fednano.data.parquet import import_parquet

    return import_parquet(source, out)


def test_rows_become_lines_with_pictures_and_texts(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write(
        source / "train-0.parquet",
        question=["Which?", "How many?"],
        choices=[["one", "two"], []],
        answer=[1, 7],
        image=[picture(), None],
        topic=["a", ""],
    )
    write(source / "validation.parquet", question=["What?"], answer=["red"])
    assert import_from(source, tmp_path / "out") == {"train": 2, "val": 1}
    first, second = load_examples(tmp_path / "out", "train")
    assert (first.answer, first.choices, first.topic, len(first.images)) == ("two", ("one", "two"), "a", 1)
    assert (second.answer, second.images) == ("7", ())
    with Image.open(first.images[0]) as image:
        assert image.getpixel((0, 0)) == (9, 0, 0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["examples.jsonl", "images"]


def test_a_file_without_a_needed_column_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "train.parquet", question=["What?"])
    with pytest.raises(ExamplesInvalid, match="no column answer: it has question"):
        import_from(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_beyond_the_choices_names_the_row(tmp_path: Path) -> None:
    source = write(tmp_path / "train.parquet", question=["Which?"], choices=[["one"]], answer=[1])
    with pytest.raises(ExamplesInvalid, match="row 1 of train: answer"):
        import_from(source, tmp_path / "out")


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "train.parquet", question=["Which?", "What?"], answer=["one", None])
    with pytest.raises(ExamplesInvalid, match="row 2 of train: answer is missing"):
        import_from(source, tmp_path / "out")


def test_a_file_that_is_no_parquet_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ExamplesInvalid, match=r"no Parquet can be read from .*train\.parquet: "):
        import_from(source, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["source"]
