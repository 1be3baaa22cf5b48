"""ILSVRC 2012 (ImageNet-1k) for localisation: 1,000 classes, boxes.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015,
arXiv 1409.0575; splits of Choe et al. (CVPR 2020, arXiv 2001.07437) by a metadata folder:

    root/train/<wnid>/*.JPEG    1.28 M images with weak labels
    root/val2/<class>/*.jpeg    `val`: ImageNetV2 (threshold-0.7), 10,000 images, 18,532 boxes
    root/val/*.JPEG             `test`: the 50,000 validation images of ILSVRC

`verify="none"` spares opening every one of these files before training.
"""

from __future__ import annotations

from wsl_zoo.data.wsol import WSOLData


class ILSVRCData(WSOLData):
    """ILSVRC with the metadata of wsolevaluation; classes are WordNet ids.

    See `WSOLData` for the arguments; `root` holds `train`, `val2` and `val`.
    """
