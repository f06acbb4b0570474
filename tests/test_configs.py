"""Every config in configs/ is valid, and its dictionary can be made."""

from pathlib import Path

import pytest

from saetools.dictionaries.base import make_dictionary
from saetools.pipeline import dictionary_configs, read_config, shipped_configs

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path: Path) -> None:
    config = read_config(path)
    make_dictionary(config.dictionary.model_copy(update={"n_features": 256}), d_model=64)
    assert path.stem in shipped_configs(), "configs/ is part of the package"


def test_every_field_has_a_description() -> None:
    from saetools.config import run_config_class

    for kind, config_class in dictionary_configs().items():
        pending = [run_config_class(config_class)]
        while pending:
            model = pending.pop()
            assert len(model.model_fields) <= 15 or model.__name__ == "TrainingConfig", f"{model} is too long"
            for name, field in model.model_fields.items():
                assert field.description, f"{kind}: {model.__name__}.{name}"
                if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                    pending.append(field.annotation)
