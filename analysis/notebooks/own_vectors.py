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
# # Train on your own vectors
#
# Any matrix [N, D] in a .npy or .safetensors file will do: embeddings, activations of another modality, anything whose
# rows may be sums of few parts. No language model and no text are needed. Here the vectors are 1,797 handwritten
# digits of 8 x 8 pixels, which scikit-learn brings along, because their parts can be looked at.

# %%
import tempfile
from pathlib import Path

import numpy as np
import plotly.express as px
import torch
from sklearn.datasets import load_digits

import saetools
from saetools import encoding, pipeline
from saetools.features.codes import read_codes

# %%
work = Path(tempfile.mkdtemp())
mixed = np.random.default_rng(0).permutation(1797)
digits, labels = load_digits().data[mixed].astype("float32") / 16, load_digits().target[mixed]
np.save(work / "x.npy", digits)

# %% [markdown]
# The last 10 % of the rows are held out. Of 96 features, 6 may fire for each digit.

# %%
settings = f"""
    --activations.source rows  --activations.path {work / "x.npy"}
    --activations.ring_rows 1024  --activations.calibration_rows 1024
    --dictionary.n_features 96  --dictionary.k 6
    --training.n_tokens 200000  --training.batch_rows 256  --training.lr 0.003
    --logging.progress false  --run.dir {work / "run"}
"""
pipeline.train([pipeline.read_config("topk", settings.split())])
dictionary = saetools.load(work / "run")
dictionary

# %% [markdown]
# How much of the held-out digits' variance do 6 features leave unexplained? Beside it, 6 principal components.

# %%
train_ND, heldout_ND = torch.from_numpy(digits[:-180]), torch.from_numpy(digits[-180:])
mean_D = train_ND.mean(dim=0)
variance = (heldout_ND - mean_D).square().sum()
with torch.no_grad():
    recon_ND = dictionary(heldout_ND)
axes_KD = torch.linalg.svd(train_ND - mean_D, full_matrices=False)[2][:6]
by_axes_ND = mean_D + (heldout_ND - mean_D) @ axes_KD.T @ axes_KD
fvu, fvu_axes = (float((heldout_ND - rows).square().sum() / variance) for rows in (recon_ND, by_axes_ND))
print(f"unexplained by 6 of 96 features: {fvu:.3f}; by 6 principal components: {fvu_axes:.3f}")

# %%
PIXELS = (-1, 8, 8)


def gallery(rows_ND, title, colours, middle=None):
    """Rows as pictures, ten beside each other."""
    figure = px.imshow(rows_ND.reshape(PIXELS), facet_col=0, facet_col_wrap=10, title=title)
    figure.update_layout(height=60 + 90 * len(rows_ND) // 10, margin={"t": 60, "b": 0})
    figure.layout.annotations = ()  # plotly would number the pictures
    figure.update_coloraxes(colorscale=colours, cmid=middle, showscale=False)
    return figure.update_xaxes(visible=False).update_yaxes(visible=False)


gallery(torch.cat([heldout_ND[:10], recon_ND[:10]]), "held-out digits, and what 6 features make of them", "gray")

# %% [markdown]
# What the features add, the most used first: strokes, not digits. Blue is ink, red is ink taken away.

# %%
code_NF = dictionary.encode(torch.from_numpy(digits)).to_dense().detach()
by_use = (code_NF != 0).sum(dim=0).argsort(descending=True)
gallery(dictionary.directions()[by_use[:40]], "atoms, the most used first", "RdBu", middle=0)

# %% [markdown]
# Nobody told the dictionary which digit is which. Some features know all the same:

# %%
share = np.stack([(code_NF[labels == digit] != 0).float().mean(dim=0).numpy() for digit in range(10)])
purest = np.sort((share / share.sum(axis=0).clip(1e-9)).max(axis=0).argsort()[::-1][:24])
px.imshow(
    share[:, purest],
    x=[f"feature {feature}" for feature in purest],
    labels={"y": "digit", "color": "share of the digit's rows"},
    color_continuous_scale="Blues",
    title="where the most telling features fire",
)

# %% [markdown]
# The codes of all rows, as sparse shards on disk (`saetools encode RUN --rows x.npy --out codes`):

# %%
info = encoding.encode_rows(str(work / "run"), work / "x.npy", work / "codes")
parts = list(read_codes(work / "codes"))
print(f"{info.n_rows:,} rows, {info.n_values:,} values instead of {code_NF.numel():,}")

# %%
assert sum(len(part.code) for part in parts) == 1797 and info.n_values <= 6 * 1797
assert fvu < 0.25 < fvu_axes
