"""Progression: what happens from stage to stage.

`advance` runs the stages; `transition` trains networks on the union between them and records the next experts;
`examples` chooses the real examples of each stage; `checks` refuses what cannot work; `meter` measures; `observer` is
for callbacks that want to be told. The state of a run is `pdd_lightning.data.progressive.RunState`.
"""

from pdd_lightning.progression.advance import StageAdvance
from pdd_lightning.progression.observer import StageObserver
from pdd_lightning.progression.transition import PoolSettings, TransitionSettings

__all__ = ["PoolSettings", "StageAdvance", "StageObserver", "TransitionSettings"]
