"""What each way of steering does to one row, and where."""

import numpy as np
import pytest
import torch

from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError, MismatchError
from saetools.features.steering import FeatureEdit, steer
from saetools.records import PointSpec

D = 6


@pytest.fixture
def dictionary():
    made = TopK(TopK.configure(n_features=10, k=3), D, seed=1)
    with torch.no_grad():
        made.b_dec_D.normal_()
        made.W_dec_FD.mul_(1.5)
    return made


@pytest.fixture
def x_BTD():
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))


def pieces(dictionary, x_BTD, feature):
    """(a, d, recon) of the rows."""
    rows = x_BTD.flatten(0, 1)
    code = dictionary.encode(rows)
    recon = dictionary.decode(code).detach().view_as(x_BTD)
    return code.to_dense()[:, feature].detach().view(2, 5, 1), dictionary.W_dec_FD[feature].detach(), recon


def firing_feature(dictionary, x_BTD):
    return int(dictionary.encode(x_BTD.flatten(0, 1)).flat()[1].mode().values)


@pytest.mark.parametrize("keep_error", [True, False])
def test_every_way_follows_its_equation(dictionary, x_BTD, keep_error):
    f = firing_feature(dictionary, x_BTD)
    a, d, recon = pieces(dictionary, x_BTD, f)
    base = x_BTD if keep_error else recon
    added = base + 2 * d
    along = (base @ d / (d @ d))[..., None] * d
    shrink = (base.norm(dim=-1) / added.norm(dim=-1)).clamp_max(1)[..., None]
    expected = {
        "add": added,
        "clamp": base + (2 - a) * d,
        "ablate": base - a * d,
        "project": base - along,
        "capped": added * shrink,
    }
    assert float(a.max()) > 0
    for how, edited in expected.items():
        for strength in (1.0, 0.25):
            edit = FeatureEdit(dictionary, f, how, strength, value=2.0, keep_error=keep_error)
            torch.testing.assert_close(edit(x_BTD), x_BTD + strength * (edited - x_BTD), atol=1e-5, rtol=1e-5)


def test_clamping_one_feature_leaves_the_error_alone(dictionary, x_BTD):
    """recon' + (x - recon) with the feature's code replaced."""
    f = firing_feature(dictionary, x_BTD)
    code = dictionary.encode(x_BTD.flatten(0, 1)).to_dense().detach()
    _, _, recon = pieces(dictionary, x_BTD, f)
    code[:, f] = 7
    expected = (code @ dictionary.W_dec_FD + dictionary.b_dec_D).view_as(x_BTD) + x_BTD - recon
    torch.testing.assert_close(FeatureEdit(dictionary, f, "clamp", value=7)(x_BTD), expected.detach())


def test_strength_zero_is_the_input_itself(dictionary, x_BTD):
    for how in ("add", "clamp", "ablate", "project", "capped"):
        assert FeatureEdit(dictionary, 0, how, 0.0, keep_error=False)(x_BTD) is x_BTD


@pytest.mark.parametrize(
    ("positions", "touched"),
    [([0, 3], [0, 3]), ([-1], [4]), (slice(1, None), [1, 2, 3, 4]), ([9, -9], []), (slice(None, None, 2), [0, 2, 4])],
)
def test_only_the_positions_wanted(dictionary, x_BTD, positions, touched):
    before = x_BTD.clone()
    after = FeatureEdit(dictionary, 2, "add", positions=positions)(x_BTD)
    changed = (after != x_BTD).any(-1)
    assert changed.any(0).nonzero()[:, 0].tolist() == touched
    assert x_BTD.equal(before)


def test_every_pass_edits_the_positions_that_were_given(dictionary, x_BTD):
    """An iterator had edited nothing at all, and a list that grew moved the edit."""
    given = [0, 3]
    for positions in (given, iter(given), map(int, "03")):
        edit = FeatureEdit(dictionary, 2, "add", positions=positions)
        given.append(4)
        for _ in range(2):
            assert (edit(x_BTD) != x_BTD).any(-1).any(0).nonzero()[:, 0].tolist() == [0, 3]
        given.pop()


def test_dtype_of_the_host_is_kept(dictionary, x_BTD):
    assert FeatureEdit(dictionary, 2, "add")(x_BTD.bfloat16()).dtype == torch.bfloat16


class RecordingHost:
    name, prepend_bos = "recording", True

    def canonical(self, point):
        return {"mid": "blocks.1.hook_out"}.get(point, point)

    def spec(self, point):
        return PointSpec(host="recording", point=self.canonical(point), d_model=D)

    def editing(self, edits):
        return edits


def test_steer_edits_the_canonical_point_and_spares_bos(dictionary):
    (point, edit), *rest = steer(RecordingHost(), dictionary, 3, point="mid").items()
    assert point == "blocks.1.hook_out" and not rest
    x = torch.zeros(1, 4, D)
    assert (edit(x) != 0).any(-1).tolist() == [[False, True, True, True]]


def test_mistakes_are_named(dictionary):
    host = RecordingHost()
    with pytest.raises(ConfigError, match='Did you mean "clamp"'):
        steer(host, dictionary, 0, "clmp", point="mid")
    for feature in (10, -1, 1.5, "3", None):
        with pytest.raises(ConfigError, match="features 0 to 9"):
            steer(host, dictionary, feature, point="mid")
    for positions in (3, [0.5], "3", slice(0.5), slice(None, None, -1), [None]):
        with pytest.raises(ConfigError, match="list of whole numbers"):
            steer(host, dictionary, 0, positions=positions, point="mid")
    steer(host, dictionary, np.int64(1), positions=np.array([0, 7]), point="mid")
    with pytest.raises(ConfigError, match="which point"):
        steer(host, dictionary, 0)
    with pytest.raises(MismatchError, match="these vectors have 6"):
        steer(host, TopK(TopK.configure(n_features=4, k=1), 5), 0, point="mid")
