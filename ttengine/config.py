"""Settings as frozen dataclasses, and the paper's settings by dataset name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ttengine.errors import ConfigError

Positions = Literal["absolute", "rotary"]
ContextKind = Literal["window", "rolling"]
Binning = Literal["uniform", "quantile"]
Precision = Literal["no", "bf16", "fp16"]

T = TypeVar("T")


def check_range(config: object, name: str, low: float, high: float) -> None:
    """Raise ConfigError unless `low <= config.name <= high`; NaN and non-numbers fail too."""
    value = getattr(config, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise ConfigError(f"{type(config).__name__}.{name} is {value!r}, allowed is {low} to {high}")


def check_choice(config: object, name: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless `config.name` is one of `allowed`."""
    value = getattr(config, name)
    if value not in allowed:
        raise ConfigError(f"{type(config).__name__}.{name} is {value!r}, allowed are {', '.join(allowed)}")


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer's sizes.

    Source: Janner et al. 2021, released settings; `positions="rotary"` is this package's sliding-window variant.
    """

    observation_dim: int
    """N, numbers in one observation"""
    action_dim: int
    """M, numbers in one action"""
    n_bins: int = 100
    """V, bins per dimension; the stop token comes on top"""
    layers: int = 4
    heads: int = 4
    width: int = 128
    """D, over all heads"""
    dropout: float = 0.1
    """on embeddings, attention weights and residual branches"""
    positions: Positions = "rotary"
    """absolute: learned, the paper's; rotary: relative, so that cached keys stay valid while the context slides"""
    window: int = 10
    """transitions in one training sequence"""
    context: int = 5
    """past transitions that a token sees besides its own (rotary)"""
    goal: bool = False
    """condition on a goal observation, prepended as N tokens"""

    def __post_init__(self) -> None:
        check_range(self, "observation_dim", 1, 512)
        check_range(self, "action_dim", 1, 512)
        check_range(self, "n_bins", 2, 1024)
        check_range(self, "layers", 1, 64)
        check_range(self, "heads", 1, 64)
        check_range(self, "width", 4, 4096)
        check_range(self, "dropout", 0.0, 0.95)
        check_choice(self, "positions", ("absolute", "rotary"))
        check_range(self, "window", 2, 1000)
        check_range(self, "context", 1, 1000)
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.positions == "rotary" and (self.width // self.heads) % 4:
            raise ConfigError(
                f"a head is {self.width // self.heads} wide; rotary positions turn pairs in half of each head, so the "
                "head width must be a multiple of 4"
            )

    @property
    def transition_dim(self) -> int:
        """K, tokens in one transition: observation, action, reward, value."""
        return self.observation_dim + self.action_dim + 2

    @property
    def max_tokens(self) -> int:
        """Tokens of one training sequence: the last token of the window has no target."""
        return self.window * self.transition_dim - 1

    @property
    def goal_tokens(self) -> int:
        """Tokens prepended for the goal."""
        return self.observation_dim if self.goal else 0


@dataclass(frozen=True)
class DataConfig:
    """How logged trajectories become training sequences.

    Source: Janner et al. 2021, released code (discount 0.99, terminal penalty -100, padding past an episode's end).
    """

    discount: float = 0.99
    """of the value token"""
    terminal_penalty: float | None = -100.0
    """reward of a true terminal before values are computed; None leaves rewards as logged"""
    binning: Binning = "quantile"
    """equal-count or equal-width bins"""
    max_episode_steps: int = 1000
    """the environment's time limit: padding at or past it is not trained on, as an episode that long was cut"""
    validation_share: float = 0.05
    """share of whole episodes held out"""

    def __post_init__(self) -> None:
        check_range(self, "discount", 0.0, 1.0)
        check_choice(self, "binning", ("uniform", "quantile"))
        check_range(self, "max_episode_steps", 1, 10**9)
        check_range(self, "validation_share", 0.0, 0.9)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Source: Janner et al. 2021, released settings, but for the cosine: theirs climbs back to 100 % near epoch 39, this
    one stays at its floor.
    """

    batch_size: int = 256
    """training sequences a step, over all processes"""
    micro_batch: int | None = None
    """sequences computed at a time in each process, their gradients summed: bounds memory, changes the learning by
    rounding and dropout only; None: as many as make about 65,000 tokens"""
    steps: int | None = None
    """optimiser steps; None: the paper's int(1e6 / windows * epochs_reference) epochs"""
    epochs_reference: float = 50.0
    """epochs over a dataset of a million windows"""
    learning_rate: float = 6e-4
    final_learning_rate_share: float = 0.1
    """the cosine's floor, as a share of the learning rate"""
    warmup_share: float = 0.02
    """share of the steps with linear warm-up"""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    """on the weights of linear layers and of the head only"""
    clip_norm: float = 1.0
    """largest gradient norm"""
    bin_smoothing: float = 0.0
    """spread each bin's gradient over its neighbours, by a Gaussian of so many bins: what one learns, they learn in
    part; 0: every bin for itself, as released"""
    observation_weight: float = 1.0
    """weight of each observation token's cross-entropy"""
    action_weight: float = 5.0
    reward_weight: float = 1.0
    value_weight: float = 1.0
    precision: Precision = "no"
    """mixed precision: no (float32), bf16 or fp16"""
    seed: int = 0
    log_every: int = 50
    """optimiser steps between rows of the CSV"""
    validate_every: int = 500
    """optimiser steps between validations"""
    validation_batches: int = 20
    """at most so many batches a validation"""
    save_every_s: float = 60.0
    """seconds between saves (with several processes, taken at the next row of the CSV)"""
    save_every: int | None = None
    """optimiser steps between saves, besides the clock"""

    def __post_init__(self) -> None:
        check_range(self, "batch_size", 1, 10**6)
        if self.micro_batch is not None:
            check_range(self, "micro_batch", 1, 10**6)
        if self.steps is not None:
            check_range(self, "steps", 1, 10**9)
        check_range(self, "epochs_reference", 1e-9, 1e9)
        check_range(self, "learning_rate", 1e-12, 10.0)
        check_range(self, "final_learning_rate_share", 0.0, 1.0)
        check_range(self, "warmup_share", 0.0, 1.0)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas}, allowed are two numbers in [0, 1)")
        check_range(self, "weight_decay", 0.0, 10.0)
        check_range(self, "clip_norm", 1e-9, 1e9)
        check_range(self, "bin_smoothing", 0.0, 1e3)
        for name in ("observation_weight", "action_weight", "reward_weight", "value_weight"):
            check_range(self, name, 0.0, 1e6)
        check_choice(self, "precision", ("no", "bf16", "fp16"))
        for name in ("log_every", "validate_every", "validation_batches"):
            check_range(self, name, 1, 10**9)
        if self.save_every is not None:
            check_range(self, "save_every", 1, 10**9)
        check_range(self, "save_every_s", 0.0, 1e9)
        check_range(self, "seed", 0, 2**63 - 1)


@dataclass(frozen=True)
class Sampling:
    """Which tokens of one segment may be drawn, and how.

    The cdf filter comes first, then top-k. Source: Janner et al. 2021, released planner.
    """

    k: int | None = None
    """keep the k most probable tokens (ties at the k-th stay); 1 is greedy; None keeps all"""
    cdf: float | None = None
    """drop the tail that holds less than this share of the probability; None keeps all"""
    temperature: float = 1.0
    """divides the logits"""

    def __post_init__(self) -> None:
        if self.k is not None:
            check_range(self, "k", 1, 10**6)
        if self.cdf is not None:
            check_range(self, "cdf", 0.0, 1.0)
        check_range(self, "temperature", 1e-6, 1e6)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.k == 1


WINDOW_CONTEXT = 5
"""The paper's context in transitions, for `window` plans that do not say."""

EVERY_TOKEN = Sampling()
GREEDY = Sampling(k=1)
PAPER_ACTION = Sampling(cdf=0.6)


@dataclass(frozen=True)
class PlanConfig:
    """One beam search. Source: Janner et al. 2021, released planner settings."""

    horizon: int = 15
    """H, transitions planned ahead"""
    beam_width: int = 128
    """W, sequences kept after each round"""
    expand: int = 2
    """E, candidates made from each kept sequence"""
    context: int | None = None
    """window: past transitions that condition the plan and the width of the crop (None: 5, the paper's);
    rolling: fixed by the model's mask, leave it None"""
    context_kind: ContextKind | Literal["auto"] = "auto"
    """window: the paper's cropping; rolling: the sliding mask of rotary models; auto: what the model was trained for"""
    objective: Literal["return", "likelihood"] = "return"
    """return: offline RL; likelihood: imitation and goals, a beam search that branches at every token"""
    discount: float = 0.99
    percentile: float | Literal["mean"] = "mean"
    """how a reward's and a value's probabilities become a number: their expectation, or this percentile in (0, 1]"""
    percentile_as_released: bool = False
    """decode percentiles one bin low, as the released code does"""
    action: Sampling = PAPER_ACTION
    reward: Sampling = GREEDY
    value: Sampling = GREEDY
    observation: Sampling = GREEDY
    plan_every: int = 1
    """control steps between plans; the steps between execute further actions of the last plan"""
    engine: Literal["auto", "cpp", "triton", "reference"] = "auto"
    """who computes: cpp, the native core; triton, fused kernels on a GPU; reference, plain PyTorch on any device; auto:
    of a float32 model cpp on the CPU and triton on a GPU that it is made for, else reference"""
    threads: int | None = None
    """of the cpp engine; None: as many as PyTorch uses when the planner is made"""
    deduplicate: bool = True
    """compute identical sequences once (cpp), or what windows have in common (triton): the plans are the same bytes"""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """triton: of weights, keys and values; sums are float32. fp16 and bf16 take half of fp32's bytes, and as much
    work as each other; more of fp16's plans are fp32's, bf16 takes numbers of any size, the others up to 65,504. Other
    engines compute in the model's own precision, and refuse any but fp32"""
    draft: bool = True
    """triton: guess the next observation, check many of its tokens at once; the plans are the same bytes either way"""
    graph: bool = True
    """triton: record the search in a CUDA graph and replay it; False launches its kernels one by one"""

    def __post_init__(self) -> None:
        check_range(self, "horizon", 1, 64)
        check_range(self, "beam_width", 1, 512)
        check_range(self, "expand", 1, 64)
        if self.context is not None:
            check_range(self, "context", 0, 1000)
        check_choice(self, "context_kind", ("auto", "window", "rolling"))
        check_choice(self, "objective", ("return", "likelihood"))
        check_choice(self, "engine", ("auto", "cpp", "triton", "reference"))
        check_choice(self, "precision", ("fp32", "fp16", "bf16"))
        if self.threads is not None:
            check_range(self, "threads", 1, 256)
        check_range(self, "discount", 0.0, 1.0)
        if self.percentile != "mean":
            check_range(self, "percentile", 1e-6, 1.0)
        check_range(self, "plan_every", 1, 64)
        if self.plan_every > self.horizon:
            raise ConfigError(
                f"plan_every {self.plan_every} exceeds the horizon {self.horizon}: no action is left to take"
            )


LIKELIHOOD = PlanConfig(
    objective="likelihood", action=EVERY_TOKEN, reward=EVERY_TOKEN, value=EVERY_TOKEN, observation=EVERY_TOKEN
)
"""The plain beam search for imitation and goals, over all tokens."""

PLAN_PRESETS: dict[str, PlanConfig] = {
    "default": PlanConfig(),
    "halfcheetah-medium": PlanConfig(horizon=5, beam_width=32),
    "halfcheetah-medium-replay": PlanConfig(horizon=5, beam_width=32),
    "halfcheetah-medium-expert": PlanConfig(horizon=15, beam_width=32),
    "walker2d-medium-expert": PlanConfig(horizon=5, beam_width=128),
    "walker2d-medium-replay": PlanConfig(horizon=20, beam_width=32, action=Sampling(k=40)),
    "ant-medium": PlanConfig(horizon=5, beam_width=128),
    "ant-medium-replay": PlanConfig(horizon=5, beam_width=128),
    "ant-random": PlanConfig(horizon=5, beam_width=128),
    "halfcheetah-medium-expert-tt": PlanConfig(horizon=5, beam_width=32),
    "ant-medium-expert-tt": PlanConfig(horizon=5, beam_width=32),
    "hopper-demonstrator": PlanConfig(horizon=2, beam_width=8),
    "walker2d-demonstrator": PlanConfig(horizon=2, beam_width=8),
    "four-rooms-wanderer": dataclasses.replace(LIKELIHOOD, horizon=5, beam_width=8),
    "likelihood": LIKELIHOOD,
}
"""Released planner settings; the longest name that a dataset's begins with counts; one that is not listed takes
`default` (hopper, walker2d-medium, ant-medium-expert).

Names that end in `-tt`, `hopper-demonstrator`, `walker2d-demonstrator` and `four-rooms-wanderer` are this package's,
for its shipped models."""

TRAIN_PRESETS: dict[str, TrainConfig] = {
    "default": TrainConfig(),
    "ant": TrainConfig(batch_size=128),
    "hopper-medium-replay": TrainConfig(epochs_reference=80.0),
    "walker2d-medium-replay": TrainConfig(epochs_reference=80.0),
}
"""Released training settings, found like the planner's."""


def plan_preset(dataset: str) -> PlanConfig:
    """Return the paper's planner settings for a dataset such as `halfcheetah-medium-v2`."""
    return _preset(PLAN_PRESETS, dataset)


def train_preset(dataset: str) -> TrainConfig:
    """Return the paper's training settings for a dataset such as `ant-medium-v2`."""
    return _preset(TRAIN_PRESETS, dataset)


def _preset(presets: Mapping[str, T], dataset: str) -> T:
    """The longest listed name that the dataset's name is or begins with."""
    name = f"{dataset.lower()}-"
    matching = [preset for preset in presets if name.startswith(f"{preset}-")]
    return presets[max(matching, key=len, default="default")]


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a config dataclass from plain values, nested ones included; an unknown key lists the known ones.

    Raises:
        ConfigError: a key is unknown, missing, or its value is refused.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(fields)}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and fields[name].type == "Sampling":
            value = from_dict(Sampling, value)
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    try:
        return kind(**built)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__}: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain JSON values."""
    return dataclasses.asdict(config)
