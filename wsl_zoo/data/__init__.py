"""Data sets as Lightning data modules, and what they are made of."""

from wsl_zoo.data.bach import BACHData
from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.camelyon16 import Camelyon16Data
from wsl_zoo.data.camelyon17 import Camelyon17Data
from wsl_zoo.data.crc import CRCData
from wsl_zoo.data.csaw_cc import CSAWCCData
from wsl_zoo.data.cub import CUBData
from wsl_zoo.data.davis import DAVISData
from wsl_zoo.data.ebhi import EBHIData
from wsl_zoo.data.exams import ExamDataModule
from wsl_zoo.data.flowers import FlowersData
from wsl_zoo.data.folder import FolderData, UnlabelledImages
from wsl_zoo.data.glas import GlaSData
from wsl_zoo.data.grades import SyntheticGradesData
from wsl_zoo.data.histories import SyntheticExamsData
from wsl_zoo.data.ilsvrc import ILSVRCData
from wsl_zoo.data.image_pairs import ImagePairsData
from wsl_zoo.data.manifest import DataError, Record
from wsl_zoo.data.micrographs import SyntheticPairsData
from wsl_zoo.data.openimages import OpenImagesData
from wsl_zoo.data.ordinal import AFADData, FGNETData, HCIData, ICIARData
from wsl_zoo.data.pair_files import PairRecord
from wsl_zoo.data.pairs import PairDataModule
from wsl_zoo.data.pcam import PCamData
from wsl_zoo.data.reports import Report
from wsl_zoo.data.sr_caco2 import SRCACO2Data
from wsl_zoo.data.synthetic import SyntheticData, SyntheticVideoData
from wsl_zoo.data.synthetic_reports import SyntheticReportsData
from wsl_zoo.data.tables import TableData, TabularDataModule
from wsl_zoo.data.video import VideoDataModule
from wsl_zoo.data.video_folder import VideoFolderData
from wsl_zoo.data.visits import VisitTableData
from wsl_zoo.data.w2s import W2SData
from wsl_zoo.data.wsol import WSOLData
from wsl_zoo.data.youtube_objects import YouTubeObjectsData

__all__ = [
    "AFADData",
    "BACHData",
    "CRCData",
    "CSAWCCData",
    "CUBData",
    "Camelyon16Data",
    "Camelyon17Data",
    "DAVISData",
    "DataError",
    "EBHIData",
    "ExamDataModule",
    "FGNETData",
    "FlowersData",
    "FolderData",
    "GlaSData",
    "HCIData",
    "ICIARData",
    "ILSVRCData",
    "ImagePairsData",
    "OpenImagesData",
    "PCamData",
    "PairDataModule",
    "PairRecord",
    "Record",
    "Report",
    "SRCACO2Data",
    "SyntheticData",
    "SyntheticExamsData",
    "SyntheticGradesData",
    "SyntheticPairsData",
    "SyntheticReportsData",
    "SyntheticVideoData",
    "TableData",
    "TabularDataModule",
    "UnlabelledImages",
    "VideoDataModule",
    "VideoFolderData",
    "VisitTableData",
    "W2SData",
    "WSOLData",
    "YouTubeObjectsData",
    "ZooDataModule",
]
