r"""Draw what overlap and ramps do at the seams of windows: errors of an image enlarged in windows.

    python -m experiments.plots.tiles \
        runs/w2s_superres/VDSR/sourceclean/seed0/checkpoints/last.ckpt data/W2S/clean/001_0.png

The picture is taken for the low-resolution image. Left: the result in windows; then, as far as
`--shown` from black to white, its difference from that of the whole image: with overlap and ramps,
and with windows that are put side by side.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from wsl_zoo import load, pictures
from wsl_zoo.data.pixels import read_pixels
from wsl_zoo.methods import SuperResolver
from wsl_zoo.tiling import enlarge_tiled


def main() -> None:
    """Read the options and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--side", type=int, default=192, help="of the part that is enlarged")
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--overlap", type=int, default=16)
    parser.add_argument("--shown", type=float, default=4.0, help="difference, in grey levels")
    parser.add_argument("--out", type=Path, default=Path("tiles.png"))
    options = parser.parse_args()
    model = load(options.checkpoint)
    assert isinstance(model, SuperResolver)
    image = read_pixels(options.image)[:, : options.side, : options.side]

    def enlarged(tile: int, overlap: int) -> np.ndarray:
        found = enlarge_tiled(model.network, image, model.scale, tile=tile, overlap=overlap)
        return np.asarray(found)

    with torch.no_grad():
        whole = enlarged(options.side, 0)
        kinds = {
            f"overlap {options.overlap}": enlarged(options.tile, options.overlap),
            "side by side": enlarged(options.tile, 0),
        }
    tiles, header = [pictures.grey(kinds[f"overlap {options.overlap}"])], ["in windows"]
    for name, result in kinds.items():
        levels = 255 * np.abs(result - whole)
        print(
            f"{name}: differs by {levels.mean():.4f} levels on average, {levels.max():.2f} at most"
        )
        tiles.append(pictures.grey(levels / options.shown))
        header.append(f"{name}: difference")
    pictures.save(pictures.grid([tiles], header=header), options.out)


if __name__ == "__main__":
    main()
