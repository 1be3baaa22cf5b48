"""A fit that is stopped after a step, as by SIGKILL or by an error."""

from pytorch_lightning import Callback


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved on the way out."""


class KillAt(Callback):
    """Raises after a global step, as a signal would, or dies without any clean-up."""

    def __init__(self, step: int, error: type[BaseException] = Killed):
        self.step = step
        self.error = error

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise self.error("stop")
