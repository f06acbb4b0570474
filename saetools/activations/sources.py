"""From the configuration to rows: the one place that knows all sources."""

from saetools.activations.base import RowSource
from saetools.activations.calibration import calibrate
from saetools.activations.live import LiveSource
from saetools.activations.planted import Planted, PlantedSource
from saetools.activations.prefetch import PrefetchedSource
from saetools.activations.rows import RowsSource
from saetools.activations.store import CachedSource
from saetools.config import ActivationsConfig, PlantedSection
from saetools.errors import ConfigError, MismatchError
from saetools.lm.base import Host
from saetools.records import Calibration
from saetools.text.base import Split
from saetools.text.packing import TokenPlan


def make_source(
    activations: ActivationsConfig,
    split: Split,
    host: Host | None = None,
    plan: TokenPlan | None = None,
    calibration: Calibration | None = None,
    planted: PlantedSection | None = None,
) -> RowSource:
    """The rows of one split, calibrated: by `calibration`, a store's own, or else by measuring the train split.

    `live` needs the host and the plan of that split; `cached` is checked against those that are given; `rows` needs
    neither; `planted` only its law. Raises ConfigError where something needed is missing, MismatchError where a store
    is of something else.
    """
    if activations.source == "planted":
        return _planted(activations, planted or PlantedSection(), split)
    source = _MAKERS[activations.source](activations, split, host, plan, calibration)
    return PrefetchedSource(source, activations.prefetch) if activations.prefetch else source


def _live(
    activations: ActivationsConfig,
    split: Split,
    host: Host | None,
    plan: TokenPlan | None,
    calibration: Calibration | None,
) -> RowSource:
    if host is None or plan is None:
        raise ConfigError("activations.source live needs a host and a corpus. Set host.name and corpus.name.")
    assert plan.split == split

    def source(of: TokenPlan) -> LiveSource:
        settings = activations
        drops, gradients = settings.drop_outliers, settings.gradients
        return LiveSource(host, of, settings.point, settings.dtype, None, drops, gradients=gradients)

    bare = source(plan)
    if calibration is None:
        calibration = calibrate(bare if split == "train" else source(_of_train(plan)), activations.calibration_rows)
    return bare.with_calibration(calibration)


def _cached(
    activations: ActivationsConfig,
    split: Split,
    host: Host | None,
    plan: TokenPlan | None,
    calibration: Calibration | None,
) -> RowSource:
    if activations.path is None:
        raise ConfigError("activations.source cached needs activations.path: a directory made by `saetools harvest`.")
    source = CachedSource(activations.path, gradients=activations.gradients)
    point = host.canonical(activations.point) if host else activations.point
    if point == source.spec.hooked_point:  # its older name, which only a host or the store can tell
        point = source.spec.point
    source.check_settings(
        point=point,
        split=split,
        dtype=activations.dtype,
        drop_outliers=activations.drop_outliers,
        calibration_rows=activations.calibration_rows,
    )
    if host is not None:
        source.check_host(host, point)
    if plan is not None:
        source.check_plan(plan)
    if calibration is not None and calibration != source.calibration:
        raise MismatchError(
            f"The store {activations.path} has another calibration than the run or dictionary. A run goes on only with "
            "the store that it began with, or with one harvested from the same host, corpus and seed."
        )
    return source


def _rows(
    activations: ActivationsConfig,
    split: Split,
    host: Host | None,
    plan: TokenPlan | None,
    calibration: Calibration | None,
) -> RowSource:
    if activations.path is None:
        raise ConfigError("activations.source rows needs activations.path: a .safetensors or .npy file.")

    def source(of: Split, calibrated: Calibration | None) -> RowsSource:
        settings = activations
        assert settings.path is not None
        return RowsSource(
            settings.path,
            settings.heldout_path,
            of,
            settings.dtype,
            calibrated,
            settings.drop_outliers,
            gradients=of == "train" or settings.gradients,
        )

    return source(split, calibration or calibrate(source("train", None), activations.calibration_rows))


def _planted(activations: ActivationsConfig, law: PlantedSection, split: Split) -> RowSource:
    """Their calibration is a function of the law, and they are made faster than a thread could hand them on."""
    if activations.gradients or activations.dtype != "float32":
        raise ConfigError(
            f"planted rows are float32 and have no gradients; activations.dtype is {activations.dtype} and "
            f"activations.gradients {str(activations.gradients).lower()}. Set them to float32 and false; a kind that "
            "trains by gradients needs a host or a file that has them."
        )
    return PlantedSource(Planted(law, law.seed), split, calibration_rows=activations.calibration_rows)


_MAKERS = {"live": _live, "cached": _cached, "rows": _rows}


def _of_train(plan: TokenPlan) -> TokenPlan:
    """The plan of the train split with the same corpus and settings."""
    return TokenPlan(
        plan.corpus,
        plan.tokenize,
        "train",
        plan.context_tokens,
        plan.host_batch,
        plan.seed,
        plan.prepend_bos,
        plan.max_documents,
    )
