# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compare seven dictionaries
#
# Seven kinds learn from one stream of activations of the model that comes with the package: the same rows in the same
# order, read once for all. Each is judged on held-out text by what it leaves unexplained, by how many features it
# takes, and by what the model loses when its reconstruction takes the activations' place. This is a small training,
# made for a minute: `analysis/report.md` has the long one.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.express as px

import saetools
from saetools import pipeline
from saetools.evals.base import make_evaluation
from saetools.evals.run import run_evaluations
from saetools.features.compare import match_features

# %%
KINDS = ["topk", "mutual_choice", "feature_choice", "gradient", "matching_pursuit", "itda", "variational"]
work = Path(tempfile.mkdtemp())
settings = """
    --dictionary.n_features 256  --dictionary.k 12  --activations.point blocks.1.hook_out
    --activations.gradients true  --activations.ring_rows 4096  --activations.calibration_rows 4096
    --training.n_tokens 14000  --training.batch_rows 512  --training.lr 0.003
    --training.checkpoint_every_tokens 14000  --logging.progress false
"""
configs = [pipeline.read_config(kind, [*settings.split(), f"--run.dir={work / kind}"]) for kind in KINDS]
results = pipeline.train(configs)

# %% [markdown]
# All seven are judged on the same held-out tokens. "Loss recovered" is 0 where the reconstruction is worth no more to
# the model than zeros, and 1 where it is as good as the activations themselves.

# %%
subject = pipeline.load_subject(work / "topk", configs[0])
dictionaries = {kind: saetools.load(work / kind) for kind in KINDS}
evaluations = [make_evaluation(name, n_tokens=2_000) for name in ("reconstruction", "sparsity")]
evaluations += [make_evaluation("loss_recovered", n_tokens=1_000, n_read_tokens=4_000, n_mean_tokens=2_000)]
shown = {
    "fvu": "variance unexplained",
    "l0_mean": "features per token",
    "ce_recovered_zero": "loss recovered",
    "dead_fraction": "dead features",
}
figures = {}
for kind, dictionary in dictionaries.items():
    records = run_evaluations(replace(subject, dictionary=dictionary), evaluations)
    figures[kind] = {shown[record.name]: record.value for record in records if record.name in shown}
table = pd.DataFrame(figures).T[list(shown.values())].rename_axis("kind")
table.round(3)

# %% [markdown]
# Less unexplained variance is not the same as less loss: the model does not care for all variance alike.

# %%
px.scatter(
    table.reset_index(),
    x="variance unexplained",
    y="loss recovered",
    size="features per token",
    color="kind",
    title="held-out text; size: features per token",
)

# %% [markdown]
# Do they find the same features? For each pair, the mean cosine between a feature and its partner, matched one to one.
# All but ITDA, whose atoms are rows of the data, began from the same random atoms, and this short a training leaves
# some of that: likeness here is no proof of anything found.

# %%
alike = pd.DataFrame(
    {
        one: {
            other: float(
                match_features(dictionaries[one].directions(), dictionaries[other].directions()).cosine_F.mean()
            )
            for other in KINDS
        }
        for one in KINDS
    }
)
px.imshow(alike, text_auto=".2f", color_continuous_scale="Blues", title="mean cosine of matched features")

# %%
assert len(table) == 7 and (table["variance unexplained"] < 1).all() and (table["loss recovered"] > 0).all()
assert all(abs(alike.loc[kind, kind] - 1) < 1e-3 for kind in KINDS)
