"""Arguments by which every super-resolution network is small: a pass in milliseconds."""

from typing import Any

TINY: dict[str, dict[str, Any]] = {
    "SRCNN": {"widths": [8, 4]},
    "VDSR": {"width": 8, "depth": 4},
    "DRRN": {"width": 8, "units": 3},
    "MemNet": {"width": 4, "blocks": 2, "recursions": 2, "residuals": 1},
    "NLSN": {"width": 8, "blocks": 2, "every": 1, "chunk": 9, "rounds": 2},
    "DFCAN": {"width": 8, "groups": 2, "blocks": 2, "reduction": 2},
    "SwinIR": {"width": 12, "depths": [2], "heads": 2, "window": 4},
    "EDSRLIIF": {"width": 8, "blocks": 1, "hidden": [16, 16]},
    "ENLCN": {"width": 8, "blocks": 2, "every": 1, "features": 12},
    "GRL": {"width": 72, "depths": [2], "heads": 3, "window": 4, "stripe": [4, 4]},
    "ACT": {"width": 8, "depth": 2, "heads": 2, "blocks": 1, "reduction": 2, "fusions": 1},
    "OmniSR": {"width": 16, "groups": 1, "blocks": 1, "window": 4},
    "DBPN": {"features": 8, "width": 4, "depth": 3, "passes": 2},
    "SRFBN": {"features": 8, "width": 4, "groups": 2, "steps": 2},
    "ProSR": {"width": 8, "growth": 4, "layers": 2, "units": [2, 1, 1]},
    "MSLapSRN": {"width": 4, "depth": 1},
}
