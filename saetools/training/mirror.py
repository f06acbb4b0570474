"""A mirror of metrics.jsonl in wandb: off unless asked for; whatever wandb does, the run goes on unchanged."""

import logging
from pathlib import Path
from typing import Any

from saetools.atomic import make_directory
from saetools.config import LoggingConfig

_logger = logging.getLogger(__name__)


class Mirror:
    """Sends records to one wandb run; after the first failure it warns once and is silent for good."""

    def __init__(self, logging_config: LoggingConfig, directory: Path, run_id: str, run_config: dict[str, Any]) -> None:
        self._run: Any = None
        if logging_config.wandb == "off":
            return
        try:
            import wandb

            self._run = wandb.init(
                mode=logging_config.wandb,
                project=logging_config.wandb_project,
                dir=str(make_directory(directory)),
                id=run_id,
                name=directory.parent.name,
                resume="allow",
                config=run_config,
                settings=wandb.Settings(console="off", silent=True, init_timeout=30),
            )
        except Exception as error:  # nothing that wandb raises may reach the run
            self._give_up(error)

    def log(self, record: dict[str, Any]) -> None:
        """Send one record of metrics.jsonl at its step."""
        if self._run is None:
            return
        try:
            self._run.log(record, step=record["step"])
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Finish the wandb run."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up(error)
        self._run = None

    def _give_up(self, error: Exception) -> None:
        self._run = None
        _logger.warning("wandb failed (%s: %s); the run goes on without it.", type(error).__name__, error)
