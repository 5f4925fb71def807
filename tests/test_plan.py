"""The plan of a study: its jobs, their estimated hours and their downloads, without a network."""

import json
import socket
from pathlib import Path

import pytest
from conftest import CONF, TINY
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from clap.__main__ import main
from clap.config import read_config
from clap.model import Clap
from clap.study import estimate
from clap.study.downloads import build_on_meta, list_missing, open_train_set, read_initial
from clap.study.estimate import count_steps
from clap.study.job import Job
from clap.study.plan import estimate_job, make_plan
from clap.study.result_config import read_result_config
from clap.training.cost import forward_flops, step_flops

STUDY = "encoder_ablation"
SMALL_DATA = ("dataset.num_train=8", "dataset.num_val=4", "dataset.num_test=4", "dataset.batch_size=4")


def compose_config(*overrides: str) -> dict:
    """Compose like clap.config.compose, without its checks."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", list(overrides)))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def sixty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every estimate by one minute."""
    monkeypatch.setattr(estimate, "estimate", lambda config, ready: (60.0, "guessed"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def write_finished(folder: Path, *overrides: str, seconds: float, study: str = STUDY) -> None:
    """Write a finished job of the study to its sweep folder."""
    config = read_result_config(OmegaConf.create(compose_config(f"experiment={study}", *overrides)))
    folder.mkdir(parents=True)
    Job(folder, folder.name, "finished", config=config, value=0.5).write()
    (folder / "cost.json").write_text(json.dumps({"seconds": seconds}))


def test_every_cell_and_seed_is_a_job(sixty_seconds: None, tmp_path: Path):
    found = make_plan(STUDY, [f"hydra.sweep.dir={tmp_path}", "seed=0,1"])
    names = [job.name for job in found.jobs]
    assert len(set(names)) == 8 and names[0] == "cnn14_nano-roberta_nano-s0"
    assert "0 of 8 jobs" in found.markdown() and "remaining: 0.13 h" in found.markdown()
    assert f"budget: {found.study.minutes / 60:.2f} h" in found.markdown()


def test_overrides_choose_levels_and_add_factors(sixty_seconds: None, tmp_path: Path):
    lines = ["audio_encoder=htsat_nano", "text_encoder=gpt2_nano", "optimizer.lr=1e-3,1e-4", "seed=7"]
    names = [job.name for job in make_plan(STUDY, [f"hydra.sweep.dir={tmp_path}", *lines]).jobs]
    assert names == ["htsat_nano-gpt2_nano-lr=0.001-s7", "htsat_nano-gpt2_nano-lr=0.0001-s7"]


def test_too_few_seeds_for_intervals_are_reported(sixty_seconds: None, tmp_path: Path):
    lines = [f"hydra.sweep.dir={tmp_path}", "audio_encoder=htsat_nano", "text_encoder=gpt2_nano"]
    assert "seeds: 0, 1; fewer than 3 give no intervals" in make_plan(STUDY, [*lines, "seed=0,1"]).markdown()
    assert "fewer" not in make_plan(STUDY, [*lines, "seed=0,1,2"]).markdown()


def test_finished_jobs_estimate_the_others_of_their_cell(sixty_seconds: None, tmp_path: Path):
    cell = ("audio_encoder=cnn14_nano", "text_encoder=roberta_nano")
    for seed, seconds in enumerate((100.0, 140.0)):
        write_finished(tmp_path / str(seed), *cell, f"seed={seed}", seconds=seconds)
    found = make_plan(STUDY, [f"hydra.sweep.dir={tmp_path}", *cell, "seed=0,1,2,3"])
    assert [(job.seconds, job.finished) for job in found.jobs] == [(0, True), (0, True), (120, False), (120, False)]
    assert found.jobs[2].basis == "measured: 2 finished jobs of this cell"
    assert "finished: 2 of 4 jobs" in found.markdown()


def test_finished_job_of_another_config_does_not_count(sixty_seconds: None, tmp_path: Path):
    cell = ("audio_encoder=cnn14_nano", "text_encoder=roberta_nano")
    write_finished(tmp_path / "0", *cell, "seed=0", seconds=100.0)
    found = make_plan(STUDY, [f"hydra.sweep.dir={tmp_path}", *cell, "seed=0", "trainer.max_epochs=2"])
    assert [(job.seconds, job.basis) for job in found.jobs] == [(60.0, "guessed")]


def test_folds_are_jobs_of_a_cell(sixty_seconds: None, tmp_path: Path):
    study = "esc10_folds"
    lines = [f"dataset.root={tmp_path}", "audio_encoder=htsat_nano"]
    for fold in (1, 2):
        write_finished(tmp_path / str(fold), *lines, f"dataset.test_fold={fold}", seconds=60.0 * fold, study=study)
    found = make_plan(study, [f"hydra.sweep.dir={tmp_path}", *lines])
    assert [job.name for job in found.jobs] == [f"htsat_nano-fold{fold}" for fold in range(1, 5)]
    assert [(job.seconds, job.finished) for job in found.jobs] == [(0, True), (0, True), (90, False), (90, False)]
    assert "no intervals" not in found.markdown()
    one = make_plan(study, [f"hydra.sweep.dir={tmp_path}", *lines, "dataset.test_fold=2,3"])
    assert [job.finished for job in one.jobs] == [True, False] and "no intervals" in one.markdown()


def test_missing_root_is_reported_and_the_job_is_listed(tmp_path: Path):
    lines = ["dataset=esc50", "audio_encoder=cnn14_nano", "text_encoder=gpt2_nano", "seed=0"]
    found = make_plan(STUDY, [f"hydra.sweep.dir={tmp_path}", *lines])
    assert [(job.seconds, job.basis) for job in found.jobs] == [(None, "unknown: dataset.root is missing")]
    assert list(found.missing) == ["dataset ESC50: dataset.root is missing"]
    assert "1 job of unknown duration" in found.markdown()


def test_absent_root_is_reported(tmp_path: Path):
    config = compose_config("dataset=csv", f"dataset.root={tmp_path / 'absent'}", "dataset.metadata=clips.csv")
    (item,) = list_missing(config)
    assert item.startswith(f"dataset CSV: root={tmp_path / 'absent'} is not a folder")


def test_small_model_is_timed(no_network: None, tmp_path: Path):
    found = make_plan(STUDY, [f"hydra.sweep.dir={tmp_path}", *TINY, *SMALL_DATA, "seed=0,1"])
    assert [job.basis.split(":")[0] for job in found.jobs] == ["timed", "timed"]
    assert 0 < found.jobs[0].seconds == found.jobs[1].seconds and not found.missing


def test_large_model_is_counted_without_network_or_weights(
    no_network: None, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(estimate, "measure_once", lambda device, **options: 1e12)
    lines = [*SMALL_DATA, "audio_encoder=htsat_tiny", "text_encoder=roberta", "fusion=iaff", "seed=0"]
    found = make_plan(STUDY, [f"hydra.sweep.dir={tmp_path}", *lines])
    assert list(found.missing) == ["text encoder roberta-base, about 496 MB"]
    assert [job.basis.split(":")[0] for job in found.jobs] == ["counted"]
    assert not hub_cache.exists()


def test_cached_text_encoder_is_not_downloaded(hub_cache: Path):
    config = compose_config("text_encoder=gpt2")
    assert list(list_missing(config)) == ["text encoder gpt2, about 498 MB"]
    snapshot = hub_cache / "models--gpt2" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    (hub_cache / "models--gpt2" / "refs").mkdir()
    (hub_cache / "models--gpt2" / "refs" / "main").write_text("0")
    assert not list(list_missing(config))


def test_local_text_encoder_is_not_downloaded(hub_cache: Path, tmp_path: Path):
    lines = ["text_encoder=gpt2", f"text_encoder.pretrained={tmp_path}", f"text_encoder.tokenizer={tmp_path}"]
    assert not list(list_missing(compose_config(*lines)))


def test_random_weights_still_need_their_tokenizer(hub_cache: Path):
    config = compose_config("text_encoder=gpt2", "text_encoder.pretrained=false")
    assert list(list_missing(config)) == ["tokenizer gpt2, a few MB"]


def test_text_encoder_of_unknown_size_is_listed(hub_cache: Path):
    config = compose_config("text_encoder=auto", "text_encoder.name=someone/small")
    assert list(list_missing(config)) == ["text encoder someone/small, of unknown size"]


def test_backbone_weights_are_listed(hub_cache: Path):
    config = compose_config("audio_encoder=timm", "audio_encoder.pretrained=true")
    assert list(list_missing(config)) == ["audio encoder timm/convnext_atto.d2_in1k, about 13 MB"]


def test_audio_towers_are_listed(hub_cache: Path, tmp_path: Path):
    named = compose_config("audio_encoder=htsat_tiny", "audio_encoder.pretrained=true")
    assert list(list_missing(named)) == ["audio encoder laion/clap-htsat-unfused, about 110 MB"]
    named["audio_encoder"]["pretrained"] = "someone/clap/weights.pt"
    assert list(list_missing(named)) == ["audio encoder someone/clap/weights.pt, about 110 MB"]
    (tmp_path / "tower.pt").touch()
    named["audio_encoder"]["pretrained"] = str(tmp_path / "tower.pt")
    assert not list(list_missing(named))


def test_validation_step_counts_as_a_third_of_a_training_step():
    config = compose_config(*SMALL_DATA, "trainer.max_epochs=3", "trainer.eval_every=2")
    assert count_steps(config, open_train_set(config)) == pytest.approx(3 * 2 + 2 * 1 / 3)
    config["trainer"]["max_steps"] = 2
    assert count_steps(config, open_train_set(config)) == pytest.approx(2 + 1 / 3)


def count_step(*overrides: str) -> int:
    config = compose_config(*TINY, "dataset.batch_size=2", *overrides)
    settings = config["dataset"]
    return step_flops(
        build_on_meta(config), batch_size=settings["batch_size"], duration=settings.get("max_duration", 0)
    )


def test_counted_step_is_three_times_forward():
    forward = 2 * forward_flops(Clap.from_config(compose_config(*TINY)))
    assert count_step() == pytest.approx(
        3 * forward, rel=0.2
    )  # only one includes the spectrogram, only the other the backward pass


def test_frozen_part_costs_less():
    assert count_step("freeze=[audio_encoder]") < 0.7 * count_step()


def test_longer_clips_are_counted_with_every_fusion():
    steps = {
        fusion: count_step(f"fusion={fusion}", "dataset.max_duration=4.0")
        for fusion in ("none", "mean", "daf", "iaff", "channel_map")
    }
    assert steps["none"] < steps["daf"] < steps["iaff"] < steps["mean"]  # four windows
    assert steps["none"] < steps["channel_map"]


def test_counted_steps_are_divided_by_the_measured_speed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "SMALL", 0)
    monkeypatch.setattr(estimate, "measure_once", lambda device, **options: 2.0)
    config = compose_config(*TINY, *SMALL_DATA, "trainer.max_epochs=1")
    seconds, basis = estimate.estimate(config, ready=True)
    assert seconds == pytest.approx(
        (2 + 1 / 3) * count_step(*SMALL_DATA, "dataset.batch_size=4") / (2 * estimate.STEP_SHARE)
    )
    assert basis.startswith("counted: 2 steps")
    config["trainer"] |= {"micro_batch_size": 2, "activation_checkpointing": True}
    assert estimate.estimate(config, ready=True)[0] == pytest.approx(seconds * 5 / 3)  # encoded twice more


def test_init_from_sets_the_model(tiny_clap, tmp_path: Path):
    clap = tiny_clap("embed_dim=24")
    clap.save(tmp_path)
    config = compose_config(f"init_from={tmp_path}", "text_encoder=roberta_nano")
    found = read_initial(config, ["text_encoder=roberta_nano"])
    assert found["embed_dim"] == 24 and found["audio_encoder"]["embed_dim"] == 16
    assert found["text_encoder"] == config["text_encoder"]


def test_published_init_from_is_listed_as_a_download():
    missing, seconds, _ = estimate_job(compose_config("init_from=laion/clap-htsat-unfused"), [], [])
    assert missing == ["init_from: laion/clap-htsat-unfused, to be downloaded"] and seconds is None


def test_absent_init_from_is_reported(tmp_path: Path):
    config = compose_config(f"init_from={tmp_path / 'absent'}")
    missing, seconds, basis = estimate_job(config, [], [])
    assert missing[0].startswith(f"init_from: {tmp_path / 'absent'}") and seconds is None and "unknown" in basis


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["debug"], "'debug' is not a study; studies in conf/experiment: "),
        ([STUDY, "trainer.max_epoch=2"], "did you mean trainer.max_epochs"),
        ([STUDY, "seed"], "not an override; write key=value"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str):
    with pytest.raises(SystemExit, match=message) as caught:
        main(["plan", *arguments])
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)


def test_plan_is_printed(sixty_seconds: None, tmp_path: Path, capsys: pytest.CaptureFixture):
    main(["plan", STUDY, f"hydra.sweep.dir={tmp_path}", "audio_encoder=htsat_nano", "text_encoder=gpt2_nano"])
    assert "| htsat_nano-gpt2_nano-s0 | 1.0     | guessed  |" in capsys.readouterr().out
