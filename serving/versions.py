"""Versions of one model: which should be in memory, how they get there, what became of each."""

import dataclasses
import gc
import logging
import time

from keras_unigan.serving import folders
from keras_unigan.serving.servable import Servable
from keras_unigan.serving.status import ServingError

logger = logging.getLogger(__name__)

# ModelVersionStatus.State of the protocol.
STATES = {"START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}


@dataclasses.dataclass
class Version:
    """What became of one version.

    Attributes:
        state: Key of `STATES`.
        code: Key of `status.CODES`: why the last try to load it failed.
        message: The same in words.
        servable: The loaded model while there is one.
        users: Requests that run on it now.
        attempts: Failed tries to load it.
        retry_at: Monotonic time before which it is not tried again.
    """

    state: str = "START"
    code: str = "OK"
    message: str = ""
    servable: Servable | None = None
    users: int = 0
    attempts: int = 0
    retry_at: float = 0.0


@dataclasses.dataclass(frozen=True)
class Loading:
    """How versions are loaded; shared by all models of a server.

    Attributes:
        submit: Runs a function with arguments in the background, one after the other.
        condition: Guards every `Version`; notified after any change.
        warm_up: Whether warm-up requests are answered before a version is available.
        retries: Further tries after a failed load.
        retry_seconds: Seconds between two tries.
        changed: Called, without arguments, after any change of state.
        warmed: Called with the folder, the code and the microseconds of a warm-up.
    """

    submit: object
    condition: object
    warm_up: bool
    retries: int
    retry_seconds: float
    changed: object
    warmed: object


class Model:
    """One entry of the list of models.

    A version that fails leaves its reason in the status and displaces nothing: the next lower one
    is served in its place.

    Args:
        config: `config_files.ModelConfig`.
        loading: `Loading`.

    Attributes:
        config: As given; replaced when a reload is committed.
        pending: What a reload asks for until it is committed: its versions are loaded as well.
        found: Version folders of the last look: number -> path.
        versions: Number -> `Version`.
    """

    def __init__(self, config, loading):
        self.config, self.pending = config, None
        self.found, self.versions = {}, {}
        self._loading, self._condition = loading, loading.condition
        self._looked = self._read = self._retired = False

    def available(self):
        """Numbers of the versions that can be asked; the lock must be held."""
        return [n for n, v in self.versions.items() if v.state == "AVAILABLE"]

    def settled(self):
        """Whether the folder was looked at and no version waits for its first try."""
        return self._looked and all(
            v.state in ("AVAILABLE", "END") or v.attempts for v in self.versions.values()
        )

    def chosen(self, policy):
        """Versions that a policy wants in memory, highest first.

        Under "latest", a version that failed does not count: it may be tried again, but the next
        lower one takes its place.
        """
        numbers = sorted(self.found, reverse=True)
        if policy[0] == "all":
            return numbers
        if policy[0] == "specific":
            return [n for n in numbers if n in policy[1]]
        chosen, good = [], 0
        for number in numbers:
            if good == policy[1]:
                break
            chosen.append(number)
            good += number not in self.versions or not self.versions[number].attempts
        return chosen

    def look(self, once=False):
        """One look at the folder: starts the loads and the unloads that it asks for.

        Args:
            once: Whether a folder that was read before is not read again; loads that failed are
                tried again all the same.
        """
        found = self.found if once and self._read else folders.scan(self.config.base_path)
        with self._condition:
            if self._retired:
                return
            self.found, self._read = found, True
            for number, version in self.versions.items():
                if number not in found and version.state in ("START", "END"):
                    # Nothing is left to try, and a folder that comes back is new.
                    version.state, version.attempts = "END", 0
            chosen = self.chosen(self.config.policy)
            if self.pending is not None:
                chosen += [n for n in self.chosen(self.pending.policy) if n not in chosen]
            for number in chosen:
                if self._due(number):
                    self.versions[number].state = "LOADING"
                    self._loading.submit(self._load, number, found[number])
            waiting = any(self.versions[n].state == "LOADING" for n in chosen)
            self._looked = True
            self._condition.notify_all()
            drop = [n for n in self.available() if n not in chosen]
            keep = waiting or (chosen and not any(self.versions[n].servable for n in chosen))
        if drop and not keep:
            self.unload(drop)

    def _due(self, number):
        """Whether a version should be loaded now: it is new, came back, or is to be tried again."""
        version = self.versions.get(number)
        if version is None or (version.state == "END" and not version.attempts):
            self.versions[number] = Version()
            return True
        return (
            version.state == "START" and version.attempts and time.monotonic() >= version.retry_at
        )

    def _load(self, number, path):
        version = self.versions[number]
        servable, problem = self._open(number, path)
        with self._condition:
            if self._retired:
                version.state = "END"
            elif problem is None:
                version.servable, version.state = servable, "AVAILABLE"
                version.code, version.message, version.attempts = "OK", "", 0
                servable = None
            else:
                version.attempts += 1
                version.code, version.message = problem.code, problem.message
                version.retry_at = time.monotonic() + self._loading.retry_seconds
                version.state = "END" if version.attempts > self._loading.retries else "START"
                # The next look may choose a lower version in its place.
                self._looked = False
                logger.error("version %d of %s not loaded: %s", number, self.config.name, problem)
            self._condition.notify_all()
        if servable is not None:
            servable.close()
        self._loading.changed()

    def _open(self, number, path):
        """(servable, None) of a whole version, or (None, `ServingError`)."""
        servable = None
        try:
            folders.check(path)
            servable = Servable(path)
            if self._loading.warm_up:
                self._warm_up(servable, path)
            return servable, None
        except ServingError as error:
            problem = error
        except Exception as error:
            logger.error("version %d cannot be loaded: %s", number, type(error).__name__)
            problem = ServingError(
                "INTERNAL", f"The version cannot be loaded ({type(error).__name__})"
            )
        if servable is not None:
            servable.close()
        return None, problem

    def _warm_up(self, servable, path):
        start, code, count = time.perf_counter(), "OK", 1
        try:
            count = servable.warm_up()
        except ServingError as error:
            code = error.code
            raise
        finally:
            if count:
                self._loading.warmed(path, code, (time.perf_counter() - start) * 1e6)

    def unload(self, numbers):
        """Takes versions out of memory, each when its last request has ended."""
        idle = []
        with self._condition:
            for number in numbers:
                version = self.versions[number]
                if version.state == "AVAILABLE":
                    version.state = "UNLOADING"
                    if not version.users:
                        idle.append(number)
        self._loading.changed()
        for number in idle:
            self._close(number)

    def retire(self):
        """Takes everything out of memory for good."""
        with self._condition:
            self._retired = True
            numbers = list(self.versions)
        self.unload(numbers)

    def release(self, number):
        """Ends the use of a version by one request."""
        with self._condition:
            version = self.versions[number]
            version.users -= 1
            last = version.state == "UNLOADING" and not version.users
        if last:
            self._close(number)

    def _close(self, number):
        with self._condition:
            version = self.versions[number]
            servable, version.servable, version.state = version.servable, None, "END"
            self._condition.notify_all()
        servable.close()
        del servable
        # A graph is full of reference cycles; without this, swaps would pile up in memory.
        gc.collect()
        self._loading.changed()
