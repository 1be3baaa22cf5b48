"""The methods of the zoo: one file per paper, each a LightningModule."""

from wsl_zoo.methods.acol import ACoL
from wsl_zoo.methods.active import ActiveWeakAnnotator
from wsl_zoo.methods.adadsa import AdaDSA
from wsl_zoo.methods.adl import ADL
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.methods.cam import CAMClassifier
from wsl_zoo.methods.cdcl import CDCL
from wsl_zoo.methods.clipit import CLIPIT
from wsl_zoo.methods.colocam import CoLoCAM
from wsl_zoo.methods.contrastive import ContrastiveCLIP
from wsl_zoo.methods.cutmix import CutMix
from wsl_zoo.methods.fcam import FCAM
from wsl_zoo.methods.has import HaS
from wsl_zoo.methods.maxmin import MaxMin
from wsl_zoo.methods.minmax_entropy import MinMaxEntropy
from wsl_zoo.methods.negev import NEGEV
from wsl_zoo.methods.nlccam import NLCCAM
from wsl_zoo.methods.phd import PHDStudent, PHDTeacher
from wsl_zoo.methods.pixelcam import PixelCAM
from wsl_zoo.methods.report_classifier import ReportClassifier
from wsl_zoo.methods.sat import SAT
from wsl_zoo.methods.scm import SCM
from wsl_zoo.methods.sfdadep import SFDADeP
from wsl_zoo.methods.sfde import SFDE
from wsl_zoo.methods.shot import SHOT
from wsl_zoo.methods.spg import SPG
from wsl_zoo.methods.superres import SuperResolver
from wsl_zoo.methods.tcam import TCAM
from wsl_zoo.methods.tscam import TSCAM
from wsl_zoo.methods.unet import SupervisedUNet
from wsl_zoo.methods.unimodal import UnimodalOrdinal

__all__ = [
    "ADL",
    "CDCL",
    "CLIPIT",
    "FCAM",
    "NEGEV",
    "NLCCAM",
    "SAT",
    "SCM",
    "SFDE",
    "SHOT",
    "SPG",
    "TCAM",
    "TSCAM",
    "ACoL",
    "ActiveWeakAnnotator",
    "AdaDSA",
    "CAMClassifier",
    "CoLoCAM",
    "ContrastiveCLIP",
    "CutMix",
    "HaS",
    "MaxMin",
    "MinMaxEntropy",
    "PHDStudent",
    "PHDTeacher",
    "PixelCAM",
    "ReportClassifier",
    "SFDADeP",
    "SuperResolver",
    "SupervisedUNet",
    "UnimodalOrdinal",
    "ZooModule",
]
