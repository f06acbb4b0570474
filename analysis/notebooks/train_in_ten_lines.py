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
# # Train one in ten lines
#
# A TopK dictionary on the residual stream of the model that comes with the package (4.3 M parameters, trained on Python
# code), on 60,000 tokens of the standard library: small enough for a minute on a laptop, good enough to look at.
# Nothing is downloaded. Settings are written as on the command line; `saetools train --fields topk` explains all.

# %%
import tempfile
from pathlib import Path

import pandas as pd
import plotly.express as px

import saetools
from saetools import pipeline

# %%
run = Path(tempfile.mkdtemp()) / "run"
settings = f"""
    --dictionary.n_features 512  --dictionary.k 16
    --training.n_tokens 60000  --training.batch_rows 1024  --activations.ring_rows 8192
    --activations.calibration_rows 4096  --evaluation.n_tokens 8000  --evaluation.n_ce_tokens 2000
    --logging.every_steps 2  --logging.progress false  --run.dir {run}
"""
config = pipeline.read_config("quickstart", settings.split())
pipeline.train([config])
dictionary = saetools.load(run)
dictionary

# %% [markdown]
# The run directory holds the dictionary, its config, its training curve and its checkpoints; the same command started
# again goes on where it stopped. The curve: the share of the variance that each batch leaves unexplained. It wanders,
# since so short a stream is a few documents.

# %%
curve = pd.read_json(run / "metrics.jsonl", lines=True)
px.line(
    curve,
    x="n_tokens",
    y="loss/reconstruction",
    log_y=True,
    markers=True,
    labels={"n_tokens": "tokens", "loss/reconstruction": "variance unexplained"},
    title="training",
)

# %% [markdown]
# How good it is on documents that it was not trained on. `ce_recovered_zero` is the share of the host's loss that is
# kept when the reconstruction takes the place of the activations: 0 as if they were zeroed, 1 as if nothing was done.

# %%
print(pipeline.evaluate(run, config))

# %%
assert dictionary.config.k == 16 and (run / "eval.json").is_file()
assert curve["loss/reconstruction"].iloc[-1] < 0.6 * curve["loss/reconstruction"].iloc[0]
