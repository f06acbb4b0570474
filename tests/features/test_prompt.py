"""Which features fire on a text: the strongest, of either sign, without BOS."""

from types import SimpleNamespace

import pytest
import torch
from toy import D_MODEL, SignedDictionary

from saetools.dictionaries.code import SparseCode
from saetools.errors import DataError
from saetools.features.prompt import fire_on_prompt, prompt_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_strongest_are_those_of_greatest_magnitude(dtype: torch.dtype) -> None:
    x_BTD = torch.randn(1, 7, D_MODEL, generator=torch.Generator().manual_seed(0))
    x_BTD[0, 0] *= 100  # BOS
    host = SimpleNamespace(
        tokenize=SimpleNamespace(encode=lambda texts: [[2, 3, 4, 5, 6, 7]], bos_id=1),
        prepend_bos=True,
        max_tokens=100,
        device="cpu",
        activations=lambda ids_BT, points: {"here": x_BTD},
        canonical=lambda point: {"alias": "here"}[point],
        token_texts=lambda ids: [str(i) for i in ids],
    )
    dictionary = SignedDictionary()
    whole = dictionary.encode(x_BTD[0, 1:])  # on a grid that bfloat16 holds
    code = SparseCode(whole.values.to(dtype), whole.indices, whole.n_features)
    dictionary.encode = lambda x_ND: code
    found = fire_on_prompt(dictionary, host, "alias", "text", n_features=4)  # type: ignore[arg-type]
    code_TF = code.to_dense().float()
    features, peak_F = [feature for feature, _ in found.features], code_TF.abs().amax(0)
    assert peak_F[features].equal(peak_F.topk(4).values) and not peak_F[features].equal(code_TF.amax(0)[features])
    for feature, pairs in found.features:
        assert [pair for pair in enumerate(code_TF[:, feature].tolist()) if pair[1]] == list(pairs)


def test_a_text_that_is_none() -> None:
    with pytest.raises(DataError, match=r"surrogate pair, '.ud800', at character 1"):
        prompt_ids(None, "a\ud800")  # type: ignore[arg-type]
