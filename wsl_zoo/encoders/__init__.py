"""Encoders: timm networks with a uniform output, and the other ways to embed an input."""

from wsl_zoo.encoders.adapters import adapt, fold, load_plain, lora_parameters, merge, unmerge
from wsl_zoo.encoders.bank import FeatureBank, average_norms
from wsl_zoo.encoders.choice import make_encoder
from wsl_zoo.encoders.features import FeatureCache
from wsl_zoo.encoders.image_tower import ImageTower
from wsl_zoo.encoders.lora import LoRAConv2d, LoRALinear
from wsl_zoo.encoders.mlp import MLPEncoder
from wsl_zoo.encoders.recompute import recomputed
from wsl_zoo.encoders.text import ImageTextEncoder, ImageTextModel
from wsl_zoo.encoders.text_tower import TextTower
from wsl_zoo.encoders.timm import Encoder

__all__ = [
    "Encoder",
    "FeatureBank",
    "FeatureCache",
    "ImageTextEncoder",
    "ImageTextModel",
    "ImageTower",
    "LoRAConv2d",
    "LoRALinear",
    "MLPEncoder",
    "TextTower",
    "adapt",
    "average_norms",
    "fold",
    "load_plain",
    "lora_parameters",
    "make_encoder",
    "merge",
    "recomputed",
    "unmerge",
]
