"""Where a run computes: one device, replicas of one machine, or the workers of a cluster."""

import contextlib
import dataclasses
import functools
import json
import os

import tensorflow as tf

from keras_unigan.errors import CodedError


@dataclasses.dataclass(frozen=True)
class Workers:
    """The cluster that the environment variable `TF_CONFIG` describes.

    Attributes:
        count: Processes that train together; 1 without a cluster.
        chief: Whether this process writes the run folder.
    """

    count: int = 1
    chief: bool = True

    @classmethod
    def read(cls):
        """Reads `TF_CONFIG`.

        Raises:
            CodedError: KUG-T02 when it names no workers, or no task of this process.
        """
        text = os.environ.get("TF_CONFIG")
        if not text:
            return cls()
        try:
            config = json.loads(text)
            cluster = config.get("cluster")
            if not cluster:  # some platforms set it for a single machine too
                return cls()
            tasks = [(k, i) for k in ("chief", "worker") for i in range(len(cluster.get(k, ())))]
            own = tasks.index((config["task"]["type"], int(config["task"]["index"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CodedError(
                "KUG-T02",
                "TF_CONFIG",
                repr(text),
                'a cluster of "worker" addresses (the first may be "chief"), and a task in it',
                fix="unset TF_CONFIG to train on this machine alone",
            ) from error
        return cls(len(tasks), own == 0)


@functools.cache
def strategy_for(replicas):
    """Distribution over the workers of `TF_CONFIG`, GPUs where there are any, or logical CPUs.

    One for each number in a process: a second MirroredStrategy would use the first one's collective
    keys again, and TensorFlow then aborts.

    Args:
        replicas: Their number on this machine. One is the default strategy: the same code without
            the copies. Workers take every device that they have.

    Raises:
        CodedError: KUG-T02 when there are fewer devices, or for replicas of a worker.
    """
    workers = Workers.read()
    if workers.count > 1:
        if replicas != 1:
            raise CodedError(
                "KUG-T02",
                "replicas",
                f"{replicas} replicas and a TF_CONFIG of {workers.count} workers",
                "one of the two",
                "A worker uses all devices of its machine.",
                "leave out --replicas",
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if replicas == 1:
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if kind == "CPU":
        cpu = tf.config.list_physical_devices("CPU")[0]
        configured = tf.config.get_logical_device_configuration(cpu) or [None]
        # Once TensorFlow has run something, its devices are fixed.
        with contextlib.suppress(RuntimeError):
            if len(configured) < replicas:
                devices = [tf.config.LogicalDeviceConfiguration()] * replicas
                tf.config.set_logical_device_configuration(cpu, devices)
    devices = tf.config.list_logical_devices(kind)
    if len(devices) < replicas:
        raise CodedError(
            "KUG-T02",
            "replicas",
            f"{replicas} replicas and {len(devices)} {kind} devices",
            "one device each",
            fix=f"--replicas {len(devices)}",
        )
    return tf.distribute.MirroredStrategy([d.name for d in devices[:replicas]])
