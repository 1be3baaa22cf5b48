"""Every network, at a reduced width, learns one patch of a real micrograph by heart."""

import pytest

from experiments.superres.generate import NETWORKS
from experiments.superres.overfit import patch_of, row

SIDE, SCALE = 48, 4
# Arguments, learning rate, steps of Adam, and dB over bicubic that must be passed.
SMALL = {
    "SRCNN": ({"widths": [64, 32]}, 1e-2, 400, 0.5),
    "VDSR": ({"width": 16, "depth": 6}, 3e-3, 200, 3.0),
    "DRRN": ({"width": 16, "units": 4}, 3e-3, 200, 1.5),
    "MemNet": ({"width": 12, "blocks": 2, "recursions": 2, "residuals": 2}, 3e-3, 250, 4.0),
    "NLSN": ({"width": 24, "blocks": 4, "every": 2, "chunk": 36}, 2e-3, 200, 4.0),
    "DFCAN": ({"width": 16, "groups": 2, "blocks": 2, "reduction": 4}, 3e-3, 200, 4.0),
    "SwinIR": ({"width": 24, "depths": [2, 2], "heads": 2, "window": 4}, 3e-3, 400, 0.5),
    "EDSRLIIF": ({"width": 16, "blocks": 4, "hidden": [64, 64]}, 3e-3, 200, 3.0),
    "ENLCN": ({"width": 24, "blocks": 4, "every": 2, "features": 32}, 2e-3, 200, 2.5),
    "GRL": (
        {"width": 72, "depths": [2], "heads": 3, "window": 4, "stripe": [4, 4]}, 2e-3, 250, 1.0
    ),
    "ACT": (
        {"width": 16, "depth": 2, "heads": 4, "blocks": 1, "reduction": 4, "fusions": 1},
        2e-3, 150, 3.0,
    ),
    "OmniSR": ({"width": 24, "groups": 1, "blocks": 1, "window": 4}, 3e-3, 200, 5.0),
    "DBPN": ({"features": 24, "width": 12, "depth": 3, "passes": 2}, 2e-3, 120, 5.0),
    "SRFBN": ({"features": 24, "width": 12, "groups": 2, "steps": 2}, 2e-3, 150, 5.0),
    "ProSR": ({"width": 24, "growth": 8, "layers": 3, "units": [2, 1, 1]}, 2e-3, 200, 5.0),
    "MSLapSRN": ({"width": 16, "depth": 3}, 2e-3, 400, 3.0),
}  # fmt: skip


def test_every_network_of_the_benchmark_is_here():
    assert set(SMALL) == {network for network, _ in NETWORKS.values()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_passes_bicubic(name, real_data):
    if name in {"SwinIR", "GRL", "OmniSR"}:
        pytest.importorskip("spandrel")
    image, target = patch_of(real_data / "W2S" / "clean" / "001_0.png", SIDE, SCALE)
    settings, lr, steps, bar = SMALL[name]
    before, after, _ = row(name, settings, image, target, steps, lr)
    assert float(before) < 1
    assert float(after) > bar
