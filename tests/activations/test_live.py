"""Live rows: which tokens become rows, what is counted, what is refused, and how often the host runs."""

import math

import pytest
import torch

from saetools.activations.calibration import calibrate
from saetools.activations.live import HostPass, LiveSource, live_sources
from saetools.errors import ConfigError, DataError


def first(source, n, start=0):
    stream = source.batches(start)
    batches = [next(stream) for _ in range(n)]
    stream.close()
    return batches


def test_rows_are_the_kept_tokens_in_order(host, make_plan):
    plan = make_plan(with_outliers=False)
    for (number, rows), tokens in zip(
        first(LiveSource(host, plan, "mixed", "float32"), 9), plan.batches(), strict=False
    ):
        x = host.activations(torch.from_numpy(tokens.ids_BT), ["mixed"])["mixed"]
        at = [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1]) if tokens.keep_BT[b, t]]
        assert number == tokens.number
        assert rows.x_ND.equal(torch.stack([x[b, t] for b, t in at]))
        assert rows.where_N2.tolist() == [[int(tokens.document_B[b]), int(tokens.position_BT[b, t])] for b, t in at]


def test_every_token_is_kept_or_counted(host, make_plan):
    plan = make_plan("heldout")
    bare = LiveSource(host, plan, "embed", "float32")
    source = bare.with_calibration(calibrate(bare, 100))
    rows = sum(len(rows) for _, rows in source.batches())
    tokens = list(plan.batches())
    counts = source.counts
    assert counts.rows == rows
    assert counts.bos == sum(int((t.document_B >= 0).sum()) for t in tokens)
    outliers = sum(int(((t.ids_BT == 49) & t.keep_BT).sum()) for t in tokens)
    assert counts.outliers == outliers > 0
    assert counts.rows + counts.bos + counts.padding + counts.outliers == sum(t.ids_BT.size for t in tokens)


def test_outliers_stay_where_asked(host, make_plan):
    bare = LiveSource(host, make_plan("heldout"), "embed", "float32", drop_outliers=False)
    source = bare.with_calibration(calibrate(bare, 100))
    assert sum(len(rows) for _, rows in source.batches()) == sum(len(rows) for _, rows in bare.batches())
    assert source.counts.outliers == 0


def test_rows_have_the_dtype_and_do_not_depend_on_the_other_points(host, make_plan, same):
    both = live_sources(host, make_plan(), ["embed", "mixed"], "bfloat16")
    for point in ("embed", "mixed"):
        alone = LiveSource(host, make_plan(), point, "bfloat16")
        for (_, a), (_, b) in zip(first(both[point], 5), first(alone, 5), strict=True):
            assert a.x_ND.dtype is torch.bfloat16
            assert same(a, b)


def test_several_points_and_readers_run_the_host_once(host, make_plan):
    sources = live_sources(host, make_plan(), ["embed", "mixed"], "float32")
    streams = [source.batches() for source in sources.values()]
    for _ in range(20):
        for stream in streams:
            next(stream)
    assert sources["embed"].host_pass.n_passes == 20
    assert not sources["embed"].host_pass._kept  # what all have taken is forgotten


def test_a_reader_far_behind_gets_the_same_rows_from_bounded_memory(host, make_plan, same):
    host_pass = HostPass(host, make_plan(), ["embed", "mixed"], "float32", max_ahead=3)
    ahead = [host_pass.take("embed", i) for i in range(10)]
    assert len(host_pass._kept) <= 3
    behind = [host_pass.take("mixed", i) for i in range(10)]
    fresh = HostPass(host, make_plan(), ["mixed"], "float32")
    assert all(same(behind[i][0], fresh.take("mixed", i)[0]) for i in range(10))
    assert len(ahead) == 10


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 20])
def test_restart_at_any_batch(host, make_plan, same, start):
    straight = first(LiveSource(host, make_plan(), "mixed", "float32"), 24)
    again = first(LiveSource(host, make_plan(), "mixed", "float32"), 3, start)
    for (n, a), (m, b) in zip(straight[start : start + 3], again, strict=True):
        assert n == m
        assert same(a, b)


def test_after_the_end_earlier_batches_can_be_read(host, make_plan, same):
    source = LiveSource(host, make_plan("heldout"), "embed", "float32")
    straight = first(source, 4)
    first(source, 3)  # the pass stands before batch 3 again
    assert list(source.batches(99)) == []
    for _ in range(2):
        assert same(first(source, 1, 3)[0][1], straight[3][1])


def test_after_a_document_that_could_not_be_read_the_rows_go_on(host, make_plan, same, monkeypatch):
    """A notebook's cell is run again: the rows had seemed to be at their end."""

    def gone(document_id):
        raise DataError("gone")

    whole, plan = first(LiveSource(host, make_plan(), "embed", "float32"), 4), make_plan()
    source = LiveSource(host, plan, "embed", "float32")
    with monkeypatch.context() as patched, pytest.raises(DataError, match="gone"):
        patched.setattr(plan.corpus, "document", gone)
        first(source, 4)
    assert all(same(ours[1], theirs[1]) for ours, theirs in zip(first(source, 4), whole, strict=True))


def test_the_heldout_split_ends(host, make_plan):
    source = LiveSource(host, make_plan("heldout"), "embed", "float32")
    assert [n for n, _ in source.batches()] == list(range(7))
    assert list(source.batches(7)) == []
    assert [n for n, _ in source.batches(3)] == [3, 4, 5, 6]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(host, make_plan, value):
    plan = make_plan(with_outliers=False)
    tokens = next(plan.batches())
    token = int(tokens.ids_BT[tokens.keep_BT][-1])
    host.poison[("mixed", token)] = value
    b, t = next((b, t) for b, t in zip(*(tokens.ids_BT == token).nonzero(), strict=True) if tokens.keep_BT[b, t])
    with pytest.raises(DataError) as error:
        first(LiveSource(host, plan, "mixed", "float32"), 1)
    for part in (f"train/doc{tokens.document_B[b]}", f"position {tokens.position_BT[b, t]},", "point mixed"):
        assert part in str(error.value)
    first(LiveSource(host, plan, "embed", "float32"), 1)


def test_padding_and_bos_may_be_anything(host, make_plan):
    host.poison = {("embed", 0): math.nan, ("embed", 1): math.nan}
    first(LiveSource(host, make_plan(), "embed", "float32"), 7)


def test_overflow_of_the_dtype_says_so(host, make_plan):
    host.poison[("embed", 5)] = 1e6
    first(LiveSource(host, make_plan(), "embed", "bfloat16"), 7)
    with pytest.raises(DataError, match="overflow in float16"):
        first(LiveSource(host, make_plan(), "embed", "float16"), 7)


def test_an_uncalibrated_source_has_no_calibration(host, make_plan):
    with pytest.raises(ConfigError, match="not calibrated"):
        _ = LiveSource(host, make_plan(), "embed", "float32").calibration


def test_fingerprints_tell_streams_apart(host, make_plan):
    bare = LiveSource(host, make_plan(), "embed", "float32")
    record = calibrate(bare, 100)
    others = [
        LiveSource(host, make_plan(), "mixed", "float32"),
        LiveSource(host, make_plan(), "embed", "bfloat16"),
        LiveSource(host, make_plan(seed=1), "embed", "float32"),
        bare.with_calibration(record),
        bare.with_calibration(record.model_copy(update={"median_norm": 1.0})),
    ]
    assert len({source.fingerprint() for source in [bare, *others]}) == 6
    keeps = LiveSource(host, make_plan(), "embed", "float32", record, drop_outliers=False)
    assert keeps.fingerprint() == bare.fingerprint() == keeps.fingerprint(calibrated=False)
    assert (others[4].outlier_norm, keeps.outlier_norm, bare.outlier_norm) == (10.0, None, None)
    unlike, alike = [bare, *others[:3], others[4]], others[3:]
    assert len({source.fingerprint(calibrated=False) for source in unlike}) == 5
    assert len({source.fingerprint(calibrated=False) for source in alike}) == 1, "only the norms of outliers differ"
