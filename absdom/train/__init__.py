"""Training provably robust networks through the same plans that verify them."""

from absdom.train.adversarial import TRADES, Adversarial, CollapseGuard
from absdom.train.attacks import FGSM, PGD
from absdom.train.bounds import IBP, Certified
from absdom.train.cap import CAP
from absdom.train.colt import COLT, COLTStages
from absdom.train.config import Training
from absdom.train.crown_ibp import CrownIBP
from absdom.train.data import Augmentation, CropFlip, TrainingData, read_training
from absdom.train.diffai import Abstract, Attacked, Between, Clean, Coin, DiffAI, LinMix
from absdom.train.export import export_onnx
from absdom.train.expressive import CCIBP, MTLIBP, ExpIBP
from absdom.train.fast_ibp import FastIBP, FastRegulariser, fast_init_
from absdom.train.hooks import EarlyStopping, Hook, WeightAveraging
from absdom.train.landscape import Landscape
from absdom.train.noise import WeightNoise
from absdom.train.one_step import OneStep
from absdom.train.presets import PRESETS, preset
from absdom.train.properties import PropertySpecification
from absdom.train.regularisers import L1
from absdom.train.sabr import SABR
from absdom.train.schedules import Cyclic, Follow, Linear, Piecewise, Ramp, Schedule
from absdom.train.shares import Evaluation, evaluate
from absdom.train.taps import STAPS, TAPS
from absdom.train.task import Classification
from absdom.train.trainer import Trainer
from absdom.train.zoo import ZOO

__all__ = [
    "Abstract",
    "Adversarial",
    "Attacked",
    "Augmentation",
    "Between",
    "CAP",
    "CCIBP",
    "COLT",
    "COLTStages",
    "Certified",
    "Classification",
    "Clean",
    "Coin",
    "CollapseGuard",
    "CropFlip",
    "CrownIBP",
    "Cyclic",
    "DiffAI",
    "EarlyStopping",
    "Evaluation",
    "ExpIBP",
    "FGSM",
    "FastIBP",
    "FastRegulariser",
    "Follow",
    "Hook",
    "IBP",
    "L1",
    "Landscape",
    "LinMix",
    "Linear",
    "MTLIBP",
    "OneStep",
    "PGD",
    "PRESETS",
    "Piecewise",
    "PropertySpecification",
    "Ramp",
    "SABR",
    "STAPS",
    "Schedule",
    "TAPS",
    "TRADES",
    "Trainer",
    "Training",
    "TrainingData",
    "WeightAveraging",
    "WeightNoise",
    "ZOO",
    "evaluate",
    "export_onnx",
    "fast_init_",
    "preset",
    "read_training",
]
