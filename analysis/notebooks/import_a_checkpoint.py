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
# # Import another library's checkpoint
#
# A sparsify checkpoint, as that library writes it. `saetools.load` recognises it by what is in it; the codes are those
# of its own formula, and it can be written for SAELens, which computes the same.

# %%
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import saetools

# %%
D, F, K = 32, 128, 4
draw = torch.Generator().manual_seed(0)
work = Path(tempfile.mkdtemp())
theirs = work / "layers.3"
theirs.mkdir()
tensors = {"encoder.weight": torch.randn(F, D, generator=draw), "encoder.bias": torch.randn(F, generator=draw)}
tensors |= {"W_dec": torch.randn(F, D, generator=draw), "b_dec": torch.randn(D, generator=draw)}
save_file(tensors, theirs / "sae.safetensors")
config = {"activation": "topk", "num_latents": F, "k": K, "transcode": False, "skip_connection": False, "d_in": D}
(theirs / "cfg.json").write_text(json.dumps(config))

# %%
dictionary = saetools.load(theirs)
dictionary

# %% [markdown]
# The formula of that library, written out:

# %%
x_ND = torch.randn(100, D, generator=draw)
pre_NF = (x_ND - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"]
values, places = pre_NF.relu().topk(K, dim=1)
code_NF = torch.zeros_like(pre_NF).scatter(1, places, values)
assert torch.allclose(dictionary.encode(x_ND).to_dense(), code_NF, atol=1e-5)
assert torch.allclose(dictionary(x_ND), code_NF @ tensors["W_dec"] + tensors["b_dec"], atol=1e-4)

# %% [markdown]
# And on to SAELens. A `.pt` file would need `allow_pt=True`: it is a pickle, and opened in a sandbox only.

# %%
saetools.save_as(dictionary, work / "for_saelens", "saelens")
again = saetools.load(work / "for_saelens")
assert torch.equal(again(x_ND), dictionary(x_ND))
sorted(file.name for file in (work / "for_saelens").iterdir())
