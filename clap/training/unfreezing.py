"""Parts that are frozen at first and train from a step on (`trainer.unfreeze_at`)."""

import logging
from typing import TYPE_CHECKING

from clap.training.sharding import is_sharded

if TYPE_CHECKING:  # the trainer imports this module
    from clap.training.trainer import ClapTrainer

log = logging.getLogger(__name__)


def unfreeze_if_due(trainer: "ClapTrainer") -> None:
    """Train the frozen parts from `unfreeze_at` steps on, with their groups of the optimizer; on all ranks at once."""
    clap, start = trainer.clap, trainer.settings.unfreeze_at
    if start is None or trainer.step < start or not clap.frozen:
        return
    log.info("step %d: %s train from here on", trainer.step, " and ".join(clap.frozen))
    for name in clap.frozen:
        clap.get_submodule(name).requires_grad_(True)
    clap.frozen = []
    clap.train(clap.training)
    trainer.objective.prepare()  # the wrapper averages the gradients of the parameters that it has found


def check_unfreezing(trainer: "ClapTrainer") -> None:
    """Check that the optimizer has the parts that train later, and log an `unfreeze_at` without effect.

    Raises:
        ValueError: the optimizer does not have their parameters, or they are sharded.
    """
    clap, start = trainer.clap, trainer.settings.unfreeze_at
    if start is None:
        return
    if not clap.frozen and trainer.step < start:
        log.warning("trainer.unfreeze_at=%d has no effect: freeze lists no part", start)
    if clap.frozen and start >= (steps := trainer.settings.num_steps(trainer.train_loader)):
        log.warning("trainer.unfreeze_at=%d is not within the %d steps of the training: no effect", start, steps)
    if any(is_sharded(parameter) for name in clap.frozen for parameter in clap.get_submodule(name).parameters()):
        raise ValueError(
            f"trainer.unfreeze_at={start} with trainer.parallel=fsdp: a sharded encoder stays frozen; "
            "set trainer.parallel=ddp, or take text_encoder out of freeze"
        )
    known = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    for name in clap.frozen:
        if any(id(parameter) not in known for parameter in clap.get_submodule(name).parameters()):
            raise ValueError(
                f"trainer.unfreeze_at={start}, but the optimizer does not have the parameters of {name}; build it from "
                "all parameters of the model"
            )
