"""Rows files: formats, splits, fields, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saetools.activations.calibration import calibrate, measure
from saetools.activations.rows import RowsFile, RowsSource
from saetools.errors import ConfigError, DataError, FormatError

N, D = 95, 4
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def saved(path, **tensors):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


def all_rows(source, n=None):
    stream = source.batches()
    return [rows for _, rows in (stream if n is None else (next(stream) for _ in range(n)))]


def x_of(batches):
    return torch.cat([rows.x_ND for rows in batches])


@pytest.fixture
def file(tmp_path):
    return saved(tmp_path / "rows.safetensors", x=X)


def test_both_formats_give_the_same_rows(tmp_path, file, same):
    np.save(tmp_path / "rows.npy", X.numpy())
    np.save(tmp_path / "big_endian.npy", X.numpy().astype(">f4"))
    expected = all_rows(RowsSource(file, batch_rows=10), 9)
    for name in ("rows.npy", "big_endian.npy"):
        rows = all_rows(RowsSource(tmp_path / name, batch_rows=10), 9)
        assert all(same(a, b) for a, b in zip(rows, expected, strict=True))
    assert x_of(expected).equal(X[:86])


def test_the_last_tenth_is_held_out(file):
    train, heldout = RowsSource(file, batch_rows=10), RowsSource(file, split="heldout", batch_rows=10)
    assert x_of(all_rows(heldout)).equal(X[86:])
    assert x_of(all_rows(train, 9)).equal(X[:86])
    assert (train.n_batches, heldout.n_batches) == (9, 1)
    others = [{"dtype": "bfloat16"}, {"batch_rows": 9}, {"gradients": False}, {"calibration": calibrate(train, 50)}]
    prints = [s.fingerprint() for s in (train, heldout, *(RowsSource(file, **{"batch_rows": 10} | o) for o in others))]
    assert len(set(prints)) == 6


def test_a_heldout_file_leaves_all_of_the_first_for_training(tmp_path, file):
    other = saved(tmp_path / "other.safetensors", x=X + 1)
    assert x_of(all_rows(RowsSource(file, other, "heldout"))).equal(X + 1)
    assert x_of(all_rows(RowsSource(file, other), 1)).equal(X)


def test_the_train_split_repeats_and_restarts_anywhere(file, same):
    straight = all_rows(RowsSource(file, batch_rows=10), 30)
    assert all(same(straight[i], straight[i % 9]) for i in range(30))
    for start in (0, 4, 9, 17):
        number, rows = next(RowsSource(file, batch_rows=10).batches(start))
        assert number == start
        assert same(rows, straight[start])


def test_fields_and_where_are_aligned_and_traced(tmp_path):
    where = torch.stack([torch.arange(N) // 10, torch.arange(N) % 10], dim=1).to(torch.int32)
    file = saved(tmp_path / "rows.safetensors", x=X, grad=2 * X, where=where)
    source = RowsSource(file, batch_rows=7, dtype="bfloat16")
    for rows in all_rows(source, 20):
        at = rows.where_N2[:, 0] * 10 + rows.where_N2[:, 1]
        assert rows.x_ND.equal(X[at].bfloat16())
        assert rows.fields["grad"].equal((2 * X[at]).bfloat16())
        assert rows.where_N2.dtype is torch.int64
    assert source.document_id(3) == "rows.safetensors#3"
    bare = RowsSource(saved(tmp_path / "bare.safetensors", x=X), split="heldout")
    assert all_rows(bare)[0].where_N2.tolist() == [[0, row] for row in range(86, 95)]
    assert bare.document_id(0) == "bare.safetensors"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_is_read_and_the_only_matrix_is_found(tmp_path, dtype):
    file = saved(tmp_path / "rows.safetensors", states=X.to(dtype), bias=X[0])
    assert x_of(all_rows(RowsSource(file), 1)).equal(X.to(dtype)[:86].float())


def test_rows_whose_squares_leave_float32_are_no_outliers(tmp_path):
    """All of them would be dropped, and a run would read the file for ever."""
    file = saved(tmp_path / "rows.safetensors", x=X * 1e25)
    assert len(all_rows(RowsSource(file, calibration=calibrate(RowsSource(file), 1000)), 1)[0]) == 86


def test_outliers_are_dropped_and_counted(tmp_path):
    x = X.clone()
    x[[3, 50]] *= 1000
    file = saved(tmp_path / "rows.safetensors", x=x)
    record = calibrate(RowsSource(file), 1000)
    kept = measure(torch.cat([X[:3], X[4:50], X[51:86]]))
    assert record.n_rows == kept.n_rows == 84
    assert (record.scale, record.total_variance, record.b_dec_start) == (
        *(kept.scale, kept.total_variance, kept.b_dec_start),
    ), "outliers have no part in constants of rows that they are dropped from"
    keeping = calibrate(RowsSource(file, drop_outliers=False), 1000)
    assert keeping.n_rows == 86
    assert keeping.median_norm == record.median_norm
    assert keeping.scale < record.scale / 50
    source = RowsSource(file, calibration=record)
    rows = all_rows(source, 1)[0]
    assert set(range(86)) - set(rows.where_N2[:, 1].tolist()) == {3, 50}
    assert (source.counts.rows, source.counts.outliers) == (84, 2)
    assert len(all_rows(RowsSource(file, calibration=record, drop_outliers=False), 1)[0]) == 86
    with pytest.raises(ConfigError, match="not calibrated"):
        _ = RowsSource(file).calibration


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "grad"])
def test_what_is_not_finite_is_named(tmp_path, name, value):
    tensors = {"x": X.clone(), "grad": X.clone()}
    tensors[name][41, 2] = value
    with pytest.raises(DataError, match=f"Row 41 of `{name}`"):
        all_rows(RowsSource(saved(tmp_path / "rows.safetensors", **tensors), batch_rows=10), 9)


def test_overflow_of_the_dtype_says_so(tmp_path):
    file = saved(tmp_path / "rows.safetensors", x=X * 1e6)
    with pytest.raises(DataError, match="overflows in float16"):
        all_rows(RowsSource(file, dtype="float16"), 1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": X, "b": X}, "the matrix `x`"),
        ({"a": X[0]}, "the matrix `x`"),
        ({"x": X[0], "y": X[0]}, "the matrix `x`"),
        ({"x": X, "grad": X[:5]}, "`grad` has shape"),
        ({"x": X, "where": torch.zeros(N, 3, dtype=torch.int64)}, "`where` has shape"),
        ({"x": X, "where": torch.zeros(N, 2)}, "`where` is of type F32"),
        ({"x": X[:, :0]}, "its rows have no numbers"),
        ({"x": torch.ones(4, 3, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_other_contents_are_refused(tmp_path, tensors, message):
    with pytest.raises(FormatError, match=message):
        RowsFile(saved(tmp_path / "rows.safetensors", **tensors))


def test_other_files_are_refused(tmp_path, file):
    np.save(tmp_path / "fortran.npy", np.asfortranarray(X.numpy()))
    np.save(tmp_path / "ints.npy", np.ones((4, 3), int))
    np.save(tmp_path / "objects.npy", np.array([[{}]], object), allow_pickle=True)
    np.save(tmp_path / "vector.npy", X[0].numpy())
    (tmp_path / "rows.pt").write_bytes(b"x")
    (tmp_path / "noise.npy").write_bytes(b"not a numpy file")
    np.save(tmp_path / "open.npy", X.numpy())  # with a bracket that is never closed
    (tmp_path / "open.npy").write_bytes((tmp_path / "open.npy").read_bytes().replace(b"'<f4', ", b"('<f4',"))
    np.save(tmp_path / "long.npy", X.numpy().astype(np.longdouble))
    names = ("fortran.npy", "ints.npy", "objects.npy", "vector.npy", "rows.pt", "noise.npy", "absent.npy", "open.npy")
    for name in names + (("long.npy",) if np.longdouble(0).itemsize > 8 else ()):
        with pytest.raises(FormatError, match=name):
            RowsFile(tmp_path / name)
    for suffix in ("safetensors", "npy"):
        whole = file if suffix == "safetensors" else tmp_path / "whole.npy"
        np.save(tmp_path / "whole.npy", X.numpy())
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole.read_bytes()[:-8])
        with pytest.raises(FormatError, match="cut"):
            RowsFile(cut)


def test_too_few_rows_for_a_split(tmp_path):
    file = saved(tmp_path / "rows.safetensors", x=X[:1])
    with pytest.raises(DataError, match="none are left for the train split"):
        RowsSource(file)
