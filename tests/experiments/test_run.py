"""Runs of experiments: arms fail alone, what is measured is kept, another run's folder is refused, a page shows all."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ttengine import cli
from ttengine.errors import ConfigError, MissingExtraError
from ttengine.experiments import EXPERIMENTS, ablations, baselines, imitation, load_experiment, offline_rl
from ttengine.experiments.report import Report, Table, write_page, write_report
from ttengine.experiments.run import Arm, Run, read_rows

PIXEL = bytes.fromhex("89504e470d0a1a0a")


@dataclass(frozen=True)
class Settings:
    episodes: int = 2


def test_an_arm_that_fails_leaves_the_others_and_is_tried_again(tmp_path: Path) -> None:
    calls: list[str] = []
    broken = True

    def good() -> list[dict[str, str | float]]:
        calls.append("good")
        return [{"seed": 3, "return": 1.25, "note": "a,b"}, {"seed": 4, "return": -1e-9}]

    def bad() -> list[dict[str, str | float]]:
        calls.append("bad")
        if broken:
            raise ZeroDivisionError("no steps")
        return [{"seed": 5, "return": 7.0}]

    run = Run(tmp_path, "made-up", Settings())
    found = run.measure([Arm("bad", bad), Arm("good", good)])
    assert found == {"good": [{"seed": 3, "return": 1.25, "note": "a,b"}, {"seed": 4, "return": -1e-9}]}
    assert run.missing == {"bad": "ZeroDivisionError: no steps"}
    assert "ZeroDivisionError" in (tmp_path / "arms" / "bad.txt").read_text()
    broken = False
    again = Run(tmp_path, "made-up", Settings())
    assert again.measure([Arm("bad", bad), Arm("good", good)])["bad"] == [{"seed": 5, "return": 7.0}]
    assert not again.missing and not (tmp_path / "arms" / "bad.txt").exists()
    assert calls == ["bad", "good", "bad"]
    assert [row["arm"] for row in read_rows(tmp_path / "results.csv")] == ["bad", "good", "good"]


def test_a_folder_of_another_run_is_refused_until_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path, "made-up", Settings()).measure([Arm("one", lambda: [{"return": 1.0}])])
    with pytest.raises(ConfigError, match="other config: episodes is 2 there, 3 now"):
        Run(tmp_path, "made-up", Settings(3))
    with pytest.raises(ConfigError, match="other experiment: made-up there, else now"):
        Run(tmp_path, "else", Settings())
    monkeypatch.setattr("ttengine.experiments.run.versions", lambda: {"ttengine": "9.9"})
    with pytest.raises(ConfigError, match=r"other versions: .* there, 9\.9 now"):
        Run(tmp_path, "made-up", Settings())
    (tmp_path / "models" / "old").mkdir(parents=True)
    fresh = Run(tmp_path, "made-up", Settings(3), fresh=True)
    assert not (tmp_path / "models").exists()
    assert fresh.measure([Arm("one", lambda: [{"return": 2.0}])])["one"] == [{"return": 2.0}]


def test_a_page_shows_runs_side_by_side_and_loads_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = Run(tmp_path / name, "made-up", Settings())
        run.missing["arm <1>"] = "it broke"
        (run.out / "p.png").write_bytes(PIXEL)
        table = Table("Returns", ["method", "return"], [[f"TT {name} <&>", "12 +- 3"]])
        write_report(run, Report(f"Experiment {name}", "Said.", [table], ["p.png"], {"TT wins": name == "a"}))
    page = write_page([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html").read_text()
    for part in (
        "TT a &lt;&amp;&gt;",
        "TT b &lt;&amp;&gt;",
        "12 +- 3",
        "arm &lt;1&gt;",
        "episodes: 2",
        "does not hold",
    ):
        assert part in page
    assert page.count("<section>") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "| TT a <&> | 12 +- 3 |" in (tmp_path / "a" / "table.md").read_text()
    assert cli.main(["report", str(tmp_path / "missing"), "--out", str(tmp_path / "c.html")]) == cli.WRONG_INPUT


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_small_and_a_full_version(name: str) -> None:
    config = load_experiment(name).Config
    assert config() != config.full()
    assert config.__doc__ and not config.__doc__.startswith("Config(")


def test_a_baseline_whose_library_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps --requirement requirements/baselines\.txt"):
        baselines.require_d3rlpy()


def test_unknown_names_are_refused_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="bodies: cat unknown; there are hopper"):
        offline_rl.Config(bodies=("cat",))
    assert cli.main(["experiment", "nothing", "--out", str(tmp_path / "x")]) == cli.WRONG_INPUT
    assert "there are imitation" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


TINY = ["--transitions", "1500", "--episodes", "1", "--recipe.steps", "3", "--recipe.batch-size", "4",
        "--recipe.width", "16", "--recipe.layers", "1"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "arms"),
    [
        ("imitation", ["--bodies", "hopper", "--cloning-steps", "5"], ["demonstrator", "TT 0", "BC 0"]),
        (
            "offline_rl",
            ["--bodies", "hopper", "--tiers", "medium-replay", "--baseline-steps", "5", "--plan.horizon", "2"],
            ["data", "TT quantile 0", "BC 0", "IQL 0", "DT 0"],
        ),
        (
            "ablations",
            ["--horizons", "1", "--beam-widths", "4", "--plan.horizon", "2"],
            ["as is, seed 0", "H = 1, seed 0", "window context, seed 0", "uniform bins, seed 0"],
        ),
    ],
)
def test_an_experiment_runs_from_data_to_page(
    tmp_path: Path, name: str, settings: list[str], arms: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("d3rlpy")
    out = tmp_path / name
    assert cli.main(["experiment", name, "--out", str(out), *TINY, *settings]) == cli.DONE
    measured = {str(row["arm"]) for row in read_rows(out / "results.csv")}
    assert all(any(each.endswith(arm) for each in measured) for arm in arms), measured
    page = (out / "report.html").read_text()
    assert "data:image/png" in page and "missing:" not in page
    began = {path: path.stat().st_mtime_ns for path in (out / "arms").iterdir()}
    assert cli.main(["experiment", name, "--out", str(out), *TINY, *settings]) == cli.DONE  # nothing is done again
    assert {path: path.stat().st_mtime_ns for path in (out / "arms").iterdir()} == began
    assert "report.html" in capsys.readouterr().out


def test_claims_follow_from_the_numbers(tmp_path: Path) -> None:
    def rows(*returns: float) -> list[dict[str, str | float]]:
        return [{"return": each, "latency_s": 0.01} for each in returns]

    run = Run(tmp_path / "i", "imitation", imitation.Config(bodies=("hopper",)))
    found = {"hopper demonstrator": rows(90, 110), "hopper TT 0": rows(90, 98), "hopper BC 0": rows(50)}
    report = imitation._report(run, imitation.Config(bodies=("hopper",)), found)
    assert report.checks == {"hopper: at least 95 % of the demonstrator's return": False}
    assert report.tables[0].rows[1][2:4] == ["94 +- 4", "94 %"]
    config = offline_rl.Config(bodies=("hopper",), tiers=("medium-replay",))
    found = {"hopper medium-replay data": rows(100), "hopper medium-replay TT quantile 0": rows(150, 250),
             "hopper medium-replay BC 0": rows(201)}  # fmt: skip
    report = offline_rl._report(run, config, found)
    assert list(report.checks.values()) == [True, False]
    report = ablations._report(run, ablations.Config(), {"logged data": rows(1), "as is, seed 0": rows(5, 7)})
    assert report.tables[0].rows[1] == ["as is", "6 +- 1", "10.0 ms", "2"]
