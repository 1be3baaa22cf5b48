"""Compiled kernels, loaded once in the process that tests of several processes fork theirs from."""

import torch

from wsl_zoo.metrics import BoxLocalization, DiceAtThreshold, PxAP

_SCORES, _MASK = torch.rand(1, 4, 4), torch.eye(4, dtype=torch.uint8)[None]
PxAP().update(_SCORES, _MASK)
DiceAtThreshold().update(_SCORES, _MASK)
BoxLocalization((0.5,)).update(_SCORES, [torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64)])
