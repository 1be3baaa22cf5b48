r"""Lay results of super-resolution side by side: every network of a pipeline, with its PSNR.

    wsl-zoo run pipelines/w2s_superres --data.root data/W2S
    python -m experiments.plots.superres runs/w2s_superres data/W2S/clean/029_0.png \
        --where source=clean

The low-resolution image is the mean of s x s pixels of the picture given, or of another frame of
the same field (`--low data/W2S/noisy/029_0.png`). A part is shown, with its PSNR; networks see 16
pixels of low resolution around it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from wsl_zoo import load, pictures
from wsl_zoo.data.pixels import downsample, read_pixels
from wsl_zoo.methods import SuperResolver
from wsl_zoo.metrics.superres import image_psnr
from wsl_zoo.runs import RESULTS, runs_below

TILE = 144  # height of a part in the picture
AROUND = 16  # pixels of low resolution that networks see around the part


def main() -> None:
    """Read the options and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("image", type=Path, help="the target")
    parser.add_argument("--low", type=Path, help="frame that is made smaller (default: the target)")
    parser.add_argument("--where", nargs="*", default=[], help="columns of the runs: source=clean")
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--part", type=int, nargs=3, default=[192, 192, 128], help="y, x, side")
    parser.add_argument("--across", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("superres.png"))
    options = parser.parse_args()
    wanted = dict(pair.split("=", 1) for pair in options.where)
    top, left, side = options.part
    target = read_pixels(options.image)
    part = target[:, top : top + side, left : left + side]
    levels = float(np.iinfo(target.dtype).max)
    shown: dict[str, tuple[np.ndarray, str]] = {}
    for folder, job in runs_below(options.folder, RESULTS):
        cells = {key: str(value) for key, value in job["cells"].items()}
        if any(cells.get(key) != value for key, value in wanted.items()):
            continue
        model = load(folder / "checkpoints" / f"{options.checkpoint}.ckpt")
        assert isinstance(model, SuperResolver)
        source = target if options.low is None else read_pixels(options.low)
        scale = model.scale
        around = tuple(
            slice(n // scale - AROUND, (n + side) // scale + AROUND) for n in (top, left)
        )
        low = downsample(source, scale)[:, *around]
        inner = slice(AROUND * scale, AROUND * scale + side)
        result = model.predict_image(low[0])[None, inner, inner]
        images = (torch.from_numpy(x.astype(np.float64) / levels)[None] for x in (result, part))
        caption = f"{cells['method']} {float(image_psnr(*images)):.2f}"
        coarse = low.repeat(scale, 1).repeat(scale, 2)[:, inner, inner]
        shown.setdefault("low", (coarse, "low resolution"))
        shown[cells["method"]] = (result, caption)
    shown["target"] = (part, "target")
    tiles = [[pictures.grey(image / levels)] for image, _ in shown.values()]
    captions = [caption for _, caption in shown.values()]
    picture = pictures.grid(tiles, captions=captions, tile=TILE, across=options.across)
    pictures.save(picture, options.out)


if __name__ == "__main__":
    main()
