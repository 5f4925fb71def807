"""Serves the page with Gradio, as a context: the server stops at its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio

from clap.demo.answers import Answers
from clap.demo.page import build_page
from clap.model import Clap
from clap.sound_index.build import build_index
from clap.sound_index.record import check_weights
from clap.sound_index.sound_index import SoundIndex
from clap.sound_index.weights import digest_weights

HERE = Path(__file__).parent
FONT = ["system-ui", "sans-serif"]  # of the system; none is downloaded
MAX_UPLOAD = "4gb"  # two hours in stereo at 48 kHz are 1.4 GB in 16 bits, 2.8 GB as floats


@contextmanager
def serve_demo(
    clap: Clap,
    checkpoint: str,
    *,
    index: SoundIndex | None,
    recordings: str | None,
    folder: Path,
    host: str,
    port: int,
    share: bool,
) -> Iterator[str]:
    """Serve the page of a model; yields its address.

    Args:
        checkpoint: where `clap` comes from.
        index: sounds to search; None to index the folder `recordings`, or to search nothing if that is None too.
        folder: for temporary files.

    Raises:
        ValueError: the index is of another model, no recording can be read, or the model has no text encoder.
    """
    clap.get_text_embeddings(["a sound"])  # a tokenizer error appears before the page
    if index is not None:
        check_weights(index.record, digest_weights(clap), checkpoint, advice="give the --checkpoint of the index")
    elif recordings is not None:
        build_index(recordings, folder / "index", clap, checkpoint=checkpoint)
        index = SoundIndex.open(folder / "index")
    shown = folder / "shown"
    shown.mkdir()
    sounds = (
        "no sounds to search"
        if index is None
        else f"{index.num_files:,} recordings in {Path(index.record.folder).name}"
    )
    with serve_page(
        build_page(Answers(clap, index, shown), title=checkpoint, sounds=sounds),
        shown,
        host=host,
        port=port,
        share=share,
    ) as address:
        yield address


@contextmanager
def serve_page(page: gradio.Blocks, folder: Path, *, host: str, port: int, share: bool) -> Iterator[str]:
    """Serve a page from threads; yields its address.

    Only `folder` and uploads are served. Options are passed explicitly, so that no environment variable of Gradio
    publishes the page or a file.
    """
    _, address, public = page.launch(
        server_name=f"[{host.strip('[]')}]" if ":" in host else host,  # brackets around IPv6
        server_port=port,
        share=share,
        allowed_paths=[str(folder)],
        max_file_size=MAX_UPLOAD,
        css_paths=[HERE / "page.css"],
        head=f"<script>{(HERE / 'page.js').read_text()}</script>",
        theme=gradio.themes.Soft(primary_hue="blue", secondary_hue="blue", font=FONT, font_mono=["monospace"]),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        inline=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    try:
        yield public or address
    finally:
        page.close(verbose=False)
