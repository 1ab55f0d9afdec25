"""What a run is to do, and how far it is."""

from dataclasses import dataclass, field

from workbench.model.config import Config
from workbench.pocket.train.batches import Place
from workbench.pocket.train.model import SHAPE, training_dtype


@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out of a run, but for the number of workers."""

    tokens: float = 18e6
    batch: int = 1280  # tokens a worker and a step
    lr: float = 0.002  # Muon
    lr_rest: float = 0.0015  # AdamW
    warm_up: int = 60  # steps
    decay: float = 0.6  # the last part of the run, in which the rate falls to 0
    balance: float = 0.02
    z_loss: float = 0.001
    seed: int = 0
    shape: Config = field(default_factory=lambda: SHAPE)
    start: str | None = None  # a checkpoint whose weights it begins with
    course: str = "first"  # which problems: see `mix`
    dtype: str = "float32"  # of activations and products, or "bfloat16"; weights and optimizer stay float32

    def __post_init__(self) -> None:
        training_dtype(self.dtype)

    def rate(self, step: int, progress: float) -> float:
        """The share of the learning rates: a warm-up, a plateau, a line to 0.

        >>> [round(Plan().rate(step, p), 2) for step, p in ((29, 0), (500, 0.3), (900, 0.7), (2000, 1))]
        [0.5, 1.0, 0.5, 0.0]
        """
        return min(1.0, (step + 1) / self.warm_up) * min(1.0, max(0.0, 1 - progress) / self.decay)


@dataclass(slots=True)
class State:
    """How far a run is."""

    step: int = 0
    tokens: float = 0.0
    cpu: float = 0.0  # seconds, all workers
    places: list[Place] = field(default_factory=list)
