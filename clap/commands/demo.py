"""`python -m clap demo --checkpoint PATH --folder FOLDER`: a page on this machine that searches and labels sounds."""

import argparse
import contextlib
import importlib.util
import os
import signal
import socket
import tempfile
import threading
from pathlib import Path

from clap.commands import inputs
from clap.sound_index.sound_index import SoundIndex

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap demo`."""
    inputs.add_checkpoint_arguments(parser, required=False)
    sounds = parser.add_mutually_exclusive_group()
    sounds.add_argument("--index", metavar="DIR", help="index of `python -m clap index` to search")
    sounds.add_argument("--folder", metavar="FOLDER", help="folder of recordings to search; it is indexed first")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=7860, help="0 chooses a free one (default: %(default)s)")
    parser.add_argument(
        "--share",
        choices=("no", "yes"),
        default="no",
        help="yes: publish the page on the internet through Gradio's servers (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo requires gradio, which is not installed; run: pip install gradio")
    port = find_port(args.host, args.port)
    index = None if args.index is None else SoundIndex.open(args.index)
    if args.folder is not None:
        if not Path(args.folder).is_dir():
            raise FileNotFoundError(f"--folder {args.folder} is not a folder; give a folder of recordings")
        inputs.find_files([args.folder])
    if args.checkpoint is None:
        if index is None:
            raise ValueError("no checkpoint; give --checkpoint, or --index, whose model is then used")
        args.checkpoint = index.record.checkpoint
    inputs.check_checkpoint(args.checkpoint)
    clap = inputs.load_embedder(args).clap
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files are removed
    with tempfile.TemporaryDirectory(prefix="clap-demo-") as folder:
        os.environ |= make_environment(Path(folder))
        from clap.demo.serve import serve_demo  # imports gradio, which reads the environment, so after all checks

        sounds = {"index": index, "recordings": args.folder, "folder": Path(folder)}
        listening = {"host": args.host, "port": port, "share": args.share == "yes"}
        with serve_demo(clap, args.checkpoint, **sounds, **listening) as address:
            print(f"{address}  (Ctrl-C ends it)", flush=True)
            if args.host not in LOCAL_HOSTS:
                print(f"--host {args.host}: whoever reaches this machine can search these sounds and upload files")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


def make_environment(folder: Path) -> dict[str, str]:
    """Environment variables of gradio: uploads in a folder, no telemetry, no proxy for requests to this machine."""
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), *LOCAL_HOSTS]))
    return {
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "NO_PROXY": direct,
        "no_proxy": direct,
    }


def find_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        OSError: it cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} is not a port; give 1 to 65535, or 0 for a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        reason = f"cannot listen on {host}, port {port}: {error.strerror}"
        raise OSError(f"{reason}; give another --port or --host") from None
