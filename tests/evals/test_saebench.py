"""The contract that SAEBench tests its custom dictionaries by."""

import pytest
import torch

from saetools.dictionaries.base import available_dictionaries, make_dictionary
from saetools.errors import MismatchError
from saetools.evals.saebench import SAEBenchAdapter
from saetools.records import PointSpec

D = 16


def adapted(kind, config):
    dictionary = make_dictionary(config, D)
    dictionary.spec = PointSpec(host="gpt2", point="blocks.3.hook_out", d_model=D, context_tokens=128)
    return SAEBenchAdapter(dictionary, hook_layer=3)


@pytest.mark.parametrize("kind", sorted({cls.kind for cls in available_dictionaries().values()}))
def test_every_kind_keeps_the_contract(kind):
    cls = available_dictionaries()[kind]
    config = cls.examples()[0]
    sae = adapted(kind, config)
    x = torch.randn(2, 5, D)
    features = sae.encode(x)
    assert features.shape == (2, 5, config.n_features) and features.dtype == sae.dtype
    # sae_bench's test_sae: flattened and three-dimensional input agree, forward is decode of encode
    torch.testing.assert_close(sae.encode(x.flatten(0, 1)), features.flatten(0, 1))
    torch.testing.assert_close(sae(x), sae.decode(features))
    torch.testing.assert_close(sae(x), sae.dictionary(x).detach(), atol=1e-4, rtol=1e-4)
    assert sae.W_enc.shape == (D, config.n_features) and sae.W_dec.shape == (config.n_features, D)
    assert sae.b_enc.shape == (config.n_features,) and sae.b_dec.shape == (D,)
    assert {"model_name", "d_in", "d_sae", "hook_layer", "hook_name", "dtype"} <= sae.cfg.to_dict().keys()
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.hook_name) == (D, config.n_features, "blocks.3.hook_resid_post")


def test_the_matrices_are_not_transposed():
    cls = available_dictionaries()["topk"]
    sae = adapted("topk", cls.configure(n_features=40, k=40, aux_weight=0.0))
    with torch.no_grad():
        sae.dictionary.b_dec_D.normal_()
    sae = SAEBenchAdapter(sae.dictionary, 3)
    x = torch.randn(7, D)
    torch.testing.assert_close(torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc), sae.encode(x), atol=1e-5, rtol=1e-5)


def test_to_keeps_dtype_and_config_fresh_and_the_dictionary_as_it_is():
    cls = available_dictionaries()["topk"]
    sae = adapted("topk", cls.examples()[0])
    x, before = torch.randn(3, D), {name: t.clone() for name, t in sae.dictionary.state_dict().items()}
    codes = sae.encode(x)
    assert sae.to(dtype=torch.bfloat16) is sae
    for name, tensor in sae.dictionary.state_dict().items():
        assert tensor.dtype == before[name].dtype and tensor.equal(before[name]), name
    assert sae.W_dec.equal(before["W_dec_FD"].bfloat16()) and sae.W_enc.equal(before["W_enc_FD"].T.bfloat16())
    assert sae.encode(x).equal(codes.bfloat16())
    assert sae.dtype == torch.bfloat16 and sae.cfg.dtype == "bfloat16" and sae.W_dec.dtype == torch.bfloat16
    assert sae(torch.randn(3, D, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert sae.to(torch.float32).cfg.dtype == "float32"


def test_names_are_asked_for():
    with pytest.raises(MismatchError, match="model_name="):
        SAEBenchAdapter(make_dictionary(available_dictionaries()["topk"].examples()[0], D), 3)
