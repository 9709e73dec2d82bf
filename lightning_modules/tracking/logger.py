"""A Lightning logger that writes a run record. It is not in `records`, which must not import Lightning."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from lightning_modules.tracking.records import RunRecord


class RunLogger(Logger):
    """Hand Lightning's metrics to a run record. Who opened the record ends it: a fit is a part of a run."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__()
        self._record = record

    @property
    @rank_zero_experiment
    def experiment(self) -> RunRecord:
        """The record (`self.logger.experiment.artifact(...)` in a module)."""
        return self._record

    @property
    def name(self) -> str:
        """The paper's stem."""
        return self._record.meta["experiment"]

    @property
    def version(self) -> str:
        """The record's key."""
        return self._record.meta["key"]

    @property
    def save_dir(self) -> str:
        """The record's folder."""
        return str(self._record.folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Append the metrics of one step."""
        self._record.log(metrics, step or 0)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the record was opened with the resolved configuration, of which these are a part."""
