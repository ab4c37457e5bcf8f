"""Attention pictures: which tokens an action attends to, and two patterns that the paper describes.

A model reads held-out windows, and the attention weights of every layer and head are averaged over them. The row of a
token is the position from which it is *predicted*, the one before it: what that position attends to is what the
prediction is made from. Value tokens are masked, no row sees them. Only rows of a window's last transition are summed
up, which have the whole context before them, and windows have no padding.

For every head the weight is shared out by what is seen (observation, action, reward) and when (the transition of the
row itself, the one before, older ones). Two heads are then chosen by a number, and drawn:

* Markovian: the head whose actions and observations together give most weight to their own and the preceding
  transition. With `context` past transitions even attention would give it only a share, which the table holds as well.
* action smoothing: the head whose actions give most weight to actions of earlier transitions. The paper finds heads in
  which actions depend more on past actions than on past observations; whether this one does is among the checks.

Attention is no explanation: it says what is read, not what is made of it.

Source: Janner et al. 2021, section 4.1, "Attention patterns".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ttengine.checkpoint import Checkpoint, load
from ttengine.config import ModelConfig, check_range, from_dict
from ttengine.data.collect import CollectConfig, collect_to
from ttengine.data.load import load_dataset
from ttengine.data.trajectories import FloatArray, Trajectories
from ttengine.data.windows import Windows, split_episodes, transition_columns
from ttengine.errors import ConfigError, DataError
from ttengine.experiments.ingredients import PAPER, SMALL, Recipe, trained
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.experiments.sources import Source, check_unique, dataset_name, sources
from ttengine.model import Rotation, TrajectoryTransformer, attention_mask
from ttengine.viz.plots import INK, MUTED, SEGMENT_COLOURS, open_figure

RECIPE = dataclasses.replace(SMALL, context=5)
KINDS = ("observation", "action", "reward")
TIMES = ("own", "preceding", "older")
SHARES = tuple(f"{time} {kind}" for time in TIMES for kind in KINDS)
"""What a row's weight is shared out to; own reward is always 0: it comes after."""
MARKOVIAN_SHARE = 0.8
"""From here on a head is called Markovian."""
WINDOWS_AT_A_TIME = 16
WINDOW_STREAM = 14
"""Key of the generator that draws windows, beside the streams of ttengine.data.windows."""
FRESH_SEED = 1_000_003
"""Of episodes collected anew for a finished model; its own data had another."""


@dataclass(frozen=True)
class Config:
    """Average the attention of trained models over held-out windows; draw who looks where."""

    datasets: tuple[str, ...] = ("hopper-medium-replay",)
    """to train a model on each: recipes, D4RL ids, Minari ids or files"""
    models: tuple[str, ...] = ("halfcheetah",)
    """finished models besides, shipped ones by name or files; what collected their data is in their metadata"""
    transitions: int = 100_000
    """collected for a recipe; files are taken whole"""
    fresh_transitions: int = 10_000
    """collected to look at a finished model"""
    windows: int = 256
    """averaged over"""
    seed: int = 0
    recipe: Recipe = RECIPE

    AFTERWARDS: ClassVar[tuple[str, ...]] = ("windows",)
    """settings that neither data nor models depend on"""

    def __post_init__(self) -> None:
        check_range(self, "windows", 1, 10**6)
        if not self.datasets and not self.models:
            raise ConfigError("datasets and models are empty; name at least one")
        check_unique([*map(dataset_name, self.datasets), *(Path(name).stem for name in self.models)])

    @classmethod
    def full(cls) -> Config:
        """Three bodies with the paper's model."""
        datasets = tuple(f"{body}-medium-replay" for body in ("hopper", "halfcheetah", "walker2d"))
        return cls(datasets=datasets, transitions=400_000, windows=2_048, recipe=PAPER)


@torch.no_grad()
def attention_weights(model: TrajectoryTransformer, tokens: Tensor) -> Tensor:
    """Run a model, and make the attention weights of all layers from the queries and keys that it made.

    Args:
        model: without goals, in evaluation mode.
        tokens: [B, T] int64, starting with a transition's first token.
    Returns:
        [B, L, A, T, T]; rows sum to 1, 0 where a row may not look.
    Raises:
        ConfigError: the model has goals.
    """
    config, heads = model.config, model.config.heads
    if config.goal:
        raise ConfigError("attention is looked at in models without goals")
    made: list[Tensor] = []
    projections = [block.get_submodule("qkv") for block in model.blocks]
    hooks = [layer.register_forward_hook(lambda _, __, output: made.append(output)) for layer in projections]
    try:
        model.hidden(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    length, width = tokens.shape[1], config.width // heads
    visible = attention_mask(config, 0, length, tokens.device)
    weights = []
    for qkv in made:
        turned = qkv.unflatten(-1, (3, heads, width))[:, :, :2]
        if config.positions == "rotary":
            turned = Rotation(0, 0, length, width, qkv)(turned)
        query, key = (part.transpose(1, 2) for part in turned.unbind(2))  # [B, A, T, D/A]
        score = (query @ key.transpose(-1, -2)) / width**0.5
        weights.append(score.masked_fill(~visible, -torch.inf).softmax(dim=-1))
    return torch.stack(weights, dim=1)


def mean_attention(model: TrajectoryTransformer, tokens: Tensor) -> Tensor:
    """Average attention over windows. tokens [B, T] -> [L, A, T, T]."""
    total = sum(attention_weights(model, part).sum(dim=0) for part in tokens.split(WINDOWS_AT_A_TIME))
    assert isinstance(total, Tensor)
    return total / len(tokens)


def attention_shares(attention: Tensor, config: ModelConfig, segment: str) -> dict[str, Tensor]:
    """Share out the weight of the rows from which a window's last transition is predicted.

    Args:
        attention: [..., T, T], T whole transitions of tokens or one token less.
        config: of the model.
        segment: "observation" or "action", whose rows count.
    Returns:
        SHARES -> [...], the mean over these rows; they sum to 1.
    """
    N, M, K = config.observation_dim, config.action_dim, config.transition_dim
    columns = torch.arange(attention.shape[-1])
    last = (attention.shape[-1] - 1) // K
    first, count = {"observation": (0, N), "action": (N, M)}[segment]
    rows = attention[..., last * K + first - 1 : last * K + first + count - 1, :].mean(dim=-2)
    place, age = columns % K, last - columns // K
    kinds = ((place < N), (place >= N) & (place < N + M), place == N + M)
    times = (age == 0, age == 1, age > 1)
    return {
        f"{time} {kind}": rows[..., when & what].sum(dim=-1)
        for time, when in zip(TIMES, times, strict=True)
        for kind, what in zip(KINDS, kinds, strict=True)
    }


def even_attention(config: ModelConfig, length: int) -> Tensor:
    """Attention of a head that looks at all that it may see alike. -> [T, T]."""
    visible = attention_mask(config, 0, length, torch.device("cpu")).float()
    return visible / visible.sum(dim=-1, keepdim=True)


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found."""
    found = sources(run, config.datasets, config.transitions, needs_environment=False) if config.datasets else []
    arms = [Arm(source.name, partial(_measure_dataset, run, config, source)) for source in found]
    arms += [Arm(Path(name).stem, partial(_measure_finished, run, config, name)) for name in config.models]
    return _report(run, config, run.measure(arms))


def _measure_dataset(run: Run, config: Config, source: Source) -> Rows:
    name, data = source.name, source.trajectories
    model = trained(run, name, data, config.recipe, config.seed)
    _, held_out = split_episodes(data.episode_lengths, model.data.validation_share, config.seed)
    if not len(held_out):
        raise DataError(f"{name}: no episode is held out, there are {data.n_episodes}; collect more")
    return _measure(run, config, name, model, data.take_episodes(held_out))


def _measure_finished(run: Run, config: Config, name: str) -> Rows:
    """Measure a finished model on episodes collected anew from the policies that made its data."""
    model, label = load(name), Path(name).stem
    made = model.provenance.get("dataset", {}).get("config")
    if not made:
        raise DataError(f"{name} does not say what collected its data; only such models can be looked at")
    path = run.out / "data" / f"{label}.hdf5"
    if not path.is_file():
        fresh = {"transitions": config.fresh_transitions, "episodes": None, "seed": FRESH_SEED + config.seed}
        path.parent.mkdir(exist_ok=True)
        collect_to(from_dict(CollectConfig, {**made, **fresh}), path)
    return _measure(run, config, label, model, load_dataset(path))


def _measure(run: Run, config: Config, name: str, found: Checkpoint, data: Trajectories) -> Rows:
    model, tokens = found.model, _whole_windows(found, data, config.windows, config.seed)
    attention = mean_attention(model, tokens)
    folder = run.out / "attention"
    folder.mkdir(exist_ok=True)
    dims = np.array([model.config.observation_dim, model.config.action_dim])
    np.savez(folder / f"{name}.npz", attention=attention.numpy(), dims=dims)
    even = even_attention(model.config, tokens.shape[1])
    rows: Rows = []
    for segment in ("action", "observation"):
        shares = attention_shares(attention, model.config, segment)
        chance = attention_shares(even, model.config, segment)
        rows.append({"layer": "any", "head": "even", "rows": segment, **{k: float(v) for k, v in chance.items()}})
        for layer, head in np.ndindex(*attention.shape[:2]):
            numbers = {share: float(weight[layer, head]) for share, weight in shares.items()}
            rows.append({"layer": layer, "head": head, "rows": segment, **numbers})
    return rows


def _whole_windows(found: Checkpoint, data: Trajectories, count: int, seed: int) -> Tensor:
    """Tokens [B, window*K - 1] of windows that lie within their episodes, drawn without repeats."""
    config = found.model.config
    tokens = found.discretizer.encode_dataset(transition_columns(data, found.data))
    windows = Windows.of(tokens, data.episode_ends, config, found.data.max_episode_steps)
    ends = data.episode_ends[np.searchsorted(data.episode_ends, windows.starts, side="right")]
    whole = np.flatnonzero(windows.starts + config.window <= ends)
    if not len(whole):
        raise DataError(f"{data.name}: no episode has {config.window} transitions, one window of this model")
    chosen = np.random.default_rng([seed, WINDOW_STREAM]).permutation(whole)[:count]
    return windows.gather(chosen, np.zeros(len(chosen)), "cpu").inputs


def _report(run: Run, config: Config, found: dict[str, Rows]) -> Report:
    tables, pictures = [], []
    checks: dict[str, bool] = {}
    for name, rows in found.items():
        actions, observations = ([row for row in rows if row["rows"] == kind] for kind in ("action", "observation"))
        tables.append(_table(f"{name}: what actions attend to (%)", actions))
        tables.append(_table(f"{name}: what observations attend to (%)", observations))
        near = [(_near(a) + _near(o)) / 2 for a, o in zip(actions, observations, strict=True)]
        past = [_past(row, "action") for row in actions]
        markovian, smoothing = (1 + int(np.argmax(numbers[1:])) for numbers in (near, past))
        checks[
            f"{name}: a head is Markovian: {_name(actions[markovian])} gives {100 * near[markovian]:.0f} % to its own "
            f"and the preceding transition (evenly {100 * near[0]:.0f} %)"
        ] = near[markovian] >= MARKOVIAN_SHARE
        observed = _past(actions[smoothing], "observation")
        checks[
            f"{name}: a head smooths actions: in {_name(actions[smoothing])} actions give {100 * past[smoothing]:.0f} "
            f"% to past actions (evenly {100 * past[0]:.0f} %) and {100 * observed:.0f} % to past observations"
        ] = past[smoothing] > max(observed, past[0])
        with np.load(run.out / "attention" / f"{name}.npz") as kept:
            attention, dims = kept["attention"], (int(kept["dims"][0]), int(kept["dims"][1]))
        flat = attention.reshape(-1, *attention.shape[2:])
        chosen = {"Markovian": markovian, "action smoothing": smoothing}
        maps = {f"{title}: {_name(actions[i])}": flat[i - 1] for title, i in chosen.items()}
        plot_maps(run.out / f"attention-{name}.png", maps, dims)
        plot_shares(run.out / f"attention-{name}-heads.png", {_name(row): row for row in actions}, name)
        pictures += [f"attention-{name}.png", f"attention-{name}-heads.png"]
    text = (
        f"Attention averaged over up to {config.windows} held-out windows. A token's row is the position from which it "
        "is predicted. The Markovian head is the one whose actions and observations give most weight to their own and "
        "the preceding transition; the action-smoothing one gives most weight of its actions to earlier actions."
    )
    return Report("Attention", text, tables, pictures, checks)


def _near(row: dict[str, Any]) -> float:
    return sum(float(row[f"{time} {kind}"]) for time in ("own", "preceding") for kind in KINDS)


def _past(row: dict[str, Any], kind: str) -> float:
    return float(row[f"preceding {kind}"]) + float(row[f"older {kind}"])


def _name(row: dict[str, Any]) -> str:
    if row["head"] == "even":
        return "all alike"
    return f"layer {int(float(row['layer'])) + 1}, head {int(float(row['head'])) + 1}"


def _table(title: str, rows: Rows) -> Table:
    shares = [share for share in SHARES if share != "own reward"]
    return Table(title, ["head", *shares], [[_name(r), *(f"{100 * float(r[s]):.0f}" for s in shares)] for r in rows])


def plot_maps(path: Path, maps: dict[str, FloatArray], dims: tuple[int, int]) -> None:
    """Draw averaged attention, rows and columns in the order of the tokens, lines between transitions.

    Args:
        path: file to write, .png or .svg.
        maps: title -> [T, T] weights.
        dims: N and M.
    """
    N, M = dims
    K = N + M + 2
    colours = [
        SEGMENT_COLOURS[kind] for kind, size in zip((*KINDS, "value"), (N, M, 1, 1), strict=True) for _ in range(size)
    ]
    with open_figure(path, (5.4 * len(maps), 5.4)) as figure:
        for axes, (title, weights) in zip(np.atleast_1d(figure.subplots(1, len(maps))), maps.items(), strict=True):
            length = len(weights)
            # square roots: a few large weights would leave all others white
            axes.imshow(np.sqrt(weights), cmap="Greys", interpolation="nearest", vmin=0.0)
            for edge in range(K, length, K):
                axes.axhline(edge - 1.5, color=MUTED, linewidth=0.4)  # a token's row is the position before it
                axes.axvline(edge - 0.5, color=MUTED, linewidth=0.4)
            place = np.arange(length)
            axes.scatter(
                place, np.full(length, -1.6), c=[colours[p % K] for p in place], s=4, marker="s", clip_on=False
            )
            axes.scatter(
                np.full(length, -1.6), place, c=[colours[(p + 1) % K] for p in place], s=4, marker="s", clip_on=False
            )
            axes.set(title=title, xticks=[], yticks=[], xlim=(-2.4, length - 0.5), ylim=(length - 0.5, -2.4))
            axes.set(xlabel="attended token", ylabel="predicted token")
            axes.spines[:].set_visible(False)
        for kind in (*KINDS, "value"):
            axes.plot([], [], "s", color=SEGMENT_COLOURS[kind], markersize=4, label=kind)
        figure.legend(loc="outside lower center", ncols=4)


def plot_shares(path: Path, heads: dict[str, dict[str, Any]], title: str) -> None:
    """Draw what actions attend to, a bar a head. heads: name -> SHARES."""
    looks = {"own": 1.0, "preceding": 0.6, "older": 0.3}
    with open_figure(path, (7.0, 1.4 + 0.3 * len(heads))) as figure:
        axes = figure.subplots()
        left: npt.NDArray[np.float64] = np.zeros(len(heads))
        for kind in KINDS:
            for time in TIMES:
                if (time, kind) == ("own", "reward"):
                    continue
                width = np.array([100 * float(row[f"{time} {kind}"]) for row in heads.values()])
                look = {"color": SEGMENT_COLOURS[kind], "alpha": looks[time], "label": f"{time} {kind}"}
                axes.barh(range(len(heads)), width, left=left, height=0.7, linewidth=0, **look)
                left = left + width
        axes.set_yticks(range(len(heads)), list(heads))
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set(xlim=(0, 100), xlabel="weight of the rows that predict actions (%)", title=title)
        figure.legend(loc="outside right center", fontsize=8)
