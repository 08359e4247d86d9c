"""What set-up tells the person who waits: what it is about to do, how far it is, what it found out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

NOW_CHARS_MAX = 36


class SetupProgress(ABC):
    """Told by the steps; `SilentProgress` for tests and servers, `ConsoleProgress` for people."""

    @abstractmethod
    def start(self, doing: str) -> None:
        """A step begins; `doing` says what it will do, before it does it."""

    @abstractmethod
    def update(self, fraction: float | None, now: str = "") -> None:
        """How far the step is (0 to 1; None: unknown) and what it is at."""

    @abstractmethod
    def done(self) -> None:
        """The step that was started has ended well."""

    @abstractmethod
    def notice(self, text: str) -> None:
        """Something a person should know although nothing failed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None


class SilentProgress(SetupProgress):
    """Says nothing."""

    def start(self, doing: str) -> None: ...

    def update(self, fraction: float | None, now: str = "") -> None: ...

    def done(self) -> None: ...

    def notice(self, text: str) -> None: ...


class ConsoleProgress(SetupProgress):
    """A bar on a terminal; one line per step when the output goes to a file."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[now]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._doing = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def start(self, doing: str) -> None:
        self._doing = doing
        self._console.print(f"[bold]→[/] {doing}", highlight=False)
        self._task = self._bars.add_task("  ", total=None, now="")

    def update(self, fraction: float | None, now: str = "") -> None:
        if self._task is None:
            return
        shown = now if len(now) <= NOW_CHARS_MAX else now[: NOW_CHARS_MAX - 1] + "…"
        total = None if fraction is None else 1.0
        self._bars.update(self._task, total=total, completed=fraction or 0.0, now=shown.replace("[", r"\["))

    def done(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        self._console.print("[green]✓[/] done", highlight=False)

    def notice(self, text: str) -> None:
        self._console.print(f"[yellow]![/] {text}", highlight=False)
