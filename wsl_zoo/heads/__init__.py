"""Heads: what turns the features of an encoder into logits and maps."""

from wsl_zoo.heads.pooling import GAP, WGAP, PoolingHead

__all__ = ["GAP", "WGAP", "PoolingHead"]
