"""Tables of paths and labels: columns, files and classes are found, or an error says what to do."""

from __future__ import annotations

import io
import logging
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from fastcifar.converters import Sample, SourceOptions, open_source, table_files
from fastcifar.errors import DataError, FastcifarError, MissingExtraError, UsageError

Row = tuple[str, str, int]
"""Origin, class name, and red of an image."""


def png(red: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 1.png to 6.png, whose red is their number."""
    for number in range(1, 7):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    return tmp_path


def rows(path: Path, **options: Any) -> list[Row]:
    """All images of a table."""
    if not options.pop("has_test", False):
        options.setdefault("test_share", 0.3)
    with open_source(path, SourceOptions(**options)) as source:
        samples = [sample for split in source.splits.values() for sample in split]
        assert all(isinstance(sample, Sample) for sample in samples)
        return sorted((s.origin, source.class_names[s.label], int(s.image[0, 0, 0])) for s in samples)  # type: ignore[union-attr]


def write(folder: Path, content: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(folder: Path, content: str | bytes, kind: type[FastcifarError] = DataError, **options: Any) -> str:
    path = write(folder, content)
    with pytest.raises(kind) as caught:
        rows(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", "").replace(str(folder), "ROOT")


THREE = [("1.png", "cat", 1), ("2.png", "dog", 2), ("3.png", "cat", 3)]


@pytest.mark.parametrize(
    "content",
    [
        "file,label\n1.png,cat\n2.png,dog\n3.png,cat\n",
        "label,file\ncat,1.png\ndog,2.png\ncat,3.png\n",
        "id,breed\n1,cat\n2,dog\n3,cat\n",
        "1.png,cat\n2.png,dog\n3.png,cat\n",
        "1,cat\n2,dog\n3,cat\n",
        "a,b\n1.png,cat\n2.png,dog\n3.png,cat\n",
        "file;label\r\n1.png;cat\r\n\r\n2.png;dog\r\n3.png;cat",
        '"file","label"\n"1.png","cat"\n"2.png"," dog"\n"3.png","cat "\n',
        "\ufefffile,label\n./1.png,cat\n2.png,dog\n3.png,cat\n",
        "file\tlabel\n1.png\tcat\n2.png\tdog\n3.png\tcat\n".encode("utf-16"),
        ",Image Name,size,Label\n0,1.png,9,cat\n1,2.png,9,dog\n2,3.png,9,cat\n",
        "id,filename,class\n1,1.png,cat\n2,2.png,dog\n3,3.png,cat\n",
        "number,path,kind of animal\n7,1.png,cat\n8,2.png,dog\n9,3.png,cat\n".replace("number", "index"),
    ],
)
def test_columns_and_form_of_a_table_are_detected(folder: Path, content: str | bytes) -> None:
    assert rows(write(folder, content)) == THREE


def test_what_was_detected_is_logged_in_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rows(
        write(folder, "1.png,cat,train\n2.png,dog,train\n3.png,cat,test\n"),
        label_column="2",
        split_column="3",
        has_test=True,
    )
    detected = [message for message in caplog.messages if " detected: " in message]
    assert len(detected) == 1
    assert detected[0].endswith("labels.csv: detected: paths in column '1', labels in '2', split in '3' (no header)")
    assert any("3 other images" in message for message in caplog.messages)


def test_tsv_is_split_at_tabs_alone(folder: Path) -> None:
    path = write(folder, "file\tlabel\n1.png\ta, b\n2.png\tc, d\n3.png\ta, b\n", "labels.tsv")
    assert [name for _, name, _ in rows(path)] == ["a, b", "c, d", "a, b"]


def test_latin_1_is_read_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(folder, "file,label\n1.png,café\n2.png,dog\n3.png,dog\n".encode("latin-1"))
    assert rows(path)[0][1] == "café"
    assert "not UTF-8; read as Windows-1252 (Latin-1)" in caplog.text


# ---- which file a value means -------------------------------------------------------------------------------------


def kaggle(folder: Path, name: str) -> Path:
    for split, add in (("train", 0), ("test", 100)):
        (folder / split).mkdir()
        for number in range(1, 4):
            (folder / split / f"{number}.png").write_bytes(png(number + add))
    return write(folder, "id,label\n1,cat\n2,dog\n3,cat\n", name)


def test_kaggles_cifar10_works_as_it_comes(tmp_path: Path) -> None:
    path = kaggle(tmp_path, "trainLabels.csv")
    assert rows(path) == [(f"train/{origin}", name, red) for origin, name, red in THREE]
    assert rows(path, images_root=str(tmp_path / "train")) == THREE


def test_files_of_the_same_name_need_the_folder_to_be_named(tmp_path: Path) -> None:
    kaggle(tmp_path, "labels.csv")
    message = refusal(tmp_path, "id,label\n1,cat\n2,dog\n3,cat\n")
    assert message == (
        "labels.csv: line 2: '1' may be several files: test/1.png, train/1.png; choose a folder, e.g. --images-root "
        "train"
    )


def test_the_only_folder_with_all_files_is_taken(tmp_path: Path) -> None:
    path = kaggle(tmp_path, "labels.csv")
    (tmp_path / "test/2.png").unlink()
    assert [origin for origin, _, _ in rows(path)] == ["train/1.png", "train/2.png", "train/3.png"]


@pytest.mark.parametrize("value", ["deep/{}.png", "deep/{}", "deep\\{}.png", "images/deep/{}.png", "{}", "{}.png"])
def test_values_may_lack_suffix_or_folders(tmp_path: Path, value: str) -> None:
    (tmp_path / "images/deep").mkdir(parents=True)
    for number in range(1, 4):
        (tmp_path / f"images/deep/{number}.png").write_bytes(png(number))
    content = "file,label\n" + "".join(
        f"{value.format(n)},{name}\n" for n, name in ((1, "cat"), (2, "dog"), (3, "cat"))
    )
    path = write(tmp_path, content)
    expected = [(f"images/deep/{origin}", name, red) for origin, name, red in THREE]
    assert rows(path) == expected
    inside = [(f"deep/{origin}", name, red) for origin, name, red in THREE]
    assert rows(path, images_root=str(tmp_path / "images")) == inside


def test_other_columns_with_slashes_do_not_hide_the_folder_of_the_images(tmp_path: Path) -> None:
    (tmp_path / "images/deep").mkdir(parents=True)
    for number in range(1, 4):
        (tmp_path / f"images/deep/{number}.png").write_bytes(png(number))
    lines = "".join(f"{number}/11/2026,deep/{number}.png,{number % 2}\n" for number in range(1, 4))
    path = write(tmp_path, f"date,file,label\n{lines}")
    assert [red for _, _, red in rows(path)] == [1, 2, 3]


def test_an_absolute_path_in_the_root_is_taken(folder: Path) -> None:
    assert rows(write(folder, f"file,label\n{folder}/1.png,cat\n2.png,dog\n{folder}/3.png,cat\n")) == THREE


def test_the_root_may_be_an_archive(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    archive = tmp_path_factory.mktemp("archive") / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for number in range(1, 4):
            tar.add(folder / f"{number}.png", f"pictures/{number}.png")
    path = write(folder, "file,label\n1.png,cat\n2.png,dog\n3.png,cat\n")
    assert rows(path, images_root=str(archive)) == [(f"pictures/{origin}", name, red) for origin, name, red in THREE]


def test_a_missing_file_is_not_replaced_by_one_elsewhere(folder: Path) -> None:
    (folder / "old").mkdir()
    os.replace(folder / "2.png", folder / "old/2.png")
    message = refusal(folder, "file,label\n1.png,cat\n2.png,dog\n3.png,cat\n")
    assert message.startswith("labels.csv: line 3: '2.png' is not in ROOT (1 of 3 are missing); expected paths")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("../2.png", "line 3: '../2.png' leads out of ROOT; expected a path in it"),
        ("a/../../2.png", "line 3: 'a/../../2.png' leads out of ROOT"),
        ("..\\2.png", "line 3: '..\\\\2.png' leads out of ROOT"),
        ("/etc/passwd", "line 3: '/etc/passwd' is an absolute path outside ROOT; expected a path relative to it"),
        ("C:\\2.png", "line 3: 'C:\\\\2.png' is an absolute path outside ROOT"),
    ],
)
def test_a_path_that_leaves_the_root_is_an_error(folder: Path, value: str, message: str) -> None:
    assert message in refusal(folder, f"file,label\n1.png,cat\n{value},dog\n3.png,cat\n")


def test_two_rows_with_one_file_are_an_error_that_names_both(folder: Path) -> None:
    message = refusal(folder, "file,label\n1.png,cat\n2.png,dog\n./1.png,dog\n")
    assert message == (
        "labels.csv: line 2 and line 4 are both 1.png, labels 'cat' and 'dog' (repeated rows: 1); expected one row for "
        "each image"
    )


def test_a_missing_root_is_an_error(folder: Path) -> None:
    message = refusal(folder, "file,label\n1.png,a\n2.png,b\n", images_root=str(folder / "nowhere"))
    assert message == "nowhere: no such file or folder; expected the folder or archive of the images, as --images-root"


# ---- columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "kind", "message"),
    [
        ("file,a,b\n1.png,x,y\n2.png,z,y\n", {}, DataError, "not clear which column is the label; name it"),
        ("file,label,class\n1.png,x,y\n2.png,z,y\n", {}, DataError, "more than one column may be the label; name it"),
        ("a,b,label\n1.png,2.png,x\n3.png,4.png,y\n", {}, DataError, "image; name it with --image-column; columns: a"),
        ("file,label\n1.png,x\n2.png,y\n", {"label_column": "z"}, UsageError, "a column of labels.csv: file, label"),
        ("file,x\n1.png,x\n2.png,y\n", {"image_column": "x", "label_column": "x"}, UsageError, "one column twice"),
        ("label,pixel0,pixel1\nx,2,3\ny,3,4\n", {}, DataError, "hold pixels, not paths; save them as arrays"),
        ("file,file,label\n1.png,1.png,x\n2.png,2.png,y\n", {}, DataError, "has two columns 'file'; rename one"),
        ("file\n1.png\n2.png\n", {}, DataError, "has one column; expected a column of paths and one of labels"),
        ("", {}, DataError, "has no rows"),
        ("file,label\n", {}, DataError, "has no rows; expected a row for each image"),
    ],
)  # fmt: skip
def test_unclear_columns_are_an_error_that_lists_them(
    folder: Path, content: str, options: dict[str, str], kind: type[FastcifarError], message: str
) -> None:
    assert message in refusal(folder, content, kind, **options)


def test_columns_can_be_named(folder: Path) -> None:
    path = write(folder, "file,a,b\n1.png,x,y\n2.png,z,y\n3.png,z,y\n")
    assert [name for _, name, _ in rows(path, label_column="a", image_column="file")] == ["x", "z", "z"]


# ---- splits -------------------------------------------------------------------------------------------------------


def splits(path: Path) -> dict[str, list[str]]:
    with open_source(path) as source:
        return {name: [sample.origin for sample in split] for name, split in source.splits.items()}


@pytest.mark.parametrize("column", ["split", "Set", "subset", "partition", "fold"])
def test_a_split_column_makes_the_splits(folder: Path, column: str) -> None:
    path = write(folder, f"file,label,{column}\n1.png,a,TRAIN\n2.png,b,Training\n3.png,a,Test\n4.png,b,testing\n")
    assert splits(path) == {"train": ["1.png", "2.png"], "test": ["3.png", "4.png"]}


def test_validation_images_test_only_where_there_are_no_test_images(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(folder, "file,label,split\n1.png,a,train\n2.png,b,train\n3.png,a,Valid\n")
    assert splits(path) == {"train": ["1.png", "2.png"], "test": ["3.png"]}
    assert "no test images; the images of the split 'val' are used to test" in caplog.text
    path = write(folder, "file,label,split\n1.png,a,train\n2.png,b,train\n3.png,a,val\n4.png,a,test\n")
    assert splits(path) == {"train": ["1.png", "2.png"], "test": ["4.png"]}
    assert "the split 'val' is not used: there is a test set of its own" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1.png,a,train\n2.png,b,extra\n", "line 3: column 'split' is 'extra'; expected one of: train, test, val"),
        ("1.png,a,test\n2.png,b,test\n", "no row has 'train' in column 'split'; expected training images"),
        ("1.png,a,train\n2.png,b,train\n3.png,c,test\n", "test has the label 'c', which train does not have"),
        ("1.png,a,train\n2.png,b,\n", "line 3: no value in column 'split' (in 1 of 2 rows)"),
    ],
)  # fmt: skip
def test_wrong_splits_are_an_error(folder: Path, lines: str, message: str) -> None:
    assert message in refusal(folder, f"file,label,split\n{lines}", has_test=True)


# ---- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["10.0", "9", "-2.00"], ("-2", "9", "10")),
        (["01", "10", "02"], ("01", "02", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        (["b", "c", "a b"], ("a b", "b", "c")),
    ],
)
def test_class_names_are_the_labels_sorted(folder: Path, labels: list[str], names: tuple[str, ...]) -> None:
    lines = "".join(f"{number}.png,{labels[number % 3]}\n" for number in range(1, 7))
    with open_source(write(folder, f"file,label\n{lines}"), SourceOptions(test_share=0.3)) as source:
        assert source.class_names == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", ""], "line 3: no value in column 'label' (in 1 of 2 rows); fill it in, or remove the rows"),
        (["a", "NaN"], "line 3: no value in column 'label'"),
        (["3", "3.5"], "line 3: label 3.5; expected a class: a name, or a whole number"),
        (["3", "1e3"], "line 3: label 1e3; expected a class"),
        (["3", "inf"], "line 3: label inf; expected a class"),
        (
            ["Cat", "cat"],
            "the labels 'Cat' and 'cat' differ only in case, spaces or Unicode form; rename or merge them",
        ),
        (["a", "b\x1b[2J"], "the label 'b\\x1b[2J' has characters that are not printable; rename it"),
        (["a", "b" * 3_000], "has 3,000 characters; expected at most"),
        (["a", "b" * 5_000], "line 3: column 'label' has over 4,096 characters; expected a path or label"),
    ],
)
def test_labels_that_are_no_classes_are_an_error(folder: Path, labels: list[str], message: str) -> None:
    assert message in refusal(folder, f"file,label\n1.png,{labels[0]}\n2.png,{labels[1]}\n")


def test_too_many_classes_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.converters.labels.MAX_CLASSES", 2)
    message = refusal(folder, "file,label\n1.png,a\n2.png,b\n3.png,c\n")
    assert message == "labels.csv: has 3 different labels; expected at most 2 classes"


# ---- damaged and hostile files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\n1.png,a\n2.png,b,c\n", "(line 3 has 3 values, the first one 2)"),
        ('file,label\n1.png,"a\n2.png,b\n', "is a quotation mark not closed?)"),
        (b"PK\x03\x04\0\0file,label\n1.png,a\n", "(it is a ZIP archive)"),
        ("file,label\n1.png," + "a" * 200_000, "field larger than field limit"),
        ("file,label\n1.png," + "a" * 2**20, "a line has over 1,048,576 characters"),
    ],
)
def test_a_damaged_table_is_an_error(folder: Path, content: str | bytes, message: str) -> None:
    shown = refusal(folder, content)
    assert message in shown
    assert shown.endswith("expected .csv, .tsv or .parquet")


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_ROWS", 2, "over 2 rows"),
        ("MAX_TABLE_BYTES", 20, "expected at most 20"),
        ("MAX_COLUMNS", 1, "has 2 columns"),
    ],
)
def test_the_size_of_a_table_is_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, message: str
) -> None:
    monkeypatch.setattr(table_files, limit, value)
    assert message in refusal(folder, "file,label\n1.png,a\n2.png,b\n3.png,a\n")


def test_a_pipe_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "labels.csv")
    with pytest.raises(DataError, match="not a file or folder"):
        rows(folder / "labels.csv")


# ---- parquet ------------------------------------------------------------------------------------------------------


@pytest.fixture
def parquet(folder: Path) -> Callable[..., Path]:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def create(dictionary: bool = False, **columns: list[Any]) -> Path:
        arrays = {name: pa.array(values) for name, values in columns.items()}
        if dictionary:
            arrays = {name: array.dictionary_encode() for name, array in arrays.items()}
        pq.write_table(pa.table(arrays), folder / "t.parquet", store_schema=False, dictionary_pagesize_limit=2**28)
        return folder / "t.parquet"

    return create


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_parquet_table_is_read(parquet: Callable[..., Path], dictionary: bool) -> None:
    path = parquet(dictionary, file=["1.png", "2.png", "3.png"], label=["cat", "dog", "cat"], size=[9.5, 9.5, None])
    assert rows(path) == THREE


def test_labels_in_parquet_may_be_numbers(parquet: Callable[..., Path]) -> None:
    path = parquet(file=["1.png", "2", "3.png"], label=[10.0, 9.0, 10.0], boxes=[[1], [2], [3]])
    assert [name for _, name, _ in rows(path)] == ["10", "9", "10"]


def test_a_row_without_label_in_parquet_is_named(parquet: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"row 1: no value in column 'label' \(in 1 of 3 rows\)"):
        rows(parquet(file=["1.png", "2.png", "3.png"], label=[10, None, 10]))


def test_a_long_value_that_parquet_repeats_takes_little_memory(folder: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int32()), pa.array(["y" * 10**6]))
    content = pa.table({"file": repeated, "label": ["a"] * 1_000})  # a gigabyte if it were repeated
    pq.write_table(
        content, folder / "t.parquet", store_schema=False, write_batch_size=50, dictionary_pagesize_limit=2**28
    )
    with pytest.raises(DataError, match="row 0: column 'file' has over 4,096 characters"):
        rows(folder / "t.parquet")
    assert pa.default_memory_pool().max_memory() < 2**28


def test_the_row_groups_of_parquet_are_bounded_and_read_one_after_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content = pa.table({"file": ["1.png", "2.png", "3.png", "4.png"], "label": ["a", "b", "a", "b"]})
    pq.write_table(content, folder / "t.parquet", row_group_size=2)
    batches = table_files._batches(pq.ParquetFile(folder / "t.parquet"), ["label"])
    assert [batch.num_rows for batch in batches] == [2, 2]
    table = table_files.read_table(folder / "t.parquet")
    facts = pq.ParquetFile(folder / "t.parquet").metadata
    sizes = [facts.row_group(group).total_byte_size for group in (0, 1)]
    monkeypatch.setattr(table_files, "MAX_TABLE_BYTES", sum(sizes) - 1)
    with pytest.raises(DataError, match=f"file, label have {sum(sizes)} bytes; expected at most"):
        list(table.read([0, 1]))
    monkeypatch.setattr(table_files, "MAX_TABLE_BYTES", sizes[0] - 1)
    with pytest.raises(ValueError, match=f"a row group has {sizes[0]} bytes; expected at most"):
        list(table_files._parquet_rows(folder / "t.parquet", ["file", "label"]))


def test_parquet_without_pyarrow_says_how_to_install_it(
    parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(file=["1.png", "2.png"], label=["a", "b"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"reading parquet needs hf, .* pip install 'fastcifar\[hf\]'"):
        table_files.read_table(path)


def test_a_damaged_parquet_is_an_error(folder: Path, parquet: Callable[..., Path]) -> None:
    path = parquet(file=["1.png", "2.png"], label=["a", "b"])
    path.write_bytes(path.read_bytes()[:-40] + bytes(32) + b"PAR1")
    with pytest.raises(DataError, match="truncated or corrupt Parquet file"):
        rows(path)
