"""The methods of the zoo: one file per paper, each a LightningModule over a timm encoder."""

from wsl_zoo.methods.base import ZooModule
from wsl_zoo.methods.cam import CAMClassifier

__all__ = ["CAMClassifier", "ZooModule"]
