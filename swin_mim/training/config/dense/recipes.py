"""The settings of any recipe, as far as runs are alike."""

from swin_mim.training.config.dense.detect import DetectConfig
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.pretrain import PretrainConfig

RecipeConfig = PretrainConfig | FinetuneConfig | SegmentConfig | DetectConfig
