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
# # Steer
#
# A feature is a direction, and a direction can be pushed. `steer` is a context manager: inside it, every forward pass
# of the model, generation included, has one feature added to, clamped, ablated or projected out, and what the
# dictionary does not explain is kept.

# %%
import tempfile
from pathlib import Path

import plotly.graph_objects as go
import torch

import saetools
from saetools import pipeline
from saetools.features.effects import logit_effects
from saetools.features.steering import steer

# %% [markdown]
# A small dictionary of the model that comes with the package:

# %%
run = Path(tempfile.mkdtemp()) / "run"
settings = f"""
    --dictionary.n_features 512  --dictionary.k 16  --activations.point blocks.2.hook_out
    --training.n_tokens 40000  --training.batch_rows 1024  --activations.ring_rows 4096
    --activations.calibration_rows 4096  --logging.progress false  --run.dir {run}
"""
config = pipeline.read_config("quickstart", settings.split())
pipeline.train([config])
dictionary, host = saetools.load(run), pipeline.Data(config).host

# %% [markdown]
# Which feature speaks most clearly for one token? The one whose direction, read by the unembedding, raises its first
# token furthest above its second.

# %%
effects = logit_effects(dictionary.directions(), *host.unembedding())
lead_F = effects.top_values_FJ[:, 0] - effects.top_values_FJ[:, 1]
feature, control = int(lead_F.argmax()), int(lead_F.argmin())
token = int(effects.top_tokens_FJ[feature, 0])
print(f"feature {feature} raises", host.token_texts(effects.top_tokens_FJ[feature, :8].tolist()))

# %% [markdown]
# The model's own words, and with the feature added at every position. A gentle push changes what it says; a hard one
# breaks the model.

# %%
prompt = "def area(shape):\n    return "
print(host.generate(prompt, 16))
for value in (15.0, 30.0, 60.0):
    with steer(host, dictionary, feature, "add", value=value):
        print(f"--- add {value:g}\n{host.generate(prompt, 16)}")

# %% [markdown]
# How much of it: the probability of that token as the next one, by dose. Beside it another feature of this dictionary,
# the control that any steering needs.

# %%
ids_BT = torch.tensor([[host.tokenize.bos_id, *host.tokenize.encode([prompt])[0]]])
doses = [0.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0]


def probability(feature: int, value: float) -> float:
    """Of the token after the prompt, with the feature added."""
    with steer(host, dictionary, feature, "add", value=value), torch.no_grad():
        return float(host.logits(ids_BT)[0, -1].softmax(dim=0)[token])


named = {f"feature {feature}": feature, f"control: feature {control}": control}
curves = {name: [probability(f, dose) for dose in doses] for name, f in named.items()}
figure = go.Figure([go.Scatter(x=doses, y=curve, name=name) for name, curve in curves.items()])
figure.update_layout(
    xaxis_title="added, in units of the code",
    yaxis_title=f"probability of {host.token_texts([token])[0]!r}",
    yaxis_type="log",
)

# %% [markdown]
# At strength 0 nothing is edited, bit for bit.

# %%
plain = host.generate(prompt, 8)
with steer(host, dictionary, feature, strength=0.0):
    assert host.generate(prompt, 8) == plain
steered, unrelated = curves.values()
assert max(steered) > 10 * steered[0] and max(steered) > 10 * max(unrelated)
