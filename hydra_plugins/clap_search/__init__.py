"""The sweeper of conf/hydra/sweeper/optuna.yaml: Hydra accepts sweepers only from the package `hydra_plugins`.

Hydra imports this module at every start, so that it imports Optuna only in a search.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Runs the trials of a search as jobs of a launcher, see `clap.study.search`."""

    def __init__(self, params: DictConfig | None, **settings: Any) -> None:
        self.params, self.settings = dict(params or {}), settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> None:
        from clap.study.search import run_search

        run_search(self, arguments)
