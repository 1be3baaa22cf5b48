"""Heads: what turns the features of an encoder into logits and maps."""

from wsl_zoo.heads.decoder import UNetDecoder
from wsl_zoo.heads.hazard import AdditiveHazard
from wsl_zoo.heads.history import HistoryAggregator, HistoryImputer, RecurrentAggregator
from wsl_zoo.heads.image_path import ImagePathDecoder
from wsl_zoo.heads.mil import AttentionMIL
from wsl_zoo.heads.ordinal import (
    BinomialScores,
    Cumulative,
    CutPoints,
    OrdinalHead,
    PoissonScores,
    SharedRank,
)
from wsl_zoo.heads.peaks import PRM
from wsl_zoo.heads.pixel import PixelHead
from wsl_zoo.heads.pooling import GAP, WGAP, WILDCAT, LogSumExp, MaxPool, PoolingHead
from wsl_zoo.heads.text import TextHead, text_map

__all__ = [
    "GAP",
    "PRM",
    "WGAP",
    "WILDCAT",
    "AdditiveHazard",
    "AttentionMIL",
    "BinomialScores",
    "Cumulative",
    "CutPoints",
    "HistoryAggregator",
    "HistoryImputer",
    "ImagePathDecoder",
    "LogSumExp",
    "MaxPool",
    "OrdinalHead",
    "PixelHead",
    "PoissonScores",
    "PoolingHead",
    "RecurrentAggregator",
    "SharedRank",
    "TextHead",
    "UNetDecoder",
    "text_map",
]
