"""A small folder of yamls, with the groups and keys that the tests of clap/config override."""

from pathlib import Path

SWEEPER = Path(__file__).parents[1] / "conf" / "hydra" / "sweeper" / "optuna.yaml"
YAMLS = {
    "config": """
        defaults:
          - _self_
          - audio_encoder: tiny
          - dataset: tones
          - optimizer: adam
          - evaluation: [retrieval]
          - experiment: null
        seed: 0
        embed_dim: 8
        freeze: []
        resume: null
        note: null
        run_dir: ${hydra:runtime.output_dir}
        trainer:
          max_epochs: 1
          max_steps: null
          precision: fp32
        tracking:
          experiment: clap
        hydra:
          output_subdir: null
    """,
    "hydra/sweeper/optuna": SWEEPER.read_text(),
    "audio_encoder/tiny": "width: ${embed_dim}\ndepths: [2, 2]\npretrained: false\nspec_augment: {time_mask: 1}",
    "audio_encoder/large": "width: 64\npretrained: false\nspec_augment: null",
    "dataset/tones": "root: data\nmax_clips: null",
    "dataset/clips": "root: ???   # folder of recordings\nmax_clips: null",
    "dataset/_loader": "batch_size: 1",
    "optimizer/adam": "lr: 1e-3\nbetas: [0.9, 0.999]",
    "optimizer/sgd": "lr: 0.1\nmomentum: 0.9",
    "evaluation/retrieval": "# @package evaluation.retrieval\nk: 10",
    "evaluation/zero_shot": "# @package evaluation.zero_shot\ntemplates: [a]",
    "experiment/debug": "# @package _global_\ntrainer: {max_steps: 2}",
    "experiment/study": """
        # @package _global_
        hydra:
          mode: MULTIRUN
          sweeper:
            params:
              seed: 0,1
              optimizer: adam,sgd
    """,
    "experiment/misspelt_study": """
        # @package _global_
        hydra: {mode: MULTIRUN, sweeper: {params: {sed: "0,1"}}}
    """,
}


def write_yamls(folder: Path) -> Path:
    """Write the yamls to folder/conf, without their common indent."""
    for name, text in YAMLS.items():
        file = folder / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        file.write_text("\n".join(line[indent:] for line in lines) + "\n")
    return folder / "conf"
