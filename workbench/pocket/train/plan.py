"""The settings of a training run, and its progress."""

from dataclasses import dataclass, field

from workbench.model.config import Config
from workbench.pocket.train.batches import Place
from workbench.pocket.train.model import SHAPE, training_dtype


@dataclass(frozen=True)
class Plan:
    """All settings that determine the result of a run, except the number of workers."""

    tokens: float = 18e6
    batch: int = 1280  # tokens per worker and step
    lr: float = 0.002  # of Muon
    lr_rest: float = 0.0015  # of AdamW
    warm_up: int = 60  # steps
    decay: float = 0.6  # the final share of the run in which the learning rate falls to 0
    balance: float = 0.02
    z_loss: float = 0.001
    seed: int = 0
    shape: Config = field(default_factory=lambda: SHAPE)
    start: str | None = None  # path of a checkpoint, or of an exported model, with the initial weights
    course: str = "first"  # the mix of problems: see `mix`
    dtype: str = "float32"  # of activations and products, or "bfloat16"; weights and optimizer stay float32

    def __post_init__(self) -> None:
        training_dtype(self.dtype)

    def rate(self, step: int, progress: float) -> float:
        """The factor of the learning rates: linear warm-up, constant, linear decay to 0.

        >>> [round(Plan().rate(step, p), 2) for step, p in ((29, 0), (500, 0.3), (900, 0.7), (2000, 1))]
        [0.5, 1.0, 0.5, 0.0]
        """
        return min(1.0, (step + 1) / self.warm_up) * min(1.0, max(0.0, 1 - progress) / self.decay)


@dataclass(slots=True)
class State:
    """The progress of a run."""

    step: int = 0
    tokens: float = 0.0
    cpu: float = 0.0  # seconds, all workers
    places: list[Place] = field(default_factory=list)
