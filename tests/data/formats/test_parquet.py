import numpy as np
import pyarrow as pa
import pytest
from data.lerobot_files import png, write_parquet

from jaxvla.data.formats import parquet
from jaxvla.errors import DataError


def save(path, **columns):
    write_parquet(path, pa.table(columns), 2)
    return str(path)


def test_numbers_come_flat_whatever_their_type(tmp_path):
    path = save(
        tmp_path / "a.parquet",
        plain=pa.array([1, 2, 3], pa.int16()),
        flags=[True, False, True],
        vectors=pa.array([[0, 1], [2, 3], [4, 5]], pa.list_(pa.float64(), 2)),
        nested=[[[1, 2, 3], [4, 5, 6]]] * 3,
        holes=[1.5, None, 2.5],
    )
    shapes = {"plain": (1,), "flags": (1,), "vectors": (2,), "nested": (2, 3), "holes": (1,)}
    found = parquet.read_columns(path, shapes)
    np.testing.assert_array_equal(found["plain"], [[1], [2], [3]])
    np.testing.assert_array_equal(found["flags"], [[1], [0], [1]])
    np.testing.assert_array_equal(found["vectors"], np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(found["nested"], [[1, 2, 3, 4, 5, 6]] * 3)
    np.testing.assert_array_equal(found["holes"], [[1.5], [np.nan], [2.5]])
    assert found["vectors"].dtype == np.float64


def test_what_is_no_such_table_is_said(tmp_path):
    path = save(tmp_path / "a.parquet", x=[[1.0, 2.0], None, [3.0, 4.0]], y=["a", "b", "c"])
    with pytest.raises(
        DataError, match=r"a.parquet: column 'x' holds lists of 2 or 0 values, by info.json of shape \[2\]"
    ):
        parquet.read_columns(path, {"x": (2,)})
    with pytest.raises(DataError, match=r"a.parquet: no column 'z', it has x, y$"):
        parquet.read_rows(path, ["z"])
    (tmp_path / "b.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"b.parquet: is cut off or damaged \(.*\): download or make it again"):
        parquet.read_rows(str(tmp_path / "b.parquet"))


def test_pictures_are_found_in_their_row_groups(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pictures = [png(np.full((4, 4, 3), shade, np.uint8)) for shade in range(5)]
    rows = [{"bytes": data, "path": None} for data in pictures]
    path = save(tmp_path / "a.parquet", **{"observation.image": pa.array(rows, kind)})
    for row in (4, 0, 3, 1, 2):
        assert parquet.read_picture(path, "observation.image", row) == pictures[row]
    assert parquet.missing_pictures(path, "observation.image") == 0
    with pytest.raises(DataError, match=r"no row 5, it has 5: it changed, download it again"):
        parquet.read_picture(path, "observation.image", 5)
    rows[3] = {"bytes": None, "path": "frame_000003.png"}
    path = save(tmp_path / "b.parquet", **{"observation.image": pa.array(rows, kind), "x": range(5)})
    assert parquet.missing_pictures(path, "observation.image") == 1
    with pytest.raises(DataError, match=r"row 3 has no picture in 'observation.image', but a path at most"):
        parquet.read_picture(path, "observation.image", 3)
    with pytest.raises(DataError, match=r"column 'x' holds no pictures \(a struct with `bytes`\)"):
        parquet.missing_pictures(path, "x")
