"""What a run writes while it trains: run.log, metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from ._files import RunFolderError, write_file


def read_history(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line torn by a kill is left out, a missing file is an empty history.

    Raises:
        ValueError: another line is no JSON; names the file and the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    history = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("expected a JSON object")
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number}: {error}") from error
        history.append(record)
    return history


class History:
    """metrics.jsonl (flushed line by line), and TensorBoard where it is installed.

    Args:
        folder: the run folder.
        resume_step: keep only what was recorded up to this step.
        tensorboard: write event files too.
    """

    def __init__(self, folder: Path, resume_step: int, tensorboard: bool, log: RunLog) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        kept = [record for record in read_history(self.path) if record.get("step", 0) <= resume_step]
        write_file(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._stream = open(self.path, "a", encoding="utf-8")
        self._board = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=resume_step + 1)
            except ImportError as error:
                log.info(f"no TensorBoard files ({error}): pip install tensorboard, or --log.no-tensorboard")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record with "step", "split" and numbers."""
        # JSON has no NaN
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        try:
            self._stream.write(json.dumps(clean) + "\n")
            self._stream.flush()
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self._board is not None:
            for name, value in record.items():
                if name not in ("step", "split"):
                    self._board.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def close(self) -> None:
        """Flush and close all files."""
        self._stream.close()
        if self._board is not None:
            self._board.close()


class RunLog:
    """Messages with a time stamp in run.log, and on standard error beside the progress bar."""

    def __init__(self, path: Path | None, echo: bool = True) -> None:
        self.path = path
        self.echo = echo
        self._stream = None
        if path is not None:
            try:
                self._stream = open(path, "a", encoding="utf-8")
            except OSError as error:
                raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error

    def info(self, message: str, echo: bool | None = None) -> None:
        """Write one line; ``echo=False`` only to the file."""
        if self._stream is not None:
            try:
                self._stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
                self._stream.flush()
            except OSError as error:
                raise RunFolderError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self.echo if echo is None else echo:
            from tqdm import tqdm

            tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        """Close run.log."""
        if self._stream is not None:
            self._stream.close()


class Progress:
    """Loss, images/s and time left, as a bar on a terminal or a line every few seconds elsewhere."""

    def __init__(self, style: str, start: int, steps: int, log: RunLog, max_seconds: float = 0.0) -> None:
        if style == "auto":
            style = "bar" if sys.stderr.isatty() else "lines"
        self.start, self.steps, self.log, self.max_seconds = start, steps, log, max_seconds
        self._began = time.perf_counter()
        self._next_line = self._began + 5
        self._style = style
        self._bar = None
        if style == "bar":
            from tqdm import tqdm

            layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(total=steps, initial=start, bar_format=layout, desc="training", mininterval=0.2)

    def update(self, step: int, loss: float, images_per_s: float, seconds_used: float) -> None:
        """Show that ``step`` updates are done; ``seconds_used`` counts against the time limit."""
        if self._style == "none":
            return
        now = time.perf_counter()
        if self._bar is None and (now < self._next_line and step < self.steps):
            return
        # the whole time since the start counts, validation and checkpoints included
        left = (now - self._began) / max(step - self.start, 1) * (self.steps - step)
        if self.max_seconds:
            left = min(left, max(self.max_seconds - seconds_used, 0))
        text = f"loss {loss:.6g}  {images_per_s:,.0f} images/s  {duration(left)} left"
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(0)
            return
        self._next_line = now + 10
        self.log.info(f"step {step}/{self.steps}  {text}", echo=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    seconds = round(seconds)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
