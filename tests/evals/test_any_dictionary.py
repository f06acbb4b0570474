"""Every kind of dictionary can be evaluated; nothing here knows a kind."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from every_evaluation import NAMES, figures, runnable
from small_hosts import D_MODEL, by_name, host_subject, row_subject

from saetools.dictionaries.base import available_dictionaries, make_dictionary
from saetools.evals.base import make_evaluation
from saetools.evals.run import run_evaluations

KINDS = sorted({cls.kind for cls in available_dictionaries().values()})
ROWS = ("reconstruction", "sparsity", "geometry")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind(kind):
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    dictionary = make_dictionary(available_dictionaries()[kind].examples()[0], 16)
    found = by_name(run_evaluations(row_subject(dictionary, x), [make_evaluation(name) for name in ROWS]))
    with torch.no_grad():
        fvu = (x - dictionary(x)).square().sum() / (x - x.mean(0)).square().sum()
        l0 = (dictionary.encode(x).to_dense() != 0).sum(1).double().mean()
    assert found["fvu"].value == pytest.approx(float(fvu), rel=1e-4)
    assert found["l0_mean"].value == pytest.approx(float(l0))
    assert found["coherence"].value <= 1 + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_splicing_of_every_kind(kind):
    config = available_dictionaries()[kind].examples()[0]
    subject = host_subject(make_dictionary(config, D_MODEL))
    found = by_name(make_evaluation("loss_recovered").run(subject))
    assert found["kl_spliced"].value >= 0 and found["ce_recovered_zero"].value is not None


@pytest.mark.parametrize("part", ["W_enc_FD", "W_dec_FD"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_no_numbers_end_no_run(name, part):
    """Figures are none where they would be no numbers; two evaluations ended in messages of scipy and scikit-learn."""
    subject = runnable(name)
    broken = copy.deepcopy(subject.dictionary)
    with torch.no_grad():
        getattr(broken, part)[3] = torch.nan
    for record in figures(name, replace(subject, dictionary=broken)).values():
        assert record.note if record.value is None else math.isfinite(record.value)
