"""Write the configs of the SR-CACO-2 benchmark: every network at every scale, from one table.

    python -m experiments.superres.generate

To be run from the root of the repository; it writes `experiments/superres/<network>_x<scale>.yaml`.
The recipe is the benchmark's for all of them: 128-pixel crops, batches of 8, 100 epochs, SGD with
rate 0.01, L2 - 5 SSIM.
"""

from pathlib import Path

# File stem -> class, and how it is written, in the order of the benchmark.
NETWORKS: dict[str, tuple[str, str]] = {
    "srcnn": ("SRCNN", "SRCNN"),
    "vdsr": ("VDSR", "VDSR"),
    "drrn": ("DRRN", "DRRN"),
    "memnet": ("MemNet", "MemNet"),
    "nlsn": ("NLSN", "NLSN"),
    "dfcan": ("DFCAN", "DFCAN"),
    "swinir": ("SwinIR", "SwinIR"),
    "edsr_liif": ("EDSRLIIF", "EDSR-LIIF"),
    "enlcn": ("ENLCN", "ENLCN"),
    "grl": ("GRL", "GRL"),
    "act": ("ACT", "ACT"),
    "omni_sr": ("OmniSR", "Omni-SR"),
    "dbpn": ("DBPN", "DBPN"),
    "srfbn": ("SRFBN", "SRFBN"),
    "prosr": ("ProSR", "ProSR"),
    "mslapsrn": ("MSLapSRN", "MS-LapSRN"),
}
SCALES = (2, 4, 8)
TEMPLATE = """\
# {title} on SR-CACO-2 at X{scale}, one marker (set --data.root and --data.marker).
seed_everything: 0
model:
  class_path: wsl_zoo.methods.SuperResolver
  init_args:
    network: {network}
    scale: {scale}
    pixel_loss: l2
    ssim_weight: 5.0
    ssim_window: 19
    optimizer: sgd
    lr: 0.01
    momentum: 0.9
    weight_decay: 0.0
    schedule: step
    schedule_interval: epoch
    step_size: 30
    gamma: 0.5
    min_lr: 1.0e-4
data:
  class_path: wsl_zoo.data.SRCACO2Data
  init_args:
    root: data/SR-CACO-2
    marker: CELL0
    scale: {scale}
    crop_size: 128
    batch_size: 8
    drop_last: true
    num_workers: 4
trainer:
  max_epochs: 100
"""


def configs() -> dict[str, str]:
    """Return the text of every config by its file name."""
    found = {}
    for stem, (network, title) in NETWORKS.items():
        for scale in SCALES:
            text = TEMPLATE.format(title=title, scale=scale, network=network)
            found[f"{stem}_x{scale}.yaml"] = text
    return found


def main() -> None:
    """Write them all."""
    folder = Path(__file__).parent
    for name, text in configs().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
