"""The download of one corpus: index files, archives and clips cut from videos."""

import functools
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from clap.audio_formats import AUDIO_SUFFIXES
from clap.config.secrets import hide_secrets
from clap.corpus import Clip, Corpus
from clap.download.manifest import MANIFEST_NAME, Manifest, Status
from clap.download.remote import RemoteFile, Result
from clap.download.unpack import ArchiveError, join_parts, require_zip_program, unpack
from clap.download.videos import VideoError, cut_video
from clap.fetch import FetchError, fetch, matches_checksum
from clap.progress import progress_bar

SCRATCH = ".download"  # subfolder of the corpus for incomplete files
MAX_FAILURES_IN_A_ROW = 10  # temporary failures after which the server is assumed to be blocking us

Job = Callable[[], list[Status]]


class Download:
    """Downloads one corpus into its folder; see `download_corpus` for the arguments.

    Args:
        settings: `files` by name, see `RemoteFile`; `max_gigabytes` of a file as received, and of an archive when
            unpacked; for clips from videos, `videos` with address, cookies and pause, and the corpus's `version`.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: Mapping[str, Any],
        open_corpus: Callable[[Path, Mapping[str, Any]], Corpus],
        *,
        splits: Sequence[str],
        workers: int,
        again: bool,
    ) -> None:
        self.open_corpus = open_corpus
        self.name, self.folder, self.splits, self.workers, self.again = name, folder, list(splits), workers, again
        self.files = [RemoteFile(key, **remote) for key, remote in settings["files"].items()]
        self.videos, self.max_size = settings.get("videos"), 1e9 * settings["max_gigabytes"]
        self.options = {"version": settings["version"]} if "version" in settings else {}
        self.other_versions = tuple(
            f"{hide_secrets(text)}/" for name, text in settings.get("lists", {}).items() if name != settings["version"]
        )
        self.scratch, self.manifest = folder / SCRATCH, Manifest(folder)
        self.stop, self.failures = threading.Event(), []
        self.failures_in_a_row, self.count_lock = 0, threading.Lock()

    def read_corpus(self) -> Corpus:
        return self.open_corpus(self.folder, self.options)

    @property
    def selected_files(self) -> list[RemoteFile]:
        return [remote for remote in self.files if set(remote.splits) & set(self.splits)]

    def is_complete(self) -> bool:
        """Whether all files and clips of the requested splits are present."""
        try:
            clips = self.list_clips()
        except FileNotFoundError:
            return False
        files = [self.folder / remote.to for remote in self.selected_files if not remote.is_archive]
        return all(file.exists() for file in files) and all(self.manifest.is_intact(clip.path) for clip in clips)

    def fetch_files(self) -> None:
        """Fetch the index files, then the archives of the clips that are missing."""
        indexes = [remote for remote in self.selected_files if remote.index or not remote.is_archive]
        self.check_version(indexes)
        absent = [remote for remote in indexes if not self.has_index(remote)]
        self.run_jobs(
            [
                functools.partial(self.fetch_archive if remote.is_archive else self.fetch_index, remote)
                for remote in absent
            ]
        )
        self.check_indexes([remote for remote in absent if not remote.is_archive])
        audio = [
            remote
            for remote in self.selected_files
            if remote not in indexes and self.is_archive_needed(remote, has_separate_index=bool(indexes))
        ]
        self.run_jobs([functools.partial(self.fetch_archive, remote) for remote in audio])

    def has_index(self, remote: RemoteFile) -> bool:
        return self.find_missing_clips(remote) is not None if remote.is_archive else (self.folder / remote.to).exists()

    def check_version(self, indexes: Sequence[RemoteFile]) -> None:
        """Raise ValueError if an index in the folder belongs to another version of the corpus."""
        for remote in indexes:
            known = self.manifest[self.folder / remote.to]
            if known is not None and known.origin and known.origin.startswith(self.other_versions):
                raise ValueError(
                    f"{self.folder / remote.to} was downloaded from {known.origin}, which is another version than "
                    f"{self.options}; set another --root"
                )

    def fetch_index(self, remote: RemoteFile) -> list[Status]:
        downloaded, path = self.scratch / remote.key, self.folder / remote.to
        fetch(remote.address, downloaded, checksum=remote.checksum, max_size=self.max_size, stop=self.stop)
        downloaded.replace(path)
        return [self.make_status(path, "here", origin=remote.address, size=path.stat().st_size)]

    def check_indexes(self, fetched: Sequence[RemoteFile]) -> None:
        """Delete fetched files that are not a complete index, such as a login page or a truncated list."""
        for remote in fetched:
            path = self.folder / remote.to
            try:
                clips = self.list_clips(remote)
                if len(clips) < self.count_published_clips(remote) and not path.read_bytes().endswith(b"\n"):
                    raise ValueError(f"{path} has {len(clips)} clips and its last line is incomplete")
            except FileNotFoundError:  # another index of the split is missing; it is already reported
                pass
            except ValueError as error:
                if str(path) in str(error):
                    path.unlink()
                    self.failures.append(f"{remote.origin}: not an index of {self.name} ({error}); deleted")

    def count_published_clips(self, remote: RemoteFile) -> int:
        """Published number of clips of the requested splits that need a file, 0 where unknown."""
        return sum(self.read_corpus().counts.get(split) or 0 for split in self.splits if split in remote.splits)

    def list_clips(self, remote: RemoteFile | None = None) -> list[Clip]:
        """Clips of the requested splits, limited to the splits that need `remote` if given."""
        corpus = self.read_corpus()
        splits = [split for split in self.splits if remote is None or split in remote.splits]
        return [clip for split in splits for clip in corpus.clips(split)]

    def is_archive_needed(self, remote: RemoteFile, *, has_separate_index: bool) -> bool:
        """Whether clips of an archive are missing; without a list of clips, whether the archive holds the list."""
        absent = self.find_missing_clips(remote)
        return not has_separate_index if absent is None else bool(absent)

    def find_missing_clips(self, remote: RemoteFile) -> list[Clip] | None:
        """Clips of an archive that are missing from the folder; None if there is no index yet."""
        try:
            clips = self.list_clips(remote)
        except FileNotFoundError:
            return None
        held = [clip for clip in clips if clip.path.is_relative_to(self.folder / remote.to)]
        return [clip for clip in held if not self.is_present_or_gone(clip.path, remote.address)]

    def is_present_or_gone(self, path: Path, address: str) -> bool:
        """Whether a clip is present, or known to be permanently unavailable at this address."""
        known = self.manifest[path]
        is_gone = known is not None and known.status == "gone" and known.origin == hide_secrets(address)
        return self.manifest.is_intact(path) or (is_gone and not self.again)

    def fetch_archive(self, remote: RemoteFile) -> list[Status]:
        """Download and unpack an archive, which is deleted once all its files are in place."""
        if remote.parts:
            require_zip_program(remote.key)
        downloaded = []
        for address, name, checksum in remote.files():
            downloaded.append(self.scratch / name)
            fetch(address, downloaded[-1], checksum=checksum, max_size=self.max_size, stop=self.stop)
        joined, unpacked = (self.scratch / f"{remote.key}.{step}" for step in ("joined", "unpacked"))
        try:
            archive = join_parts(downloaded[-1], joined) if remote.parts else downloaded[-1]
            files = unpack(archive, unpacked, kind=remote.kind, max_size=self.max_size)
            check_contents(files, remote.contents or {})
            targets = {self.folder / remote.to / name: path for name, path in files.items()}
            targets = {target: path for target, path in targets.items() if not self.is_own_file(target)}
            absent = self.find_clips_not_in_archive(remote, targets)
        except ArchiveError as error:
            delete_paths([*downloaded, joined, unpacked])
            raise FetchError(f"{remote.origin}: {error}; the archive is deleted") from None
        for target, path in targets.items():
            if not self.must_keep(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        here = [self.make_status(path, "here", origin=remote.address, size=path.stat().st_size) for path in targets]
        gone = [self.make_status(path, "gone", origin=remote.address, reason=f"not in {remote.key}") for path in absent]
        delete_paths([*downloaded, joined, unpacked])
        return here + gone

    def find_clips_not_in_archive(self, remote: RemoteFile, targets: Mapping[Path, Path]) -> list[Path]:
        """Listed clips that are in neither the archive nor the folder.

        Raises:
            ArchiveError: the archive holds none of the listed clips.
        """
        try:
            paths = [clip.path for clip in self.list_clips(remote)]
        except FileNotFoundError:  # the index is in the archive
            return []
        held = [path for path in paths if path.is_relative_to(self.folder / remote.to)]
        if held and not any(path in targets for path in held):
            raise ArchiveError(f"holds none of its {len(held)} listed clips, such as {held[0].name}")
        return [path for path in held if path not in targets and not self.manifest.is_intact(path)]

    def is_own_file(self, path: Path) -> bool:
        """Whether a path is that of the manifest, the lock or a scratch file, which no archive may write."""
        return path.relative_to(self.folder).parts[0].startswith((MANIFEST_NAME, SCRATCH))

    def must_keep(self, path: Path) -> bool:
        """Whether an archive must not overwrite a file: an intact clip, or a list, which the user may have edited."""
        return self.manifest.is_intact(path) if path.suffix.lower() in AUDIO_SUFFIXES else path.exists()

    def make_status(self, path: Path, status: str, *, origin: str, **details: Any) -> Status:
        return Status(self.manifest.relative_path(path), status, origin=hide_secrets(origin), **details)

    def fetch_videos(self) -> None:
        """Cut the missing clips from their videos."""
        cookies = self.read_cookies()
        try:
            clips = [clip for clip in self.list_clips() if not self.manifest.is_intact(clip.path)]
        except FileNotFoundError:  # the index failed; it is already reported
            return
        cut = functools.partial(self.cut_clip, duration=self.read_corpus().max_duration, cookies=cookies)
        wanted = [
            clip
            for clip in clips
            if not self.is_present_or_gone(clip.path.with_suffix(".flac"), self.parse_video_source(clip)[0])
        ]
        self.run_jobs([functools.partial(cut, clip) for clip in wanted], unit="clip")

    def read_cookies(self) -> str | None:
        """The text of the cookies file; yt-dlp would write to the file itself."""
        path = self.videos["cookies"]
        if path is None:
            return None
        if not Path(path).is_file():
            raise FileNotFoundError(f"videos.cookies={path} does not exist; set it to a cookies file or null")
        text = Path(path).read_text(encoding="utf-8")
        if not text.startswith(("# HTTP Cookie File", "# Netscape HTTP Cookie File")):
            raise ValueError(
                f"videos.cookies={path} is not in Netscape format, whose first line is '# Netscape HTTP Cookie File'; "
                "export the cookies in that format"
            )
        return text

    def parse_video_source(self, clip: Clip) -> tuple[str, float]:
        """Address of the video that a clip is cut from, and the start of the clip in seconds."""
        video, _, start = clip.source.removeprefix("youtube:").rpartition("@")
        return self.videos["address"].replace("VIDEO", video), float(start)

    def cut_clip(self, clip: Clip, *, duration: float, cookies: str | None) -> list[Status]:
        """Cut the section of a video that `clip.source` names and write it as FLAC."""
        if self.stop.is_set():
            return []
        address, start = self.parse_video_source(clip)
        path = clip.path.with_suffix(".flac")
        try:
            found = cut_video(address, path, start=start, duration=duration, scratch=self.scratch, cookies=cookies)
        except VideoError as error:
            self.count_failure(error)
            return [self.make_status(path, "gone" if error.gone else "failed", origin=address, reason=str(error))]
        finally:
            self.stop.wait(self.videos["pause"])
        self.failures_in_a_row = 0
        short = f"{found:.1f} of {duration:g} s" if found < duration - 0.1 else None
        return [self.make_status(path, "here", origin=address, size=path.stat().st_size, reason=short)]

    def count_failure(self, error: VideoError) -> None:
        """Stop requesting videos after many failures in a row."""
        with self.count_lock:
            self.failures_in_a_row = 0 if error.gone else self.failures_in_a_row + 1
            if self.failures_in_a_row < MAX_FAILURES_IN_A_ROW or self.stop.is_set():
                return
            self.stop.set()
            self.failures.append(
                f"{self.failures_in_a_row} clips in a row failed, the last with: {error}; the remaining clips were not "
                "requested. Wait, set videos.cookies=FILE, or update yt-dlp (pip install -U 'yt-dlp[default]' deno)"
            )

    def run_jobs(self, jobs: Sequence[Job], *, unit: str = "file") -> None:
        """Run jobs in a thread pool and record each result when it is available."""
        if not jobs:
            return
        pool = ThreadPoolExecutor(self.workers)
        futures = [pool.submit(job) for job in jobs]
        try:
            for future in progress_bar(as_completed(futures), total=len(jobs), unit=unit, desc=self.name):
                self.record_result(future)
        except BaseException as error:
            self.stop.set()  # the pool would wait for an archive that is being unpacked
            pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
            raise
        pool.shutdown()

    def record_result(self, future: Future) -> None:
        """Store the statuses of a job; a failed job does not stop the others."""
        try:
            self.manifest.add(future.result())
        except FetchError as error:
            self.failures.append(str(error))

    def summarize(self) -> Result:
        """Count present and missing clips of each split."""
        result = Result(self.name, self.folder, failures=self.failures)
        num_failed = 0
        for split in self.splits:
            try:
                corpus = self.read_corpus()
                clips = corpus.clips(split)
            except FileNotFoundError:  # the index failed; it is already reported
                continue
            absent = [self.find_status(clip) for clip in clips if not self.manifest.is_intact(clip.path)]
            result.clips[split] = (len(clips) - len(absent), len(clips), corpus.counts.get(split))
            result.missing.update(known.reason if known else "not requested" for known in absent)
            num_failed += sum(known is not None and known.status == "failed" for known in absent)
        if num_failed and not self.stop.is_set():
            result.failures.append(f"{num_failed} clips failed temporarily; run the same command again to retry them")
        return result

    def remove_scratch(self) -> None:
        """Delete the scratch folder unless it holds partial files to resume from."""
        if self.scratch.is_dir() and not any(path.is_file() for path in self.scratch.iterdir()):
            shutil.rmtree(self.scratch)

    def find_status(self, clip: Clip) -> Status | None:
        """Why a missing clip is missing; None if it was never requested."""
        known = self.manifest[clip.path.with_suffix(".flac") if self.videos is not None else clip.path]
        return known if known is not None and known.status != "here" else None


def check_contents(files: Mapping[str, Path], checksums: Mapping[str, str]) -> None:
    """Compare files of an archive with their checksums.

    Raises:
        ArchiveError: a file is missing or different.
    """
    for name, checksum in checksums.items():
        if name not in files or not matches_checksum(files[name], checksum):
            raise ArchiveError(f"its {name} is not the published file, whose checksum is {checksum}")


def delete_paths(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
