"""All models of a server: hands versions to requests, watches the folders, swaps the list."""

import concurrent.futures
import contextlib
import logging
import threading
import time

from keras_unigan.errors import CodedError
from keras_unigan.serving import config_files, folders
from keras_unigan.serving.status import ServingError, invalid
from keras_unigan.serving.versions import Loading, Model

logger = logging.getLogger(__name__)

RETRY_LOOK_SECONDS = 1.0
"""Between two looks for loads to try again, where folders are read only once."""


class Manager:
    """Keeps the versions that the policies ask for in memory, and hands them to requests.

    A new version is loaded and warmed up before the old one is dropped, and a request keeps the
    version that it started on. A new list of models takes effect as a whole, or not at all.

    Args:
        models: `config_files.ModelConfig`s.
        options: `settings.Options`.
        changed: Called, without arguments, after any change of state.
        warmed: Called with the folder, the code and the microseconds of each warm-up.

    Attributes:
        models: Name -> `versions.Model`.
    """

    def __init__(self, models, options, changed, warmed):
        self._poll_seconds = options.file_system_poll_wait_seconds
        self._any_label = options.allow_version_labels_for_unavailable_models
        self._changed = changed
        self._condition = threading.Condition()
        self._loader = concurrent.futures.ThreadPoolExecutor(1, "unigan-load")
        self._loading = Loading(
            self._submit,
            self._condition,
            options.enable_model_warmup,
            options.max_num_load_retries,
            options.load_retry_interval_micros / 1e6,
            self._noted,
            warmed,
        )
        self.models = {m.name: Model(m, self._loading) for m in models}
        self._gone = {}  # Models left out by reloads: what became of their versions stays visible.
        self._staged, self._reloading = [], threading.Lock()
        self._stopping, self._wake = False, False
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
        for model in self.models.values():
            model.retire()

    def ready(self):
        """Whether every model has an available version."""
        with self._condition:
            return all(model.available() for model in self.models.values())

    def wait(self, seconds):
        """Waits until every model is ready, or nothing is left to wait for; returns `ready()`."""
        with self._condition:
            self._condition.wait_for(
                lambda: self.ready() or all(m.settled() for m in self.models.values()), seconds
            )
        return self.ready()

    @contextlib.contextmanager
    def use(self, name, version=None, label=None):
        """Lends a loaded version: (`Servable`, version number), while the block runs.

        Args:
            name: Model.
            version: Number; None is the highest available.
            label: Label instead of a number.

        Raises:
            ServingError: With TensorFlow Serving's text when there is no such version; UNAVAILABLE
                while the first one loads.
        """
        if label is not None:
            version = self.labelled(name, label)
        with self._condition:
            model = self.models.get(name)
            available = model.available() if model is not None else []
            number = max(available, default=None) if version is None else version
            if number not in available:
                if model is not None and not available and not model.settled():
                    # The real server opens its port only later, so its clients try again too.
                    raise ServingError("UNAVAILABLE", f"Model {name} is still loading")
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise ServingError("NOT_FOUND", f"Servable not found for request: {wanted}")
            held = model.versions[number]
            held.users += 1
        try:
            yield held.servable, number
        finally:
            model.release(number)

    def labelled(self, name, label):
        """Version that a label of a model stands for.

        Raises:
            ServingError: INVALID_ARGUMENT for a label or model that is not in the list.
        """
        model = self.models.get(name)
        if model is None or label not in model.config.labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return model.config.labels[label]

    def status(self, name, version=None):
        """What became of the versions of a model, newest first: (number, state, code, message).

        Raises:
            ServingError: NOT_FOUND.
        """
        with self._condition:
            model = self.models.get(name) or self._gone.get(name)
            versions = model.versions if model is not None else {}
            if version is not None and version not in versions:
                raise ServingError("NOT_FOUND", f"Could not find version {version} of model {name}")
            if not versions:
                raise ServingError("NOT_FOUND", f"Could not find any versions of model {name}")
            numbers = sorted(versions, reverse=True) if version is None else [version]
            return [(n, versions[n].state, versions[n].code, versions[n].message) for n in numbers]

    def reload(self, configs, seconds):
        """Replaces the list of models; on any error everything stays as it was.

        The new list takes effect once every new model has an available version and every label
        points to one. Versions and models that it leaves out are unloaded then.

        Args:
            configs: `config_files.ModelConfig`s.
            seconds: Longest wait, for an earlier reload and for the loads.

        Raises:
            ServingError: FAILED_PRECONDITION for what cannot be served, DEADLINE_EXCEEDED, or the
                code of the version that cannot be loaded.
        """
        deadline = time.monotonic() + seconds
        if not self._reloading.acquire(timeout=seconds):
            raise ServingError("DEADLINE_EXCEEDED", "Another reload did not end in time")
        try:
            self._reload(configs, deadline)
        except OSError as error:
            raise ServingError(
                "FAILED_PRECONDITION", f"A base path cannot be read ({type(error).__name__})"
            ) from None
        finally:
            self._reloading.release()

    def _reload(self, configs, deadline):
        for config in configs:
            config_files.check_folder(config)
        before, after = self.models, {}
        for config in configs:
            model = before.get(config.name)
            if model is None or model.config.base_path != config.base_path:
                model = Model(config, self._loading)
            after[config.name] = model
        fresh = [m for m in after.values() if m not in before.values()]
        kept = [(after[c.name], c) for c in configs if after[c.name] not in fresh]
        changed = [(m, c) for m, c in kept if m.config != c] + [(m, m.config) for m in fresh]
        # Before anything is loaded, so that a list that can never be served is refused at once.
        for model, config in changed:
            self._check(model, config)
        try:
            with self._condition:
                self._staged = fresh
                for model, config in kept:
                    model.pending = config
            for model, _ in changed:
                model.look()
            for model, config in changed:
                self._await(model, config, deadline)
            self._commit(before, after, kept)
            # What the new list leaves out is not to answer the next request any more.
            with self._condition:
                for model, _ in kept:
                    model.pending = None
            for model, _ in changed:
                model.look(once=True)
        finally:
            with self._condition:
                self._staged = []
                for model, _ in kept:
                    model.pending = None
            for model in fresh:
                if self.models.get(model.config.name) is not model:
                    model.retire()
            self._nudge()

    def _commit(self, before, after, kept):
        with self._condition:
            for model, config in kept:
                model.config = config
            self.models = after
            gone = {name: model for name, model in before.items() if name not in after}
            self._gone = {n: m for n, m in {**self._gone, **gone}.items() if n not in after}
        for model in before.values():
            if model not in after.values():
                model.retire()
        self._changed()

    def _check(self, model, config):
        """Refuses lists and labels of versions that are not there."""
        found = folders.scan(config.base_path)
        with self._condition:
            model.found = found
            chosen = model.chosen(config.policy)
        if config.policy[0] == "specific" and not chosen:
            raise ServingError(
                "FAILED_PRECONDITION",
                f"None of the versions {list(config.policy[1])} of model {config.name} is there",
            )
        if not self._any_label:
            for version in config.labels.values():
                if version not in chosen:
                    raise _unlabelled(config.name, version)

    def _await(self, model, config, deadline):
        """Waits until a model can be served as the new list says."""

        def fits():
            available = set(model.available())
            labels = () if self._any_label else config.labels.values()
            return available & set(model.chosen(config.policy)) and available >= set(labels)

        def hopeless():
            return model.settled() and not fits()

        with self._condition:
            left = deadline - time.monotonic()
            self._condition.wait_for(lambda: fits() or hopeless() or self._stopping, max(0, left))
            if fits():
                return
            failed = [(n, v) for n, v in sorted(model.versions.items()) if v.code != "OK"]
            if failed and model.settled():
                number, version = failed[-1]
                raise ServingError(
                    version.code,
                    f"Version {number} of model {config.name} cannot be served: {version.message}",
                )
            if model.settled():
                for version in config.labels.values():
                    if version not in model.available():
                        raise _unlabelled(config.name, version)
                raise ServingError(
                    "FAILED_PRECONDITION", f"Model {config.name} has no version to serve"
                )
        raise ServingError(
            "DEADLINE_EXCEEDED", f"Model {config.name} was not available in time; nothing changed"
        )

    def _submit(self, function, *arguments):
        # After the end there is nothing to load for.
        with contextlib.suppress(RuntimeError):
            self._loader.submit(function, *arguments)

    def _noted(self):
        self._nudge()
        self._changed()

    def _nudge(self):
        """Makes the next look at the folders come at once."""
        with self._condition:
            self._wake = True
            self._condition.notify_all()

    def _watch(self):
        while True:
            for model in [*self.models.values(), *self._staged]:
                try:
                    model.look(once=not self._poll_seconds)
                except OSError as error:
                    logger.warning("cannot look for versions: %s", type(error).__name__)
            with self._condition:
                if not self._wake and not self._stopping:
                    self._condition.wait(self._poll_seconds or RETRY_LOOK_SECONDS)
                self._wake = False
                if self._stopping:
                    return


def _unlabelled(name, version):
    return ServingError(
        "FAILED_PRECONDITION",
        f"Request to assign label to version {version} of model {name}, which is not currently "
        "available for inference",
    )


class ConfigFile:
    """Looks at `--model_config_file` again and again, and reloads when it says something new.

    A file that is refused is tried again at each look: what it names may come later.

    Args:
        path: The file.
        poll_seconds: Seconds between two looks.
        manager: `Manager` that gets the new list.
        reload_seconds: Longest wait of a reload.
    """

    def __init__(self, path, poll_seconds, manager, reload_seconds):
        self._path, self._poll_seconds = path, poll_seconds
        self._manager, self._reload_seconds = manager, reload_seconds
        self._served = tuple(m.config for m in manager.models.values())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="unigan-config", daemon=True)

    def start(self):
        """Starts to look."""
        self._thread.start()

    def stop(self):
        """Stops looking; a reload that is under way ends with the manager."""
        self._over.set()

    def join(self):
        """Waits for the end of the thread, once the manager has stopped."""
        self._thread.join()

    def _watch(self):
        while not self._over.wait(self._poll_seconds):
            try:
                models = config_files.read_models(self._path)
                if models != self._served:
                    self._manager.reload(models, self._reload_seconds)
                    self._served = models
                    logger.info("reloaded %d models from the configuration file", len(models))
            except (CodedError, ServingError) as error:
                logger.error("the model configuration file is not taken: %s", error)
            except OSError as error:
                logger.error("cannot read the configuration file: %s", type(error).__name__)
