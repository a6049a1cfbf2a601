from .api import distill as distill
from .api import evaluate as evaluate
from .data import DistilledDataset as DistilledDataset
from .data import ProgressiveDataModule as ProgressiveDataModule
from .progression import StageAdvance as StageAdvance
from .stages import DATM as DATM
from .stages import FTD as FTD
from .stages import IDC as IDC
from .stages import DistillationStage as DistillationStage
from .stages import DistributionMatching as DistributionMatching
from .stages import GradientMatching as GradientMatching
from .stages import TrajectoryMatching as TrajectoryMatching

__version__: str
