from .callbacks import StageAdvance as StageAdvance
from .data import DistilledDataset as DistilledDataset
from .data import ProgressiveDataModule as ProgressiveDataModule
from .stages import IDC as IDC
from .stages import DistillationStage as DistillationStage
from .stages import DistributionMatching as DistributionMatching
from .stages import GradientMatching as GradientMatching
from .stages import TrajectoryMatching as TrajectoryMatching

__version__: str
