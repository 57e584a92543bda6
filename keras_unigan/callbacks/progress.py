"""What the terminal shows of a run."""

import datetime
import time

import keras
import rich.console
import rich.progress


def summary_line(logs):
    """Loss terms, then Dice with its modalities, as text."""
    parts = []
    for name, value in logs.items():
        hidden = name.startswith("val_") or name.endswith(("_norm", "_sd"))
        if not hidden and (name != "skipped" or value):
            parts.append(f"{name} {value:.3g}")
    if "val_dice" in logs:
        prefix = "val_dice_"
        each = ", ".join(
            f"{k.removeprefix(prefix)} {v:.2f}"
            for k, v in logs.items()
            if k.startswith(prefix) and k != f"{prefix}loss"
        )
        parts.append(f"Dice {logs['val_dice']:.3f} ({each})")
    return "  ".join(parts)


class Progress(keras.callbacks.Callback):
    """A bar with ETA, speed, loss terms and Dice on a terminal; elsewhere one line an epoch.

    Args:
        budget: `Budget` of the run.
        total: Steps of the run, or None when minutes decide.
        console: `rich.console.Console`; None writes to standard output.
        health: `Health`, whose verdict ends the line; None says nothing of it.
    """

    def __init__(self, budget, total=None, console=None, health=None):
        super().__init__()
        self.budget, self.total, self.health = budget, total, health
        self.console = console or rich.console.Console(highlight=False, soft_wrap=True)
        self._bar = None

    def on_train_begin(self, logs=None):
        """Opens the bar."""
        self._first, self._start, self._shown = self.budget.state.steps, None, 0.0
        if self.console.is_terminal:
            columns = ("{task.description}", rich.progress.BarColumn(), "{task.fields[text]}")
            self._bar = rich.progress.Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("starting", total=1.0, text="")
            self._bar.start()

    def on_epoch_begin(self, epoch, logs=None):
        """Notes the epoch."""
        self._epoch, self._epoch_steps, self._epoch_start = epoch + 1, 0, time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar, a few times a second."""
        now = time.monotonic()
        self._epoch_steps += 1
        # The first step holds the tracing of the graph; it says nothing about the speed.
        self._start = self._start or (now, self._steps)
        if self._bar is not None and now - self._shown > 0.25:
            self._shown = now
            text = f"{self.speed:.1f} it/s  eta {self.eta()}  {summary_line(logs)}"
            text += self._verdict()
            self._bar.update(
                self._task,
                description=f"epoch {self._epoch}",
                completed=self.share(),
                text=text,
            )

    @property
    def _steps(self):
        return self.budget.state.steps

    @property
    def speed(self):
        """Steps per second since the first one, validation included."""
        seconds = time.monotonic() - self._start[0]
        return (self._steps - self._start[1]) / max(seconds, 1e-6)

    def share(self):
        """Part of the budget that is used up, 0 to 1."""
        if self.total is None:
            return min(1.0, self.budget.seconds / (60 * self.budget.minutes))
        return min(1.0, self._steps / self.total)

    def eta(self):
        """Time left, as text."""
        if self.total is None:
            seconds = 60 * self.budget.minutes - self.budget.seconds
        else:
            if not self.speed:  # the first step, which traced the graph, tells nothing
                return "?"
            seconds = (self.total - self._steps) / self.speed
        if not 0 <= seconds < 1e7:
            return "?" if seconds > 0 else "0:00:00"
        return str(datetime.timedelta(seconds=round(seconds)))

    def on_epoch_end(self, epoch, logs=None):
        """Prints the line of an epoch."""
        of = "" if self.total is None else f"/{self.total}"
        rate = self._epoch_steps / (time.monotonic() - self._epoch_start)
        self.console.print(
            f"epoch {epoch + 1}  step {self._steps}{of}  {rate:.1f} it/s  eta {self.eta()}  "
            f"{summary_line(logs)}{self._verdict()}"
        )
        if self.health is not None and self.health.verdict.level != "OK":
            self.console.print(f"  try: {self.health.verdict.remedy}")

    def _verdict(self):
        return "" if self.health is None else f"  health {self.health.verdict}"

    def close(self):
        """Closes the bar, also after an interruption."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
