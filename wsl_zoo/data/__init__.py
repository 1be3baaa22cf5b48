"""Data sets as Lightning data modules, and what they are made of."""

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.folder import FolderData, UnlabelledImages
from wsl_zoo.data.glas import GlaSData
from wsl_zoo.data.manifest import DataError, Record
from wsl_zoo.data.synthetic import SyntheticData

__all__ = [
    "DataError",
    "FolderData",
    "GlaSData",
    "Record",
    "SyntheticData",
    "UnlabelledImages",
    "ZooDataModule",
]
