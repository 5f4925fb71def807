"""Wrong variants of the preprocessing and the layers change the outputs of a family by far more than the tolerance."""

from collections.abc import Callable
from pathlib import Path

import published_models as models
import pytest
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from clap import fusion
from clap.published import layouts

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = {"rtol": 0, "atol": 1e-5}  # on unit-norm embeddings


@pytest.fixture(scope="module")
def outputs() -> dict[str, Tensor]:
    return load_file(models.OUTPUTS)


def change_frontend(family: str, **values: object) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setitem(layouts.FRONTENDS, family, layouts.FRONTENDS[family] | values)


def change(where: object, name: str, value: object) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(where, name, value)


def change_text(family: str, kind: str, **values: object) -> Callable[[pytest.MonkeyPatch], None]:
    texts = layouts.TEXTS
    return lambda monkeypatch: monkeypatch.setitem(texts, (family, kind), texts[family, kind] | values)


def shrink_antialiased(log_mel: Tensor, num_frames: int) -> Tensor:
    size = (num_frames, log_mel.shape[1])
    return F.interpolate(log_mel[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]


def change_iaff(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = fusion.IAFF.forward

    def forward_as_in_the_paper(self: fusion.IAFF, x: Tensor, residual: Tensor) -> Tensor:
        self.shared_global_att = False
        return forward(self, x, residual)

    monkeypatch.setattr(fusion.IAFF, "forward", forward_as_in_the_paper)


def stretch_without_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    interpolate = F.interpolate

    def wrong(x: Tensor, size: object, mode: str, **options: object) -> Tensor:
        options |= {"align_corners": False} if mode == "bicubic" else {}
        return interpolate(x, size, mode=mode, **options)

    monkeypatch.setattr(F, "interpolate", wrong)


VARIANTS = {
    "antialiased global view": ("laion_htsat_aff_roberta", change(fusion, "shrink", shrink_antialiased)),
    "slaney scale of a fused model": ("laion_htsat_aff_roberta", change_frontend("laion fused", mel_scale="slaney")),
    "htk scale of an unfused model": ("laion_htsat_roberta", change_frontend("laion", mel_scale="htk")),
    "second global branch in iAFF": ("laion_htsat_iaff_roberta", change_iaff),
    "second global branch in Custom-CLAP": ("customclap_htsat_iaff_gpt2", change_iaff),
    "epsilon of HF in LAION's RoBERTa": (
        "laion_htsat_roberta",
        change(layouts, "NORM_EPS", {"roberta": 1e-12, "bert": 1e-12}),
    ),
    "epsilon of RoBERTa in BERT": ("msclap_2022", change(layouts, "NORM_EPS", {"roberta": 1e-5, "bert": 1e-5})),
    "no 16 bits": ("laion_htsat_roberta", change_frontend("laion", int16=False)),
    "no 16 bits, fused": ("laion_htsat_aff_roberta", change_frontend("laion fused", int16=False)),
    "16 bits in MS-CLAP": ("msclap_2023", change_frontend("msclap htsat", int16=True)),
    "repeats cut in LAION": ("laion_pann_roberta", change_frontend("laion", fill="repeat")),
    "only complete repeats in MS-CLAP": ("msclap_2022", change_frontend("msclap cnn14", fill="repeat_pad")),
    "first token for LAION's pooler": ("laion_htsat_roberta", change_text("laion", "roberta", pooling="first")),
    "last token in spite of an id 0": ("msclap_2023", change_text("msclap", "gpt2", pooling="last")),
    "bicubic without corners": ("msclap_2023", stretch_without_corners),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_wrong_variant_changes_the_outputs(
    tmp_path: Path, outputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    name, apply_variant = VARIANTS[variant]
    apply_variant(monkeypatch)
    values = models.embed(models.load_clap(tmp_path, name))
    change = max((value - outputs[f"{name}/{kind}"]).abs().max().item() for kind, value in values.items())
    assert change > 2 * TOLERANCE["atol"], change


def test_wrong_filter_bank_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_frontend("msclap htsat", _target_="clap.audio.LogMelSpectrogram")(monkeypatch)
    with pytest.raises(ValueError, match="its filter bank .* is not that of 44100 Hz"):
        models.load_clap(tmp_path, "msclap_2023")
