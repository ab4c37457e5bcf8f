"""The loss, the schedule, the loop, and runs that are killed and go on."""

from __future__ import annotations

import csv
import itertools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import synthetic_trajectories, tiny_model
from torch import Tensor

from ttengine.checkpoint import load, read_tensors
from ttengine.config import DataConfig, ModelConfig, TrainConfig
from ttengine.data.trajectories import Trajectories
from ttengine.data.windows import Windows, tokenise
from ttengine.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DataWarning,
    MissingExtraError,
    NonFiniteError,
    ShapeError,
)
from ttengine.model import TrajectoryTransformer
from ttengine.optimisation import (
    decayed_names,
    learning_rate,
    make_optimiser,
    spread_over_bins,
    token_losses,
    token_weights,
)
from ttengine.training import planned_steps, train
from ttengine.training_log import COLUMNS
from ttengine.training_loop import TrainingLoop, first_bad_tensor
from ttengine.training_state import FORMAT, RunFolder

DATA = DataConfig(max_episode_steps=8, validation_share=0.2)
SHORT = TrainConfig(steps=12, batch_size=8, log_every=5, validate_every=6, save_every_s=1e9)


def data(lengths: tuple[int, ...] = (8, 8, 5, 8, 8), **about: Any) -> Trajectories:
    return synthetic_trajectories(lengths, terminal=[2] if len(lengths) > 2 else [], **about)


def run(
    out: Path,
    config: TrainConfig = SHORT,
    model: ModelConfig | None = None,
    trajectories: Trajectories | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Train without noise and return the weights."""
    options = {"progress": False, "tensorboard": False, "data": DATA, **options}
    return train(trajectories or data(), out, model or tiny_model(), config=config, **options).model.state_dict()


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# --- the loss ---


def test_weights_belong_to_the_target_not_to_the_input() -> None:
    config = TrainConfig(observation_weight=2.0, action_weight=5.0, reward_weight=3.0, value_weight=7.0)
    weights = token_weights(ModelConfig(2, 1, window=2), config)
    # targets: the second observation token, action, reward, value, then the next transition
    assert weights.loss.tolist() == [2, 5, 3, 7, 2, 2, 5, 3, 7]
    assert weights.segment.argmax(dim=1).tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3]


def test_the_loss_is_that_of_a_loop_written_from_its_definition() -> None:
    sizes, config = tiny_model(window=2), TrainConfig(action_weight=5.0, value_weight=0.5)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, sizes.max_tokens, sizes.n_bins + 1, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, sizes.n_bins + 1, (3, sizes.max_tokens), generator=generator)
    trained = torch.rand(3, sizes.max_tokens, generator=generator) < 0.7
    weight_of, total = [1.0, 1.0, 5.0, 1.0, 0.5], 0.0
    segment_of, sums, counts = [0, 0, 1, 2, 3], [0.0] * 4, [0] * 4
    for b in range(3):
        for t in range(sizes.max_tokens):
            column = (t + 1) % sizes.transition_dim
            normaliser = math.log(sum(math.exp(x) for x in logits[b, t].tolist()))
            entropy = normaliser - float(logits[b, t, targets[b, t]])
            if trained[b, t]:
                total += entropy * weight_of[column]
                sums[segment_of[column]] += entropy
                counts[segment_of[column]] += 1
    losses = token_losses(logits, targets, trained, token_weights(sizes, config))
    assert float(losses.total) == pytest.approx(total / (3 * sizes.max_tokens), rel=1e-6)  # masked positions count too
    assert losses.segments.tolist() == pytest.approx(sums, rel=1e-5)
    assert losses.counts.tolist() == counts


@pytest.mark.parametrize("goal", [False, True])
def test_gradients_of_the_loss_agree_with_finite_differences(goal: bool) -> None:
    torch.manual_seed(0)
    sizes = ModelConfig(1, 1, n_bins=3, layers=1, heads=1, width=4, window=2, dropout=0.0, goal=goal)
    model = TrajectoryTransformer(sizes).double()
    tokens = torch.randint(0, 4, (2, sizes.window * sizes.transition_dim))
    trained = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    trained[1, -2:] = False
    goals = torch.tensor([[1], [2]]) if goal else None
    weights = token_weights(sizes, TrainConfig())
    names, parameters = zip(*((n, p.detach().requires_grad_()) for n, p in model.named_parameters()), strict=True)
    parameters = tuple((0.5 * torch.randn_like(p)).requires_grad_() for p in parameters)  # zeros would hide terms

    def loss(*values: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (tokens[:, :-1], goals))
        return token_losses(logits, tokens[:, 1:], trained, weights).total

    assert torch.autograd.gradcheck(loss, parameters, fast_mode=True)


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
def test_one_batch_is_learned_by_heart(positions: Any) -> None:
    torch.manual_seed(0)
    sizes = tiny_model(positions=positions, dropout=0.0, width=32)
    trajectories = data((6, 6))
    tokens = tokenise(trajectories, DATA, sizes.n_bins)[1]
    batch = Windows.of(tokens, trajectories.episode_ends, sizes, 1000).gather(np.array([0, 5]), np.zeros(2))
    model, config = TrajectoryTransformer(sizes), TrainConfig(action_weight=1.0)
    optimiser, weights = make_optimiser(model, config), token_weights(sizes, config)
    for group in optimiser.param_groups:
        group["lr"] = 1e-2
    losses = []
    for _ in range(150):
        loss = token_losses(model(batch.inputs), batch.targets, batch.trained, weights).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1.5
    # the first transition of the two windows differs in its first token only, which nothing predicts
    assert losses[-1] < 0.02


# --- schedule and optimiser ---


def test_the_learning_rate_warms_up_then_falls_to_its_floor_and_never_climbs() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_share=0.1, final_learning_rate_share=0.2)
    rates = [learning_rate(step, 101, config) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.6)  # half of the way down
    assert rates[100] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert learning_rate(500, 101, config) == pytest.approx(0.2)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (2, 0.5), (3, 1.0)])
def test_the_learning_rate_of_the_shortest_runs_is_positive(steps: int, warmup: float) -> None:
    config = TrainConfig(warmup_share=warmup)
    assert all(0.0 < learning_rate(step, steps, config) <= config.learning_rate for step in range(steps))


def test_only_linear_and_head_weights_decay() -> None:
    model = TrajectoryTransformer(tiny_model(positions="absolute", goal=True))
    assert decayed_names(model) == {
        "blocks.0.qkv.weight",
        "blocks.0.projection.weight",
        "blocks.0.mlp_in.weight",
        "blocks.0.mlp_out.weight",
        "head.weight",
    }
    groups = make_optimiser(model, TrainConfig(weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_gradients_spread_over_neighbouring_bins_of_their_own_dimension() -> None:
    torch.manual_seed(0)
    sizes = tiny_model(goal=True, dropout=0.0)
    V, D = sizes.n_bins, sizes.width
    model = TrajectoryTransformer(sizes)
    goal, tokens = torch.zeros(2, sizes.observation_dim, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64)
    tokens[1, 5:] = V  # the episode is over

    def gradients() -> tuple[Tensor, Tensor, Tensor]:
        model.zero_grad()
        model(tokens, goal).square().sum().backward()
        named = dict(model.named_parameters())
        found = [named[f"{name}.weight"].grad for name in ("token_embedding", "goal_embedding", "head")]
        return tuple(gradient.clone() for gradient in found)  # type: ignore[union-attr, return-value]

    plain = gradients()
    spread_over_bins(model, 0.0)
    for before, after in zip(plain, gradients(), strict=True):
        assert torch.equal(before, after)
    spread_over_bins(model, 1.5)
    embedding, goals, head = gradients()
    near = [float(i == j) + math.exp(-0.5 * ((i - j) / 1.5) ** 2) for i in range(V) for j in range(V)]
    mix = torch.tensor(near).view(V, V)
    for column in range(sizes.transition_dim):
        rows = slice(column * V, (column + 1) * V)
        torch.testing.assert_close(embedding[rows], mix @ plain[0][rows])
        torch.testing.assert_close(head[column, :V], mix @ plain[2][column, :V])
        if column < sizes.observation_dim:
            torch.testing.assert_close(goals[rows], mix @ plain[1][rows])
    assert torch.equal(embedding[-1], plain[0][-1]) and plain[0][-1].any(), "the stop token has no neighbours"
    assert torch.equal(head[:, V], plain[2][:, V]) and plain[2][:, V].any()
    assert embedding.shape == (V * sizes.transition_dim + 1, D)
    assert (plain[0][2] == 0).all() and embedding[2].any(), "a bin that never came learns from its neighbour"


def test_epochs_are_the_papers() -> None:
    trajectories = data((8, 8))
    windows = Windows.of(np.zeros((16, 5), np.int16), trajectories.episode_ends, tiny_model(), 8)
    assert len(windows) == 14
    epochs = int(1e6 / 14 * 0.001)
    assert planned_steps(windows, TrainConfig(batch_size=4, epochs_reference=0.001)) == epochs * 4
    assert planned_steps(windows, TrainConfig(batch_size=4, epochs_reference=1e-9)) == 4, "at least one epoch"
    assert planned_steps(windows, TrainConfig(steps=3)) == 3


# --- a whole run ---


def test_a_run_leaves_a_checkpoint_metrics_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trajectories = data(name="made-up", metadata={"env_id": "None-v0"})
    config = TrainConfig(steps=60, batch_size=8, learning_rate=1e-2, log_every=25, validate_every=40)
    checkpoint = train(trajectories, tmp_path, tiny_model(), DATA, config)
    loaded = load(tmp_path / "model.safetensors")
    assert_same_weights(checkpoint.model.state_dict(), loaded.model.state_dict())
    assert not checkpoint.model.training
    assert (loaded.dataset, loaded.data) == ("made-up", DATA)
    assert loaded.provenance["dataset"] == {"env_id": "None-v0"}
    assert loaded.provenance["step"] == 60
    rows = rows_of(tmp_path)
    assert tuple(rows[0]) == COLUMNS
    assert [row["step"] for row in rows] == ["25", "40", "50", "60"]
    assert [bool(row["validation_loss"]) for row in rows] == [False, True, False, True]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[-1]["action"]) < math.log(9)
    # 4 episodes of training: 7 windows each, but for one of 4; 14 input tokens a window
    epochs, rest = divmod(60, 4)
    windows = loaded.provenance["training_windows"]
    assert int(rows[-1]["tokens"]) == (epochs * windows + rest * 8) * 14
    assert float(rows[-1]["loss"]) == pytest.approx(loaded.provenance["metrics"]["loss"], rel=1e-5)
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1
    printed = capsys.readouterr().out
    assert "made-up: 37 transitions in 5 episodes" in printed and "step 60/60" in printed
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors",
        "resume.safetensors",
        "metrics.csv",
        "tensorboard",
    }


def test_a_run_without_a_model_config_takes_the_datas_dims(tmp_path: Path) -> None:
    checkpoint = train(
        data((4, 4)),
        tmp_path,
        data=DATA,
        config=TrainConfig(steps=1, batch_size=2),
        progress=False,
        tensorboard=False,
    )
    assert checkpoint.model.config == ModelConfig(2, 1)
    assert checkpoint.model.config.positions == "rotary"


def test_training_on_one_episode_says_that_nothing_validates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, trajectories=data((8,)), progress=True)
    assert "no validation" in capsys.readouterr().out
    assert all(row["validation_loss"] == "" for row in rows_of(tmp_path))


def test_doubtful_data_warn_before_training(tmp_path: Path) -> None:
    with pytest.warns(DataWarning, match="set max_episode_steps=8"):
        run(tmp_path, data=DataConfig(max_episode_steps=1000))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    before = run(tmp_path)
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert_same_weights(run(tmp_path), before)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp
    (tmp_path / "model.safetensors").unlink()  # killed between the last resume file and the last model file
    assert_same_weights(run(tmp_path), before)


def test_starting_over_forgets_the_old_run(tmp_path: Path) -> None:
    first = run(tmp_path)
    second = run(tmp_path, TrainConfig(steps=3, batch_size=8, seed=1), resume=False)
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert [row["step"] for row in rows_of(tmp_path)] == ["3"]


# --- killed and resumed ---


class Killed(Exception):
    """Stands for a kill where a test needs it at an exact step."""


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    taken = TrainingLoop._step

    def counted(self: TrainingLoop) -> Tensor:
        if self.progress.step == step:
            raise Killed
        return taken(self)

    monkeypatch.setattr(TrainingLoop, "_step", counted)


@pytest.mark.parametrize(
    ("precision", "model"),
    [
        ("no", {}),
        ("no", {"goal": True}),
        ("no", {"positions": "absolute"}),
        ("bf16", {}),
        ("fp16", {}),
    ],
)
def test_a_run_resumed_within_an_epoch_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, model: dict[str, Any]
) -> None:
    config = TrainConfig(
        steps=11, batch_size=8, log_every=4, validate_every=5, save_every_s=1e9, save_every=3, precision=precision
    )
    whole = run(tmp_path / "whole", config, tiny_model(**model))
    with monkeypatch.context() as patch:
        stop_after(patch, 8)  # saved after step 6; the row of step 8 is written and must not stay
        with pytest.raises(Killed):
            run(tmp_path / "cut", config, tiny_model(**model))
        assert [row["step"] for row in rows_of(tmp_path / "cut")] == ["4", "5", "8"]
    assert_same_weights(run(tmp_path / "cut", config, tiny_model(**model)), whole)
    timeless = [
        [{name: cell for name, cell in row.items() if name != "tokens_per_s"} for row in rows_of(tmp_path / part)]
        for part in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]


def test_a_batch_computed_in_parts_is_learned_alike(tmp_path: Path) -> None:
    model = tiny_model(dropout=0.0, goal=True)
    config = TrainConfig(steps=12, batch_size=8, log_every=5, validate_every=6, micro_batch=3)
    whole, parts = run(tmp_path / "whole", model=model), run(tmp_path / "parts", config, model)
    for name, weight in parts.items():
        torch.testing.assert_close(weight, whole[name], rtol=0.0, atol=1e-5)
    for left, right in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts"), strict=True):
        for name in COLUMNS:
            if name != "tokens_per_s" and left[name]:
                assert float(right[name]) == pytest.approx(float(left[name]), rel=1e-4), (name, left["step"])


def test_saving_more_often_changes_no_weight(tmp_path: Path) -> None:
    often = TrainConfig(steps=12, batch_size=8, log_every=1, validate_every=2, save_every_s=0.0)
    assert_same_weights(run(tmp_path / "often", often), run(tmp_path / "once"))


def kill_config() -> TrainConfig:
    return TrainConfig(steps=120, batch_size=8, log_every=7, validate_every=40, save_every_s=1e9, save_every=2)


def train_in_a_process(out: str) -> None:
    torch.set_num_threads(1)
    run(Path(out), kill_config())


def assert_files_are_whole(out: Path) -> int:
    """Check every file of a run that was just killed; return the step that a continuation starts from."""
    folder = RunFolder(out)
    if folder.metrics.exists():
        content = folder.metrics.read_text()
        assert content.endswith("\n")
        assert all(len(line.split(",")) == len(COLUMNS) for line in content.splitlines())
    if folder.model.exists():
        load(folder.model)
    return int(read_tensors(folder.resume, FORMAT)[1]["step"]) if folder.resume.exists() else 0


def test_a_run_killed_at_random_moments_ends_with_the_weights_of_one_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ttengine.training", "accelerate", "torch._dynamo"])
    began = time.monotonic()
    whole = context.Process(target=train_in_a_process, args=(str(tmp_path / "whole"),))
    whole.start()
    whole.join()
    assert whole.exitcode == 0
    wall_s = load(tmp_path / "whole" / "model.safetensors").provenance["wall_s"]
    rng, out = np.random.default_rng(), tmp_path / "cut"
    resumed_from, kills = [], 0
    while kills < 5 and time.monotonic() - began < 120:
        process = context.Process(target=train_in_a_process, args=(str(out),))
        process.start()
        before = resumed_from[-1] if resumed_from else 0
        while process.is_alive() and _saved_step(out) <= before:  # progress first, so that the run ends one day
            time.sleep(0.002)
        process.join(rng.uniform(0.0, wall_s / 8))
        if process.is_alive():
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            resumed_from.append(assert_files_are_whole(out))
        else:
            break
    assert kills >= 3 and resumed_from[-1] < kill_config().steps
    assert resumed_from == sorted(set(resumed_from)) and resumed_from[0] > 0
    last = context.Process(target=train_in_a_process, args=(str(out),))
    last.start()
    last.join()
    assert last.exitcode == 0
    left, right = (load(tmp_path / part / "model.safetensors").model.state_dict() for part in ("whole", "cut"))
    assert_same_weights(left, right)
    steps = [int(row["step"]) for row in rows_of(out)]
    assert steps == sorted({*range(7, 121, 7), *range(40, 121, 40)})
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "resume.safetensors", "metrics.csv"}


def _saved_step(out: Path) -> int:
    path = RunFolder(out).resume
    return int(read_tensors(path, FORMAT)[1]["step"]) if path.exists() else 0


def test_what_a_killed_write_left_is_cleared(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / ".model.safetensors.123.part").write_bytes(b"half")
    run(tmp_path)
    assert not list(tmp_path.glob(".*"))


# --- what may not be resumed ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"config": TrainConfig(steps=12, batch_size=7)}, ConfigError, "training.batch_size = 8, now it is 7"),
        ({"model": tiny_model(width=8)}, ConfigError, "model.width = 16, now it is 8"),
        ({"data": DataConfig(0.9)}, ConfigError, "data.discount = 0.99, now it is 0.9"),
        ({"trajectories": data((8, 8, 5, 8, 7))}, DataError, "observations .37, 2. -> .36, 2."),
        ({"trajectories": data(seed=1)}, DataError, "another dataset"),
    ],
)
def test_another_config_or_dataset_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    run(tmp_path)
    with pytest.warns() if "data" in change else _nothing(), pytest.raises(error, match=message):
        run(tmp_path, **change)


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def test_how_often_a_run_reports_and_saves_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Killed):
            run(tmp_path / "cut", TrainConfig(steps=12, batch_size=8, save_every=3))
    again = TrainConfig(steps=12, batch_size=8, log_every=1, validate_every=3, save_every=1, save_every_s=1.0)
    assert_same_weights(run(tmp_path / "cut", again), whole)
    assert [int(row["step"]) for row in rows_of(tmp_path / "cut")] == [7, 8, 9, 10, 11, 12]


def test_a_model_without_a_resume_file_is_not_trained_over(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "resume.safetensors").unlink()
    with pytest.raises(ConfigError, match="would replace that model"):
        run(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "a model file"])
def test_a_damaged_resume_file_is_refused(tmp_path: Path, damage: str) -> None:
    run(tmp_path)
    path = tmp_path / "resume.safetensors"
    content = {
        "truncated": path.read_bytes()[:-100],
        "empty": b"",
        "foreign": b"\x80\x04\x95 a pickle, say",
        "a model file": (tmp_path / "model.safetensors").read_bytes(),
    }[damage]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"resume\.safetensors"):
        run(tmp_path)


# --- bad input and bad numbers ---


def test_a_model_of_other_dims_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="expects 3 observation and 1 action dims, made-up has 2 and 1"):
        run(tmp_path, model=ModelConfig(3, 1), trajectories=data(name="made-up"))
    assert not list(tmp_path.iterdir())


def test_metadata_that_no_file_can_hold_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="metadata must be JSON values"):
        run(tmp_path, trajectories=data(metadata={"made": object()}))


def test_a_missing_accelerate_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ttengine\[train\]'"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_names_the_step_and_the_tensor_and_keeps_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = TrainingLoop._step

    def poisoned(self: TrainingLoop) -> Tensor:
        if self.progress.step == 7:
            with torch.no_grad():
                self.model.blocks[0].mlp_in.bias[3] = float("nan")
        return taken(self)

    monkeypatch.setattr(TrainingLoop, "_step", poisoned)
    config = TrainConfig(steps=12, batch_size=8, save_every=3)
    with pytest.raises(
        NonFiniteError, match=r"in step 8 of 12; .* the weight blocks\.0\.mlp_in\.bias; .* holds step 6"
    ):
        run(tmp_path, config)
    assert assert_files_are_whole(tmp_path) == 6
    assert all(bool(torch.isfinite(weight).all()) for weight in load(tmp_path / "model.safetensors").model.parameters())


def test_the_first_bad_tensor_is_found_wherever_it_arises() -> None:
    torch.manual_seed(0)
    sizes = tiny_model(dropout=0.0)
    trajectories = data((8, 8))
    tokens = tokenise(trajectories, DATA, sizes.n_bins)[1]
    batch = Windows.of(tokens, trajectories.episode_ends, sizes, 1000).gather(np.array([0, 5]), np.zeros(2))
    weights = token_weights(sizes, TrainConfig())

    def blame(break_it: Callable[[TrajectoryTransformer], object]) -> str | None:
        model = TrajectoryTransformer(sizes)
        break_it(model)
        return first_bad_tensor(model, batch, weights)

    def overflowing(model: TrajectoryTransformer) -> None:
        with torch.no_grad():
            model.blocks[0].mlp_out.weight.fill_(3e38)
            model.blocks[0].mlp_in.bias.fill_(100.0)

    def breaking_backwards(model: TrajectoryTransformer) -> None:
        model.head.weight.register_hook(lambda gradient: gradient * float("inf"))

    assert blame(lambda model: None) is None
    assert blame(overflowing) == "the output of blocks.0.mlp_out"
    assert blame(breaking_backwards) == "the gradient of head.weight"


# --- two processes ---

TWO_PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from test_training import run, two_process_run
run(**two_process_run({out!r}))
"""


def two_process_run(out: str) -> dict[str, Any]:
    # 33 windows in batches of 8: the last batch of each epoch has one window, so one process gets none
    config = TrainConfig(
        steps=12,
        batch_size=8,
        learning_rate=5e-3,
        log_every=2,
        validate_every=5,
        save_every=4,
        warmup_share=0.5,
        micro_batch=3,
    )
    model = tiny_model(dropout=0.0, goal=True)
    prepared = {"trajectories": data((12, 12, 12, 12)), "data": DataConfig(max_episode_steps=12, validation_share=0.2)}
    return {"out": Path(out), "config": config, "model": model, **prepared}


def test_two_processes_with_half_the_batch_each_learn_as_one_does(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    weights = run(**two_process_run(str(alone)))
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES.format(tests=str(Path(__file__).parent), out=str(together)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load(together / "model.safetensors").provenance["processes"] == 2
    assert load(together / "model.safetensors").provenance["training_windows"] == 33
    one, two = rows_of(alone), rows_of(together)
    assert [row["step"] for row in one] == [row["step"] for row in two] == ["2", "4", "5", "6", "8", "10", "12"]
    for left, right in zip(one, two, strict=True):
        for name in COLUMNS:
            if name != "tokens_per_s" and left[name]:
                assert float(right[name]) == pytest.approx(float(left[name]), rel=2e-4), (name, left["step"])
    for name, weight in load(together / "model.safetensors").model.state_dict().items():
        # weights moved by some 2e-2; the keys' bias has a gradient of rounding noise, which Adam scales up
        torch.testing.assert_close(weight, weights[name], rtol=0.0, atol=1e-4)
