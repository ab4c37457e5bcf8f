"""Runs of experiments: arms fail alone, what is measured is kept, another run's folder is refused, a page shows all."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from ttengine import cli
from ttengine.config import PlanConfig, Sampling
from ttengine.errors import ConfigError, MissingExtraError
from ttengine.experiments import EXPERIMENTS, ablations, baselines, imitation, load_experiment, offline_rl
from ttengine.experiments.report import Report, Table, write_page, write_report
from ttengine.experiments.run import Arm, Processes, Rows, Run, read_rows
from ttengine.stages import write_json

PIXEL = bytes.fromhex("89504e470d0a1a0a")


@dataclass(frozen=True)
class Settings:
    episodes: int = 2
    transitions: int = 100

    AFTERWARDS: ClassVar[tuple[str, ...]] = ("episodes",)


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


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("other", [None, {"name": "of another program"}])
def test_a_users_folder_is_not_taken_for_a_run_and_cleared(tmp_path: Path, fresh: bool, other: dict[str, str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.hdf5").write_text("precious")
    if other:
        write_json(tmp_path / "run.json", other)
    with pytest.raises(ConfigError, match="take another folder"):
        Run(tmp_path, "made-up", Settings(), fresh=fresh)
    assert (tmp_path / "data" / "mine.hdf5").read_text() == "precious"


def test_a_run_begins_with_the_models_of_another_that_differs_only_in_what_comes_after_training(tmp_path: Path) -> None:
    old = Run(tmp_path / "old", "made-up", Settings())
    for name in ("data", "models"):
        (old.out / name).mkdir()
        (old.out / name / "made").write_text(name)
    old.measure([Arm("one", lambda: rows(1))])
    new = Run(tmp_path / "new", "made-up", Settings(episodes=5), models_of=old.out)
    assert [(new.out / name / "made").read_text() for name in ("data", "models")] == ["data", "models"]
    assert new.measure([Arm("one", lambda: rows(2))])["one"] == rows(2)  # what was measured there is not taken over
    again = Run(new.out, "made-up", Settings(episodes=5))  # goes on without being told again, and remembers
    assert f"models_of: {old.out}" in write_report(again, Report("Made up", "Said.", [])).read_text()
    with pytest.raises(ConfigError, match="old holds a run with other config: transitions is 100 there, 7 now"):
        Run(tmp_path / "other", "made-up", Settings(transitions=7), models_of=old.out)
    with pytest.raises(ConfigError, match=r"other experiment: made-up there, else now; take another folder$"):
        Run(tmp_path / "other", "else", Settings(), models_of=old.out)
    with pytest.raises(ConfigError, match="nowhere holds no run whose models could be used"):
        Run(tmp_path / "other", "made-up", Settings(), models_of=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is the run's own folder"):
        Run(old.out, "made-up", Settings(episodes=9), fresh=True, models_of=old.out)
    assert (old.out / "models" / "made").is_file() and not (tmp_path / "other").exists()


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
    assert set(config.AFTERWARDS) <= {field.name for field in dataclasses.fields(config)}
    assert config.__doc__ and not config.__doc__.startswith("Config(")


def test_a_baseline_whose_library_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps --requirement requirements/baselines\.txt"):
        baselines.require_d3rlpy()


def test_unknown_names_are_refused_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="bodies: cat unknown; there are hopper"):
        imitation.Config(bodies=("cat",))
    with pytest.raises(ConfigError, match="baselines: TD3 unknown; there are BC"):
        offline_rl.Config(baselines=("TD3",))
    assert cli.main(["experiment", "nothing", "--out", str(tmp_path / "x")]) == cli.WRONG_INPUT
    assert "there are imitation" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


TINY = ["--jobs", "1", "--transitions", "1500", "--episodes", "1", "--recipe.steps", "3", "--recipe.batch-size", "4",
        "--recipe.width", "16", "--recipe.layers", "1"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "arms"),
    [
        ("imitation", ["--bodies", "hopper", "--cloning-steps", "5"], ["demonstrator", "TT 0", "BC 0"]),
        (
            "offline_rl",
            [
                "--datasets",
                "hopper-medium-expert",
                "--baselines",
                "BC",
                "IQL",
                "DT",
                "--baseline-steps",
                "5",
                "--plan.horizon",
                "2",
            ],
            ["data", "expert", "TT quantile 0", "BC 0", "IQL 0", "DT 0"],
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


def test_arms_are_measured_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("d3rlpy")
    command = ["experiment", "imitation", "--out", str(tmp_path), "--bodies", "hopper", "--cloning-steps", "5", *TINY]
    command[command.index("--jobs") + 1] = "2"
    assert cli.main(command) == cli.DONE
    assert {str(row["arm"]) for row in read_rows(tmp_path / "results.csv")} == {
        "hopper demonstrator", "hopper TT 0", "hopper BC 0",
    }  # fmt: skip
    logs = sorted((tmp_path / "arms").glob("*.log"))
    assert [log.stem for log in logs] == ["hopper BC 0", "hopper TT 0"]  # the demonstrator needs no process
    # an arm that was lost is measured again, by itself
    (tmp_path / "arms" / "hopper TT 0.csv").unlink()
    (tmp_path / "arms" / "hopper demonstrator.csv").unlink()
    assert cli.main([*command, "--arm", "hopper TT 0"]) == cli.DONE
    assert (tmp_path / "arms" / "hopper TT 0.csv").is_file()
    assert not (tmp_path / "arms" / "hopper demonstrator.csv").exists()
    capsys.readouterr()
    assert cli.main([*command, "--arm", "hopper"]) == cli.WRONG_INPUT
    assert "no arm hopper; there are hopper demonstrator" in capsys.readouterr().err
    assert cli.main([*command, "--out", str(tmp_path / "no"), "--arm", "hopper TT 0"]) == cli.WRONG_INPUT
    assert "holds no run" in capsys.readouterr().err


def test_what_a_process_dies_of_is_said(tmp_path: Path) -> None:
    script = tmp_path / "arm.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "names = sys.argv[2::2]\n"
        f"arms = Path({str(tmp_path)!r}) / 'run' / 'arms'\n"
        "for name in names:\n"
        "    if name == 'killed': os.kill(os.getpid(), 9)\n"
        "    if name == 'raised': (arms / 'raised.txt').write_text('ValueError: two is odd\\n\\nTraceback')\n"
        "    else: (arms / f'{name}.csv').write_text(f'threads\\n{os.environ[\"OMP_NUM_THREADS\"]}\\n')\n"
        "    print('said')\n"
    )
    processes = Processes([sys.executable, str(script)], 2)
    run = Run(tmp_path / "run", "made-up", Settings(), processes=processes)
    arms = [Arm("here", lambda: rows(1), quick=True)]
    arms += [Arm(name, lambda: rows(1 // 0), group=group) for name, group in
             (("good", "g"), ("too", "g"), ("killed", ""), ("raised", ""))]  # fmt: skip
    found = run.measure(arms)
    assert list(found) == ["here", "good", "too"]
    assert run.missing == {"killed": "its process ended with -9: arms/killed.log", "raised": "ValueError: two is odd"}
    assert (tmp_path / "run" / "arms" / "good.log").read_text() == "said\nsaid\n"  # one process for both
    assert not (tmp_path / "run" / "arms" / "too.log").exists()


def test_timed_arms_are_measured_one_after_the_other(tmp_path: Path) -> None:
    run = Run(tmp_path, "made-up", Settings(), processes=Processes(["false"], 2))
    assert run.measure([Arm("one", lambda: rows(1)), Arm("two", lambda: rows(2))], timed=True)["two"] == rows(2)


def rows(*returns: float) -> Rows:
    return [{"return": each, "latency_s": 0.01} for each in returns]


def test_claims_follow_from_the_numbers(tmp_path: Path) -> None:
    imitated = imitation.Config(bodies=("hopper",))
    run = Run(tmp_path / "i", "imitation", imitated)
    found = {"hopper demonstrator": rows(90, 110), "hopper TT 0": rows(90, 98), "hopper BC 0": rows(50)}
    report = imitation._report(run, imitated, found)
    assert report.checks == {"hopper: at least 95 % of the demonstrator's return": False}
    assert report.tables[0].rows[1][2:4] == ["94 +- 4", "94 %"]
    config = offline_rl.Config(
        datasets=("hopper-medium-replay", "hopper-medium-expert", "ant-medium-expert", "own.npz")
    )
    found = {"hopper-medium-replay data": rows(100), "hopper-medium-replay TT quantile 0": rows(150, 250),
             "hopper-medium-replay BC 0": rows(201), "hopper-medium-expert TT quantile 0": rows(94),
             "hopper-medium-expert expert": rows(90, 110), "ant-medium-expert TT quantile 0": rows(10),
             "ant-medium-expert expert": rows(90), "own TT quantile 0": rows(3)}  # fmt: skip
    report = offline_rl._report(run, config, found, {"hopper-medium-replay": "Hopper-v4", "own": "Pendulum-v1"})
    assert report.checks == {
        "hopper-medium-replay: above the data's mean": True,
        "hopper-medium-replay: above BC": False,
        "hopper-medium-expert: at least 95 % of the expert's mean return": False,
    }
    assert report.tables[0].rows[0][3] == "3.7 +- 0.0" and report.tables[0].rows[-1][3] == ""
    ablated = ablations.Config()
    found = {"hopper-medium-expert logged data": rows(1), "hopper-medium-expert as is, seed 0": rows(5, 7)}
    report = ablations._report(run, ablated, found)
    assert report.tables[0].rows[1] == ["as is", "6 +- 1", "10.0 ms", "2"]


def test_offline_rl_tries_the_actions_that_suit_a_recipe() -> None:
    names = ("hopper-medium-replay", "ant-medium-replay-tt", "ant-medium-replay-v2")
    config = offline_rl.Config(datasets=names)
    assert [config.plan_for(name).action for name in names] == [Sampling(cdf=0.6), Sampling(), Sampling(cdf=0.6)]
    assert config.plan_for("ant-medium-replay") == dataclasses.replace(config.plan, action=Sampling())
    assert offline_rl._tried(config) == (
        "without the tail of 60 % (hopper-medium-replay, ant-medium-replay-v2); of any bin (ant-medium-replay)"
    )
    noisy = dataclasses.replace(config, action_noise=0.1)  # the mean actions' data are others
    assert all(noisy.plan_for(name) == config.plan for name in names)
    own = PlanConfig(action=Sampling(k=3, temperature=0.5))
    chosen = offline_rl.Config(datasets=names, plan=own, actions="plan")
    assert all(chosen.plan_for(name) == own for name in names)
    assert offline_rl._tried(chosen).startswith("of the top 3, at temperature 0.5 (hopper-medium-replay, ")
    assert offline_rl.Config(plan=own).plan_for("hopper-medium-expert") == own
    with pytest.raises(ConfigError, match="and ant-medium-replay-tt would overrule it; add --actions plan"):
        offline_rl.Config(datasets=names, plan=own)


def test_reports_stand_without_the_arms_that_failed(tmp_path: Path) -> None:
    run = Run(tmp_path, "made-up", Settings())
    run.missing["hopper demonstrator"] = "it broke"
    report = imitation._report(run, imitation.Config(), {"hopper TT 0": rows(5)})
    assert report.tables[0].rows == [["hopper", "likelihood beam search", "5 +- 0", "", "1", "1"]] and not report.checks
    report = imitation._report(run, imitation.Config(), {"hopper demonstrator": rows(-9), "hopper TT 0": rows(-10)})
    assert report.tables[0].rows[1][2:4] == ["-10 +- 0", ""] and not report.checks
    report = ablations._report(run, ablations.Config(), {"hopper-medium-expert as is, seed 0": rows(5)})
    assert [row[0] for row in report.tables[0].rows] == ["as is"]
    without: dict[str, tuple[dict[str, str], ...]] = {
        "offline_rl": ({},),
        "dynamics": ({},),
        "imitation": (),
        "ablations": (),
        "attention": (),
    }
    for name, more in without.items():
        experiment = load_experiment(name)
        report = experiment._report(run, experiment.Config(), {}, *more)
        assert not report.checks and "missing: hopper demonstrator" in write_report(run, report).read_text()


def test_a_page_says_how_long_every_arm_took(tmp_path: Path) -> None:
    run = Run(tmp_path, "made-up", Settings())
    run.measure([Arm("one", lambda: rows(1)), Arm("bad", lambda: rows(1 // 0))])
    assert list(run.seconds) == ["one"]
    again = Run(tmp_path, "made-up", Settings())
    again.measure([Arm("one", lambda: rows(2))])
    again.seconds["two"] = 240.0
    page = write_report(again, Report("Made up", "Said.", [])).read_text()
    assert f"one: {run.seconds['one']:.1f} s\ntwo: 4.0 min\ntogether: 4.0 min" in page


def test_settings_that_were_refused_do_not_keep_a_folder(tmp_path: Path) -> None:
    Run(tmp_path, "made-up", Settings())
    assert Run(tmp_path, "made-up", Settings(3)).about["config"]["episodes"] == 3


def test_offline_rl_asks_for_its_library_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    for experiment in (offline_rl, imitation):
        config = experiment.Config()
        run = Run(tmp_path / experiment.__name__, "made-up", config)
        with pytest.raises(MissingExtraError, match="baselines are trained by d3rlpy"):
            experiment.run(run, config)
        assert not (run.out / "data").exists()
