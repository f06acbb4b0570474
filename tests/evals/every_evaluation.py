"""A subject for every registered evaluation that needs no planted rows, and settings that fit it."""

from dataclasses import replace

import pytest
from planted_classes import planted_subject
from small_hosts import D_MODEL, by_name, host_subject

from saetools.dictionaries.topk import TopK
from saetools.evals.base import NotApplicableError, available_evaluations, make_evaluation

SETTINGS = {
    "probing": {"n_train": 60, "n_test": 40, "min_rows": 20, "ks": (1, 2)},
    "disentangling": {"n_train": 60, "n_test": 40, "min_rows": 15, "n_ablated": (2,)},
    "absorption": {"n_train": 60, "n_test": 40, "min_rows": 10},
    "interpretability": {"n_features": 40, "n_top": 8, "n_explain": 4, "n_judge": 4, "before": 4, "after": 3},
    "steering": {"n_features": 24, "n_predictions": 10**6, "n_targets": 2, "doses": (0.1, 0.3)},
    "geometry": {"pair_share": 0.5},
}
FEW = {
    "reconstruction": {"n_tokens": 100},
    "sparsity": {"n_tokens": 100},
    "geometry": {"n_tokens": 100},
    "loss_recovered": {"n_tokens": 61, "n_read_tokens": 90, "n_mean_tokens": 90},
    "steering": {"n_predictions": 61, "n_read_tokens": 90},
    "interpretability": {"n_tokens": 3000},
    "probing": {"n_tokens": 6000},
    "disentangling": {"n_tokens": 6000},
    "absorption": {"n_tokens": 6000},
}
"""Of the held-out text less than there is."""
LABELLED = ("probing", "disentangling", "absorption", "interpretability")
NAMES = sorted(available_evaluations())


def figures(name, subject, **changes):
    try:
        return by_name(make_evaluation(name, **{**SETTINGS.get(name, {}), **changes}).run(subject))
    except NotApplicableError:
        return {}


def subject_for(name, **changes):
    if name in LABELLED:
        return planted_subject(**changes)
    subject = host_subject(TopK(TopK.configure(n_features=24, k=3), D_MODEL), listed=True, **changes)
    others = {"another seed": TopK(TopK.configure(n_features=20, k=3), D_MODEL, seed=1)} if name == "stability" else {}
    return replace(subject, others=others)


def runnable(name):
    subject = subject_for(name)
    reason = make_evaluation(name).missing(subject)
    if reason is not None:
        pytest.skip(f"{name} {reason}")
    return subject
