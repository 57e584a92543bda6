"""Which versions of which models are in memory: policies, hot swap, what became of each."""

import concurrent.futures
import contextlib
import dataclasses
import gc
import logging
import threading
import time

from keras_unigan.serving import folders
from keras_unigan.serving.servable import Servable
from keras_unigan.serving.status import ServingError, invalid

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


class Manager:
    """Keeps the versions that the policies ask for in memory, and hands them to requests.

    A new version is loaded and warmed up before the old one is dropped, and a request keeps the
    version that it started on. A version that fails leaves its reason in the status and displaces
    nothing: the next lower one is served in its place.

    Args:
        models: `settings.ModelConfig`s.
        poll_seconds: Seconds between two looks at the folders.
        warm_up: Whether warm-up requests are answered before a version is available.
        retries: Further tries after a failed load.
        retry_seconds: Seconds between two tries.
        changed: Called, without arguments, after any change of state.
    """

    def __init__(self, models, poll_seconds, warm_up, retries, retry_seconds, changed):
        self.models = {m.name: m for m in models}
        self._poll_seconds, self._warm_up, self._changed = poll_seconds, warm_up, changed
        self._retries, self._retry_seconds = retries, retry_seconds
        self._versions = {name: {} for name in self.models}
        self._condition = threading.Condition()
        self._stopping, self._wake, self._looked = False, False, set()
        self._loader = concurrent.futures.ThreadPoolExecutor(1, "unigan-load")
        self._thread = threading.Thread(target=self._watch, name="unigan-versions", daemon=True)

    def start(self):
        """Starts to look for versions."""
        self._thread.start()

    def stop(self):
        """Stops looking, and unloads everything; requests must have ended."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self._thread.join()
        self._loader.shutdown(cancel_futures=True)
        for name in self.models:
            self._unload(name, list(self._versions[name]))

    def ready(self):
        """Whether every model has an available version."""
        with self._condition:
            return all(self._available(name) for name in self.models)

    def settled(self):
        """Whether every folder was looked at and no version waits for its first try."""
        with self._condition:
            return self._looked == set(self.models) and all(
                v.state in ("AVAILABLE", "END") or v.attempts
                for versions in self._versions.values()
                for v in versions.values()
            )

    def wait(self, seconds):
        """Waits until every model is ready, or nothing is left to wait for; returns `ready()`."""
        deadline = time.monotonic() + seconds
        with self._condition:
            while not self.ready() and not self.settled():
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._condition.wait(left)
        return self.ready()

    @contextlib.contextmanager
    def use(self, name, version=None, label=None):
        """Lends a loaded version: (`Servable`, version number), while the block runs.

        Args:
            name: Model.
            version: Number; None is the highest available.
            label: Label instead of a number.

        Raises:
            ServingError: With TensorFlow Serving's text when there is no such version.
        """
        if label is not None:
            version = self.labelled(name, label)
        with self._condition:
            available = self._available(name)
            number = max(available, default=None) if version is None else version
            if number not in available:
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise ServingError("NOT_FOUND", f"Servable not found for request: {wanted}")
            held = self._versions[name][number]
            held.users += 1
        try:
            yield held.servable, number
        finally:
            with self._condition:
                held.users -= 1
                last = held.state == "UNLOADING" and not held.users
            if last:
                self._close(name, number)

    def labelled(self, name, label):
        """Version that a label of a model stands for.

        Raises:
            ServingError: INVALID_ARGUMENT for a label or model that is not in the list.
        """
        labels = self.models[name].labels if name in self.models else {}
        if label not in labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return labels[label]

    def status(self, name, version=None):
        """What became of the versions of a model, newest first: (number, state, code, message).

        Raises:
            ServingError: NOT_FOUND.
        """
        with self._condition:
            versions = self._versions.get(name, {})
            if version is not None and version not in versions:
                raise ServingError("NOT_FOUND", f"Could not find version {version} of model {name}")
            if not versions:
                raise ServingError("NOT_FOUND", f"Could not find any versions of model {name}")
            numbers = sorted(versions, reverse=True) if version is None else [version]
            return [(n, versions[n].state, versions[n].code, versions[n].message) for n in numbers]

    def _available(self, name):
        versions = self._versions.get(name, {})
        return [n for n, v in versions.items() if v.state == "AVAILABLE"]

    def _watch(self):
        while True:
            for name, model in self.models.items():
                try:
                    self._look(name, model)
                except OSError as error:
                    logger.warning("cannot look for versions: %s", type(error).__name__)
            with self._condition:
                if not self._wake and not self._stopping:
                    self._condition.wait(self._poll_seconds)
                self._wake = False
                if self._stopping:
                    return

    def _look(self, name, model):
        """One look at a model's folder: starts the loads and the unloads that it asks for."""
        found = folders.scan(model.base_path)
        with self._condition:
            versions = self._versions[name]
            for number, version in versions.items():
                if number not in found and version.state in ("START", "END"):
                    # Nothing is left to try, and a folder that comes back is new.
                    version.state, version.attempts = "END", 0
            chosen = self._choose(model.policy, found, versions)
            now = time.monotonic()
            for number in chosen:
                version = versions.get(number)
                if version is None or (version.state == "END" and not version.attempts):
                    version = versions[number] = Version()
                elif not (
                    version.state == "START" and version.attempts and now >= version.retry_at
                ):
                    continue
                version.state = "LOADING"
                self._loader.submit(self._load, name, number, found[number])
            waiting = [n for n in chosen if versions[n].state == "LOADING"]
            self._looked.add(name)
            self._condition.notify_all()
            drop = [n for n, v in versions.items() if v.state == "AVAILABLE" and n not in chosen]
            keep = waiting or (chosen and not any(versions[n].servable for n in chosen))
        if drop and not keep:
            self._unload(name, drop)

    @staticmethod
    def _choose(policy, found, versions):
        """Versions that should be in memory, highest first.

        Under "latest", a version that failed does not count: it may be tried again, but the next
        lower one takes its place.
        """
        numbers = sorted(found, reverse=True)
        if policy[0] == "all":
            return numbers
        if policy[0] == "specific":
            return [n for n in numbers if n in policy[1]]
        chosen, good = [], 0
        for number in numbers:
            if good == policy[1]:
                break
            chosen.append(number)
            good += number not in versions or not versions[number].attempts
        return chosen

    def _load(self, name, number, path):
        version = self._versions[name][number]
        servable = None
        try:
            folders.check(path)
            servable = Servable(path)
            if self._warm_up:
                servable.warm_up()
            problem = None
        except ServingError as error:
            problem = error
        except Exception as error:
            logger.error("version %d cannot be loaded: %s", number, type(error).__name__)
            problem = ServingError(
                "INTERNAL", f"The version cannot be loaded ({type(error).__name__})"
            )
        if problem is not None and servable is not None:
            servable.close()
        with self._condition:
            if problem is None:
                version.servable, version.state = servable, "AVAILABLE"
                version.code, version.message, version.attempts = "OK", "", 0
            else:
                version.attempts += 1
                version.code, version.message = problem.code, problem.message
                version.retry_at = time.monotonic() + self._retry_seconds
                version.state = "END" if version.attempts > self._retries else "START"
                # The next look may choose a lower version in its place.
                self._looked.discard(name)
                logger.error("version %d of %s not loaded: %s", number, name, problem)
            self._wake = True
            self._condition.notify_all()
        self._changed()

    def _unload(self, name, numbers):
        idle = []
        with self._condition:
            for number in numbers:
                version = self._versions[name][number]
                if version.state == "AVAILABLE":
                    version.state = "UNLOADING"
                    if not version.users:
                        idle.append(number)
        self._changed()
        for number in idle:
            self._close(name, number)

    def _close(self, name, number):
        with self._condition:
            version = self._versions[name][number]
            servable, version.servable, version.state = version.servable, None, "END"
            self._condition.notify_all()
        servable.close()
        del servable
        # A graph is full of reference cycles; without this, swaps would pile up in memory.
        gc.collect()
        self._changed()
