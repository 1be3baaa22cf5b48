"""Complete networks that are no encoder with a head: super-resolution, one file per network."""

from wsl_zoo.networks.act import ACT
from wsl_zoo.networks.base import SuperResolution, upsampled
from wsl_zoo.networks.classical import Interpolation
from wsl_zoo.networks.dbpn import DBPN
from wsl_zoo.networks.dfcan import DFCAN
from wsl_zoo.networks.drrn import DRRN
from wsl_zoo.networks.edsr_liif import EDSRLIIF
from wsl_zoo.networks.enlcn import ENLCN
from wsl_zoo.networks.grl import GRL
from wsl_zoo.networks.memnet import MemNet
from wsl_zoo.networks.mslapsrn import MSLapSRN
from wsl_zoo.networks.nlsn import NLSN
from wsl_zoo.networks.omni_sr import OmniSR
from wsl_zoo.networks.prosr import ProSR
from wsl_zoo.networks.srcnn import SRCNN
from wsl_zoo.networks.srfbn import SRFBN
from wsl_zoo.networks.swinir import SwinIR
from wsl_zoo.networks.vdsr import VDSR

__all__ = [
    "ACT",
    "DBPN",
    "DFCAN",
    "DRRN",
    "EDSRLIIF",
    "ENLCN",
    "GRL",
    "NLSN",
    "SRCNN",
    "SRFBN",
    "VDSR",
    "Interpolation",
    "MSLapSRN",
    "MemNet",
    "OmniSR",
    "ProSR",
    "SuperResolution",
    "SwinIR",
    "upsampled",
]
