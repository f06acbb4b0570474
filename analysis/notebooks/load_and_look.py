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
# # Load and look
#
# `saetools.load` reads a run, a dictionary directory, a checkpoint of another library, or `hf://...`. What comes back
# is always the same kind of object: rows of raw activations in, sparse codes out, reconstructions back.
# `saetools.explore` shows what its features do.

# %%
import tempfile
from pathlib import Path

import torch

import saetools
from saetools import pipeline

# %% [markdown]
# First a small run to look at, on the model that comes with the package (in real life: the path of a run of yours).

# %%
run = Path(tempfile.mkdtemp()) / "run"
settings = f"""
    --dictionary.n_features 512  --dictionary.k 16
    --training.n_tokens 60000  --training.batch_rows 1024  --activations.ring_rows 8192
    --activations.calibration_rows 4096  --evaluation.n_tokens 12000
    --logging.every_steps 2  --logging.progress false  --run.dir {run}
"""
config = pipeline.read_config("quickstart", settings.split())
results = pipeline.train([config])

# %% [markdown]
# ## Load
# A dictionary knows what it was made for: the model, the point in it, and how it was trained.

# %%
dictionary = saetools.load(run)
dictionary

# %% [markdown]
# Codes are sparse: values and indices per row. Three rows, each the mean activation and one feature's direction:

# %%
x_ND = dictionary.b_dec_D + 3 * dictionary.directions()[:3]
code = dictionary.encode(x_ND)
print("values and indices:", tuple(code.values.shape), "of", code.n_features, "features")
print("strongest:", code.to_dense().argmax(dim=1).tolist())

# %% [markdown]
# ## Look
# What the features do on held-out text is collected once, and kept beside the run. How often they fire:

# %%
features = saetools.explore(run)
features.density()

# %% [markdown]
# The features that fire on less than 2 % of the tokens, the strongest first, with the tokens that they raise:

# %%
features.table(sort="-max_value", search="density<0.02", limit=10)

# %% [markdown]
# One of them, with its contexts from the strongest to the weakest:

# %%
rare = features.table(sort="-max_value", search="density<0.02", limit=1).rows[0]["feature"]
features.feature(rare)

# %% [markdown]
# And which features fire on a text of yours:

# %%
prompt = features.prompt("def load(path):\n    with open(path) as file:\n        return json.load(file)\n")
prompt.figure

# %%
assert torch.equal(code.to_dense().argmax(dim=1), torch.arange(3))
assert len(dictionary._repr_html_().encode()) <= 20_000 and prompt.firings.features
