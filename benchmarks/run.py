"""What every item is given: the options, where results go, and the progress display."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.options import Options
from benchmarks.samples import Results, Sample


@dataclass(slots=True)
class Run:
    """A run of the benchmarks."""

    options: Options
    results: Results = field(default_factory=Results)
    console: Console = field(default_factory=lambda: Console(stderr=True))
    _progress: Progress | None = None
    _task: TaskID | None = None

    @contextmanager
    def item(self, title: str, total: int) -> Iterator[None]:
        """Show the progress of an item of `total` measurements."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            self._progress, self._task = progress, progress.add_task(title, total=total, now="")
            yield
            progress.update(self._task, now="")

    def now(self, what: str) -> None:
        """Tell what is being measured."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, now=what)

    def advance(self) -> None:
        """Count a measurement."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def record(self, sample: Sample) -> None:
        """Keep a sample and count it."""
        self.results.samples.append(sample)
        self.advance()

    def note(self, text: str) -> None:
        """Keep the first line of something that the reader of the report must know, and show all of it."""
        line = text.splitlines()[0]
        if line not in self.results.notes:
            self.results.notes.append(line)
            self.console.print(f"note: {text}", markup=False, highlight=False)
