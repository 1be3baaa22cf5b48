"""Super-resolution of tiny built-in micrographs; a small VDSR passes bicubic in seconds."""

from pathlib import Path
from typing import Any

import torch

from tests.cases import Case, trainer
from wsl_zoo.data import SyntheticPairsData, ZooDataModule
from wsl_zoo.methods import SuperResolver


def pairs(**kwargs: Any) -> ZooDataModule:
    settings: dict[str, Any] = {
        "train": 8, "val": 8, "test": 8, "side": 48, "crop_size": 32, "batch_size": 4,
        "eval_batch_size": 4,
    }  # fmt: skip
    return SyntheticPairsData(**settings | kwargs)


def arguments(folder: Path) -> dict[str, Any]:
    return {"network": "SRCNN", "network_args": {"widths": [8, 4]}, "scale": 2}


def tested(model: SuperResolver, data: ZooDataModule, folder: Path) -> dict[str, float]:
    values = trainer(folder).test(model, data, verbose=False)[0]
    return {name.partition("/")[2]: value for name, value in values.items()}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    data = SyntheticPairsData(
        train=40, val=8, test=20, side=96, crop_size=48, batch_size=8, cache=True
    )
    model = SuperResolver(
        network="VDSR", network_args={"width": 16, "depth": 6}, optimizer="adamw", lr=3e-3,
        schedule="cosine", min_lr=1e-5,
    )  # fmt: skip
    trainer(folder, max_epochs=20, limit_val_batches=0).fit(model, data)
    ours = tested(model, data, folder)
    bicubic = tested(
        SuperResolver(network="Interpolation", network_args={"kind": "bicubic"}), data, folder
    )
    return {
        "PSNR": (ours["psnr"], bicubic["psnr"] + 1.0),
        "PSNR of regions": (ours["roi_psnr"], bicubic["roi_psnr"] + 1.0),
        "SSIM": (ours["ssim"], bicubic["ssim"]),
        "NRMSE less than bicubic's": (bicubic["nrmse"], ours["nrmse"]),
    }


CASES = {"SuperResolver": Case(arguments, golden=3.492, learns=learns, data=pairs)}
