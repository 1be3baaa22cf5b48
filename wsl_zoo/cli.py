"""The trainer commands: LightningCLI in subclass mode, and what it needs to be pleasant.

* `--config` takes a file or the name of a shipped config; an unknown key names the nearest one.
* Of what a checkpoint remembers and what config and flags say, config and flags win.
* A run has one folder, `runs/<config>/version_<k>` or `--run_dir`, with `metrics.csv`,
  `config.yaml`, `checkpoints/`, `panels/`, `results.jsonl`. Resuming continues in it; nothing in it
  is overwritten.
* Where stdout is no terminal, one line per epoch takes the place of the progress bar.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

import wsl_zoo.methods  # noqa: F401  (so that class names need no module path)
from wsl_zoo import reports
from wsl_zoo.arguments import ZooParser, complete, plain
from wsl_zoo.callbacks import MapWriter, PanelWriter, ResultWriter
from wsl_zoo.checkpointing import BestCheckpoint, LastCheckpoint, StartValidation
from wsl_zoo.data import ZooDataModule
from wsl_zoo.data.manifest import suggestion
from wsl_zoo.methods.training import Trained

ROOT = "runs"
SILENCED = (
    ".*does not have many workers.*",  # for small data on few cores the main process does best
    ".*smaller than the logging interval.*",
    ".*LeafSpec.*",  # between Lightning and torch
    ".*module\\(s\\) in eval mode.*",  # frozen parts are, on purpose
    ".*sync_dist=True.*",  # metrics have summed their states over the processes already
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run continues in its folder
    ".*lightning_logs.*|.*Experiment logs directory.*exists and is not empty.*",
)


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` and hands the whole configuration to W&B."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the configuration where the logger is W&B."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                dump = self.parser.dump(self.config, skip_none=False, format="json")
                logger.log_hyperparams({"config": json.loads(dump)})


class EpochLines(Callback):
    """Prints a line per epoch: what a log file has of a progress bar."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what the progress bar would show."""
        if trainer.is_global_zero:
            shown = ["train/loss", *(k for k in trainer.progress_bar_metrics if "/" in k)]
            metrics = trainer.callback_metrics
            values = ", ".join(f"{k} {float(metrics[k]):.4f}" for k in shown if k in metrics)
            end = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            print(f"epoch {trainer.current_epoch + 1}{end}: {values}", flush=True)


class ZooCLI(LightningCLI):
    """`fit`, `validate`, `test`, `predict` for any method on any data.

    Args:
        name: Name of the run's folder below `runs`.
        show: Print the table of `--then_test`.
    """

    def __init__(self, name: str, show: bool = True) -> None:
        self.name = name
        self.show = show
        super().__init__(
            Trained,
            ZooDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                # Gradient CAMs need a graph inside standalone validation and test.
                "inference_mode": False,
                # A step is small next to an epoch in most of our data sets.
                "log_every_n_steps": 10,
            },
            seed_everything_default=0,
            parser_class=ZooParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link data to model, seed to both, and add the options of a run."""
        for name in ("num_classes", "class_names", "in_chans"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.init_args.seed", compute_fn=int)
        parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of this run.")
        parser.add_argument(
            "--wandb", type=str | None, default=None, help="Log to this Weights & Biases project."
        )
        parser.add_argument(
            "--then_test",
            type=list[str],
            default=[],
            help="After fit, test these checkpoints: best_cl, best_loc, best_loc_<root>, last.",
        )
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(PanelWriter, "panels")
        parser.add_lightning_class_args(MapWriter, "maps")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: `arguments_of_checkpoint` stands first on the command line instead."""

    def option(self, name: str) -> Any:
        """Return an option of the subcommand."""
        return self._get(self.config, name)

    def before_instantiate_classes(self) -> None:
        """Only `fit` has a configuration worth saving; all others need something trained."""
        if self.subcommand == "fit":
            return
        self.save_config_callback = None
        if self.option("ckpt_path") is None:
            raise ValueError(
                f"wsl-zoo {self.subcommand} needs --ckpt_path CKPT: without one the model is "
                "untrained (start weights are read by fit only)"
            )
        if self.subcommand == "test":  # `ResultWriter` prints the table
            self.config.test.verbose = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer with the run's loggers and callbacks."""
        kinds = ("cl", "loc", *(f"loc_{name}" for name in self.datamodule.val_roots))
        if self.subcommand == "fit":
            _refuse_used_folder(self.option("run_dir"), self.option("ckpt_path"))
            _refuse_unknown(self.option("then_test"), [*(f"best_{kind}" for kind in kinds), "last"])
        if self.option("trainer.logger") is None:
            kwargs["logger"] = self._loggers()
        self.results = ResultWriter(show=self.subcommand == "test")
        callbacks = [*map(BestCheckpoint, kinds), StartValidation(), self.results]
        if self.option("trainer.enable_progress_bar") is not False:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
            callbacks.append(RichProgressBar() if sys.stdout.isatty() else EpochLines())
        self.trainer_defaults = {"callbacks": callbacks}
        return super().instantiate_trainer(**kwargs)

    def _loggers(self) -> list[Logger] | bool:
        loggers: list[Logger] = []
        folder = self._folder()
        root = Path(self.option("trainer.default_root_dir") or ROOT).absolute()
        if self.subcommand == "fit":
            if folder is None:
                logger = CSVLogger(root, name=self.name, flush_logs_every_n_steps=1)
            else:
                _keep_old_logs(folder)
                logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
            loggers.append(logger)
        project = self.option("wandb")
        if project is not None:
            save_dir = folder or root / self.name
            save_dir.mkdir(parents=True, exist_ok=True)
            name = self.option("run_dir") or self.name
            loggers.append(WandbLogger(project=project, name=name, save_dir=save_dir))
        return loggers or False

    def _folder(self) -> Path | None:
        """Return the folder of the run where it is known beforehand.

        Absolute: a resumed run knows its best checkpoints by it, from wherever it is started.
        """
        if self.option("run_dir") is not None:
            return Path(self.option("run_dir")).absolute()
        checkpoint = self.option("ckpt_path")
        if checkpoint and Path(checkpoint).absolute().parent.name == "checkpoints":
            return Path(checkpoint).absolute().parents[1]
        return None

    def after_predict(self) -> None:
        """Say where the predictions are."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MapWriter) and self.trainer.is_global_zero:
                print(f"{callback.count} predictions in {callback.folder}")

    def after_fit(self) -> None:
        """Say where the run is; with `--then_test`, test those checkpoints and print one table."""
        if not self.option("then_test"):
            if self.trainer.is_global_zero and self.trainer.log_dir is not None:
                print(f"run folder: {self.trainer.log_dir}")
            return
        paths = self.kept()
        for name in self.option("then_test"):
            if name in paths:
                self.trainer.test(
                    self.model, datamodule=self.datamodule, ckpt_path=paths[name], verbose=False
                )
            elif self.trainer.is_global_zero:
                print(f"no {name} to test: nothing to select it by")
        folder = self.trainer.log_dir  # all processes must ask: the first tells the others
        if self.trainer.is_global_zero and self.show:
            reports.print_results(self.results.columns, f"run folder: {folder}")

    def kept(self) -> dict[str, str]:
        """Return the checkpoints that the fit kept: best_cl, ... -> path."""
        return {
            Path(callback.best_model_path).stem: callback.best_model_path
            for callback in self.trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and callback.best_model_path
        }


def _refuse_unknown(names: Sequence[str], checkpoints: Sequence[str]) -> None:
    for name in names:
        if name not in checkpoints:
            near = suggestion(name, checkpoints)
            raise ValueError(
                f"then_test: the run keeps {', '.join(checkpoints)}, but no {name!r}{near}"
            )


def _refuse_used_folder(run_dir: str | None, checkpoint: str | None) -> None:
    if run_dir is not None and not checkpoint and (Path(run_dir) / "checkpoints").is_dir():
        last = Path(run_dir) / "checkpoints" / "last.ckpt"
        raise FileExistsError(
            f"{run_dir} holds a run already: resume it with --ckpt_path {last}, or choose another"
        )


@rank_zero_only
def _keep_old_logs(folder: Path) -> None:
    """Number what a resumed run would overwrite: `metrics.csv` becomes `metrics_0.csv`."""
    for name in ("metrics.csv", "config.yaml"):
        path = folder / name
        if path.is_file():
            taken = len(list(folder.glob(f"{path.stem}_*{path.suffix}")))
            path.rename(folder / f"{path.stem}_{taken}{path.suffix}")


@contextmanager
def command_line(args: Sequence[str]) -> Iterator[None]:
    """Let `sys.argv` be these arguments (Lightning starts further processes from it)."""
    before = sys.argv
    sys.argv = [before[0], *args]
    try:
        yield
    finally:
        sys.argv = before


def run_trainer(command: str, args: Sequence[str], *, show: bool = True) -> ZooCLI:
    """Run one of the trainer commands; return the CLI with its trainer, model and data."""
    full, name = complete(command, args)
    logging.getLogger("pytorch_lightning").addFilter(_no_advertisement)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_no_advertisement)
    with command_line(full), warnings.catch_warnings():
        unsaved = () if command == "fit" else (".*The dirpath has changed from.*",)
        for message in (*SILENCED, *unsaved):
            warnings.filterwarnings("ignore", message=message)
        try:
            return ZooCLI(name, show)
        except SIGTERMException as error:  # it would end with status 0, as if all was done
            raise SystemExit(128 + signal.SIGTERM) from error
        except (ValueError, MisconfigurationException) as error:
            raise ValueError(plain(str(error))) from error


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
