"""The Transformer: sizes, masks, heads, caching, positions."""

from __future__ import annotations

import pytest
import torch

from ttengine.config import ModelConfig
from ttengine.errors import ConfigError, ShapeError
from ttengine.model import Head, KeyValueCache, TrajectoryTransformer, attention_mask

VARIANTS = [(p, g) for p in ("absolute", "rotary") for g in (False, True)]


def make_model(positions: str, goal: bool, N: int = 3, M: int = 2, **settings: object) -> TrajectoryTransformer:
    torch.manual_seed(0)
    settings = {"n_bins": 6, "layers": 3, "heads": 2, "width": 16, "window": 4, "context": 2} | settings
    model = TrajectoryTransformer(ModelConfig(N, M, positions=positions, goal=goal, **settings))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def make_tokens(model: TrajectoryTransformer, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, 7, (rows, length), generator=generator)
    goal = torch.randint(0, 6, (rows, 3), generator=generator) if model.config.goal else None
    return tokens, goal


@pytest.mark.parametrize(("N", "M", "parameters"), [(11, 3, 1_225_472), (17, 6, 1_468_544), (27, 8, 1_792_640)])
def test_released_sizes_have_the_published_number_of_parameters(N: int, M: int, parameters: int) -> None:
    model = TrajectoryTransformer(ModelConfig(N, M, positions="absolute"))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_state_dict_has_the_documented_names_and_shapes() -> None:
    model = TrajectoryTransformer(
        ModelConfig(3, 2, n_bins=6, layers=1, heads=2, width=16, positions="absolute", goal=True)
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {
        "token_embedding.weight": (6 * 7 + 1, 16),
        "position_embedding": (10 * 7 - 1, 16),
        "goal_embedding.weight": (6 * 3, 16),
        "blocks.0.attention_norm.weight": (16,),
        "blocks.0.attention_norm.bias": (16,),
        "blocks.0.qkv.weight": (48, 16),
        "blocks.0.qkv.bias": (48,),
        "blocks.0.projection.weight": (16, 16),
        "blocks.0.projection.bias": (16,),
        "blocks.0.mlp_norm.weight": (16,),
        "blocks.0.mlp_norm.bias": (16,),
        "blocks.0.mlp_in.weight": (64, 16),
        "blocks.0.mlp_in.bias": (64,),
        "blocks.0.mlp_out.weight": (16, 64),
        "blocks.0.mlp_out.bias": (16,),
        "final_norm.weight": (16,),
        "final_norm.bias": (16,),
        "head.weight": (7, 7, 16),
    }


def test_initialisation_is_the_released_one() -> None:
    torch.manual_seed(0)
    model = TrajectoryTransformer(ModelConfig(11, 3, positions="absolute"))
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[0].mlp_in.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[0].qkv.bias.abs().max() == 0
    assert model.position_embedding.abs().max() == 0
    # Kaiming-uniform with a = sqrt(5) on [V+1, D]: bound 1 / sqrt(D)
    assert model.head.weight.abs().max().item() == pytest.approx(128**-0.5, rel=0.01)


@pytest.mark.parametrize(("positions", "goal"), VARIANTS)
def test_a_prediction_depends_on_what_its_token_may_see_and_on_nothing_else(positions: str, goal: bool) -> None:
    """By gradients: the logits after each token, with respect to every token's embedding and the goal's."""
    model = make_model(positions, goal, layers=1)
    K, T = 7, 4 * 7 - 1
    tokens, goal_tokens = make_tokens(model, 1, T)
    embedded: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.token_embedding.register_forward_hook(keep)
    if goal:
        model.goal_embedding.register_forward_hook(keep)
    logits = model(tokens, goal_tokens)
    weight = torch.randn(logits.shape[-1], dtype=torch.float64)
    for i in range(T):
        gradients = torch.autograd.grad(logits[0, i] @ weight, embedded, retain_graph=True)
        felt = [bool(g != 0) for g in gradients[0][0].abs().sum(dim=-1)]
        for j in range(T):
            expected = j <= i and (j % K != K - 1 or j == i)  # its own embedding arrives through the residual stream
            if positions == "rotary":
                expected = expected and i // K - j // K <= 2
            assert felt[j] == expected, (i, j)
        if goal:
            assert bool((gradients[1][0].abs().sum(dim=-1) > 0).all()), "every goal token is seen from everywhere"


@pytest.mark.parametrize(("positions", "goal"), VARIANTS)
@pytest.mark.parametrize("split", [[1] * 27, [3, 7, 7, 7, 3], [26, 1]])
def test_decoding_through_the_cache_equals_one_forward(positions: str, goal: bool, split: list[int]) -> None:
    model = make_model(positions, goal)
    tokens, goal_tokens = make_tokens(model, 2, 27)
    whole = model(tokens, goal_tokens)
    cache = KeyValueCache(model.config, 2, 0, whole)
    done, parts = 0, []
    for length in split:
        hidden = model.hidden(tokens[:, done : done + length], goal_tokens, cache)
        parts.append(model.head(hidden, done))
        done += length
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("goal", [False, True])
def test_rotary_predictions_do_not_depend_on_where_the_sequence_starts(goal: bool) -> None:
    """Shifting everything by whole transitions changes nothing but what has slid out of sight."""
    model = make_model("rotary", goal, layers=1)
    tokens, goal_tokens = make_tokens(model, 1, 6 * 7)
    shifted = model(tokens[:, 14:], goal_tokens)
    torch.testing.assert_close(model(tokens, goal_tokens)[:, 28:], shifted[:, 14:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("goal", [False, True])
def test_forgetting_what_is_out_of_sight_changes_nothing(goal: bool) -> None:
    model = make_model("rotary", goal)
    tokens, goal_tokens = make_tokens(model, 2, 6 * 7)
    whole = model(tokens, goal_tokens)
    cache = KeyValueCache(model.config, 2, 0, whole)
    model.hidden(tokens[:, :35], goal_tokens, cache)
    cache.forget(3 * 7)  # the next token is in transition 5 and sees transitions 3 to 5
    hidden = model.hidden(tokens[:, 35:], goal_tokens, cache)
    torch.testing.assert_close(model.head(hidden, 35), whole[:, 35:], rtol=1e-10, atol=1e-10)


def test_the_head_uses_the_weights_of_each_position() -> None:
    config = ModelConfig(3, 2, n_bins=6, layers=1, heads=2, width=16)
    head = Head(config).double()
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    for first, length in [(0, 27), (0, 30), (4, 20), (5, 1), (6, 3), (3, 7)]:
        logits = head(x[:, :length], first)
        for t in range(length):
            expected = x[:, t] @ head.weight[(first + t) % 7].T
            torch.testing.assert_close(logits[:, t], expected)


def test_the_stop_token_has_one_embedding_whatever_its_position() -> None:
    model = make_model("rotary", goal=False)
    stop = torch.full((1, 7), 6)
    rows = model.token_embedding(torch.full((1, 7), 6 * 7))
    torch.testing.assert_close(model._embed(stop, 0) - model.column_embedding, rows)
    bins = model._embed(torch.zeros(1, 7, dtype=torch.int64), 0) - model.column_embedding
    assert len(bins[0].unique(dim=0)) == 7


def test_the_goal_shifts_the_value_mask() -> None:
    config = ModelConfig(3, 2, n_bins=6, layers=1, heads=2, width=16, positions="absolute", goal=True)
    visible = attention_mask(config, 0, 14, torch.device("cpu"))
    assert visible.shape == (17, 17)
    masked = [j for j in range(17) if not visible[16, j]]
    assert masked == [3 + 6, 3 + 13]


def test_dropout_acts_in_training_only_and_keeps_the_mean() -> None:
    model = make_model("absolute", goal=False, dropout=0.3)
    tokens, _ = make_tokens(model, 1, 27)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_wrong_input_is_refused() -> None:
    model = make_model("absolute", goal=False)
    tokens, _ = make_tokens(model, 1, 28)
    with pytest.raises(ShapeError, match="28 tokens came, the model has 27 positions"):
        model(tokens)
    with pytest.raises(ShapeError, match="trained without goals"):
        model(tokens[:, :5], torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="trained with goals"):
        make_model("absolute", goal=True)(tokens[:, :5])
    with pytest.raises(ShapeError, match="goal has shape"):
        make_model("absolute", goal=True)(tokens[:, :5], torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="not a multiple of heads"):
        ModelConfig(3, 2, width=10, heads=4)
    with pytest.raises(ConfigError, match="multiple of 4"):
        ModelConfig(3, 2, width=12, heads=2, positions="rotary")
