"""Splicing against a loop over windows, and closed forms of CE and KL."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_hosts import D_MODEL, LinearHost, Listed, by_name, host_subject, scaled_copy

from saetools.evals.base import with_host
from saetools.evals.loss_recovered import LossRecovered, mean_row
from saetools.evals.references import References
from saetools.evals.splicing import counted_windows, cross_entropy_N, kl_N


def figures(subject, **settings):
    return by_name(LossRecovered(**settings).run(subject))


def test_kl_and_ce_of_a_known_shift():
    """From uniform over V, adding s to one logit gives KL = ln((e^s + V - 1) / V) - s / V."""
    V, s = 7, 1.3
    p, q = torch.zeros(1, V), torch.zeros(1, V)
    q[0, 2] = s
    normaliser = math.log(math.exp(s) + V - 1)
    assert float(kl_N(p, q)) == pytest.approx(normaliser - math.log(V) - s / V, rel=1e-6)
    assert float(kl_N(p, p)) == 0
    assert float(cross_entropy_N(q, torch.tensor([2]))) == pytest.approx(normaliser - s, rel=1e-6)
    certain = torch.tensor([[0.0, -torch.inf]])
    assert float(kl_N(certain, torch.zeros(1, 2))) == pytest.approx(math.log(2))


def test_where_an_ablation_lowers_the_loss_the_fraction_is_said_to_be_none():
    """An untrained host predicts worse than without the point: (low - high) / (low - middle) looks like a share."""
    found = figures(host_subject())
    for run in ("zero", "mean"):
        assert found[f"ce_{run}"].value < found["ce_original"].value
        assert f"{run}-ablation does not raise the loss" in found[f"ce_recovered_{run}"].note
    repeating = LinearHost()
    repeating.U = repeating.embedding
    found = figures(host_subject(host=repeating, corpus=Listed(["ab" * 9, "a" * 20, "b" * 20, *"cdefghij"])))
    assert found["ce_zero"].value > found["ce_original"].value
    assert not any("does not raise" in (found[f"ce_recovered_{run}"].note or "") for run in ("zero", "mean"))


def brute_force(subject, replacement):
    """(document, position, ce, log_q) of each counted prediction, window by window."""
    host, found = subject.host, []
    for batch in subject.tokens.batches(0):
        for ids, keep, document, position in zip(batch.ids_BT, batch.keep_BT, batch.document_B, batch.position_BT):
            x = host._resid(torch.from_numpy(ids)[None])[0]
            for t in np.flatnonzero(keep):
                x[t] = replacement(x[t])
            logits = ((x + 0.1 * x.cumsum(0)) @ host.U.T).double()
            log_q = torch.log_softmax(logits, -1)
            found += [
                (document, position[t], float(-log_q[t, ids[t + 1]]), log_q[t])
                for t in range(len(ids) - 1)
                if keep[t] and keep[t + 1]
            ]
    return found


def test_equals_brute_force():
    subject = host_subject()
    found = figures(subject)
    mean = torch.cat([rows.x_ND for _, rows in subject.heldout.batches()]).mean(0)
    runs = {
        "original": brute_force(subject, lambda x: x),
        "spliced": brute_force(subject, lambda x: subject.dictionary(x[None]).detach()[0]),
        "zero": brute_force(subject, torch.zeros_like),
        "mean": brute_force(subject, lambda x: mean),
    }
    ce = {name: np.mean([row[2] for row in rows]) for name, rows in runs.items()}
    kl = {
        name: np.mean([float((p[3].exp() * (p[3] - q[3])).sum()) for p, q in zip(runs["original"], rows, strict=True)])
        for name, rows in runs.items()
    }
    n = len(runs["original"])
    for name in runs:
        assert found[f"ce_{name}"].value == pytest.approx(ce[name], rel=1e-5)
        assert found[f"ce_{name}"].n == n
    for reference in ("zero", "mean"):
        assert found[f"kl_{reference}"].value == pytest.approx(kl[reference], rel=1e-5)
        recovered = (ce[reference] - ce["spliced"]) / (ce[reference] - ce["original"])
        assert found[f"ce_recovered_{reference}"].value == pytest.approx(recovered, rel=1e-4)
        assert found[f"kl_recovered_{reference}"].value == pytest.approx(1 - kl["spliced"] / kl[reference], rel=1e-4)
    added = np.array([s[2] - o[2] for s, o in zip(runs["spliced"], runs["original"], strict=True)])
    series = found["ce_spliced"].series
    np.testing.assert_allclose(series["nats_added"], np.quantile(added, series["quantile"]), atol=1e-5)
    worst = int(added.argmax())
    assert (series["worst_document"][0], series["worst_position"][0]) == runs["original"][worst][:2]
    assert f"doc{runs['original'][worst][0]}" in found["ce_spliced"].note


def test_a_perfect_dictionary_recovers_all_and_zero_recovers_none():
    perfect = figures(host_subject(scaled_copy(D_MODEL, 1.0)))
    assert perfect["ce_recovered_zero"].value == pytest.approx(1, abs=1e-5)
    assert perfect["kl_recovered_mean"].value == pytest.approx(1, abs=1e-5)
    nothing = figures(host_subject(scaled_copy(D_MODEL, 0.0)))
    assert nothing["ce_recovered_zero"].value == pytest.approx(0, abs=1e-6)
    assert nothing["kl_recovered_zero"].value == pytest.approx(0, abs=1e-6)


def test_the_whole_error_term_gives_the_original_back():
    found = figures(host_subject(), error_term=1.0)
    assert found["ce_spliced"].value == pytest.approx(found["ce_original"].value, abs=1e-6)
    assert found["kl_spliced"].value == pytest.approx(0, abs=1e-9)
    half = figures(host_subject(), error_term=0.5)
    assert 0 < half["kl_spliced"].value < figures(host_subject())["kl_spliced"].value


def test_batches_windows_and_order_do_not_matter(monkeypatch):
    base = figures(host_subject(host_batch=4))
    monkeypatch.setattr("saetools.evals.splicing.LOGIT_BYTES", 1)  # one window at a time
    one_by_one = figures(host_subject(host_batch=3))
    monkeypatch.undo()
    reordered = figures(host_subject(order=[5, 2, 11, 0, 1, 7, 3, 4, 10, 6, 8, 9]))
    for name, record in base.items():
        assert one_by_one[name].value == pytest.approx(record.value, rel=1e-6), name
        assert reordered[name].value == pytest.approx(record.value, rel=1e-6), name


def test_the_limit_is_exact():
    subject = host_subject()
    assert figures(subject, n_tokens=37)["ce_zero"].n == 37
    rows = torch.cat([batch.x_ND for _, batch in subject.heldout.batches()])
    torch.testing.assert_close(mean_row(subject, 37), rows[:37].mean(0))


def test_windows_are_drawn_from_many_documents():
    """A quarter of the predictions, from windows all over the text; the same ones whatever the order and batches."""
    subject = host_subject(n=60)
    every = next(iter(windows_of(subject, 10**6)))
    n = len(every.target_N) // 4
    found = windows_of(subject, n)
    assert sum(len(w.target_N) for w in found) == n
    drawn, met = (set(torch.cat([w.document_N for w in ws]).tolist()) for ws in (found, [every]))
    assert len(met) > 40 and len(met) / 4 < len(drawn) < len(met)
    order = [d for batch in subject.tokens.batches(0) for d in batch.document_B.tolist()]
    near = {int(d) for w in windows_of(subject, n, n_read=3 * n) for d in w.document_N}
    assert near < set(order) and not near & set(order[-10:]), "the text beyond n_read is not looked at"
    kept = np.concatenate([batch.keep_BT.sum(1) for batch in subject.tokens.batches(0)])
    before = kept.cumsum() - kept
    for n_read in (before[9], before[9] + 1):  # a window belongs to the text read in which it begins
        n_windows = sum(len(w.ids_BT) for w in windows_of(subject, 10**6, n_read=n_read))
        assert n_windows == ((before < n_read) & (kept > 1)).sum()
    again = windows_of(host_subject(n=60, host_batch=7), n)
    for column in ("document_N", "position_N", "target_N"):
        a, b = (torch.cat([getattr(w, column) for w in ws]) for ws in (found, again))
        assert a.equal(b)


def windows_of(subject, n, n_read=10**6):
    return list(counted_windows(with_host(subject), n, n_read))


def test_outliers_keep_their_activations():
    host = LinearHost()
    host.embedding[5] *= 1000
    subject = host_subject(scaled_copy(D_MODEL, 0.0), host=host, n=40)
    found = figures(subject)
    big, n = 0, 0
    for batch in subject.tokens.batches(0):
        keep_BT = torch.from_numpy(batch.keep_BT)
        keep_BT &= (keep_BT.sum(1) > 1)[:, None]  # of one token nothing is predicted
        norm_BT = host._resid(torch.from_numpy(batch.ids_BT)).norm(dim=-1)
        big, n = big + int((norm_BT[keep_BT] > subject.heldout.outlier_norm).sum()), n + int(keep_BT.sum())
    assert 0 < big < n and found["ce_recovered_zero"].note.startswith(f"{big / n:.2%} of tokens are outliers")
    seen = []

    def spy(ids_BT, edits=None, own=host.logits):
        def watched(edit):
            def apply(x):
                y = edit(x)
                big = x.norm(dim=-1) > 100
                seen.append((int(big.sum()), bool((y[big] == x[big]).all())))
                return y

            return apply

        return own(ids_BT, {point: watched(edit) for point, edit in (edits or {}).items()})

    host.logits = spy
    figures(subject)
    assert sum(n for n, _ in seen) > 0 and all(equal for _, equal in seen)


def test_where_no_rows_are_dropped_none_are_spared():
    host = LinearHost()
    host.embedding[5] *= 1000
    subject = host_subject(scaled_copy(D_MODEL, 1.0), host=host, n=40, drop_outliers=False)
    found = figures(subject)
    assert "outliers" not in (found["ce_recovered_zero"].note or "")
    rows = torch.cat([batch.x_ND for _, batch in subject.heldout.batches()])
    assert rows.norm(dim=1).max() > 10 * subject.heldout.calibration.median_norm
    zeroed = brute_force(subject, torch.zeros_like)
    assert found["ce_zero"].value == pytest.approx(np.mean([row[2] for row in zeroed]), rel=1e-5)


def test_what_knows_nothing_of_the_dictionary_is_run_once_for_all():
    first, other = host_subject(), host_subject(scaled_copy(D_MODEL, 0.5))
    alone = {name: record.value for name, record in figures(other).items()}
    limits = {(1 << 20, 1 << 20): 1, (0, 1 << 20): 2, (1 << 20, 0): 4}  # logits did not fit; nothing did
    for (logit_bytes, figure_bytes), n_runs in limits.items():
        references, first.host.n_passes = References(logit_bytes, figure_bytes), 0
        figures(replace(first, references=references))
        n_windows = first.host.n_passes // 4
        for _ in range(2):
            subject = replace(other, host=first.host, references=references)
            assert {name: record.value for name, record in figures(subject).items()} == alone
        assert first.host.n_passes == (4 + 2 * n_runs) * n_windows
        assert bool(references._kept) == bool(figure_bytes)
    figures(subject, n_mean_tokens=7)
    assert first.host.n_passes == (4 + 2 * n_runs + 4) * n_windows, "another mean is another reference"
