"""Why a job's pods wait, or which of them failed first and of what. Pure functions of what the API server says."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from components.core.errors import Cancelled, KubealignError, RetryableError, UserError
from components.launch.cluster.state import true_conditions
from components.launch.last_words import error_of, is_consequence, killing_signal, sentences, signal_error

Pod = dict[str, Any]

# Waiting for these mends nothing.
HOPELESS = ("InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError")
# A pod that the API server refuses; the schema of a job does not check all of its pods.
_NEVER = ("is invalid:", "violates PodSecurity", "no PriorityClass with name", "service account")
# Pod reasons that come from the node or the scheduler, not from what runs in it.
_FROM_OUTSIDE = (
    "Evicted", "NodeAffinity", "NodeLost", "NodeShutdown", "OutOfcpu", "OutOfmemory", "Preempted", "Preempting",
    "Shutdown", "Terminated", "TerminationByKubelet", "UnexpectedAdmissionError",
)  # fmt: skip
# The kubelet evicts a pod that has filled its own volume; the volume's name -> the option that limits it.
_FULL_VOLUME = re.compile(r'Usage of EmptyDir volume "([^"]+)" exceeds the limit')
_VOLUME_OPTIONS = {"scratch": "disk", "shared-memory": "shared_memory"}
_SIGNALS = {137: "SIGKILL", 139: "SIGSEGV", 134: "SIGABRT", 143: "SIGTERM"}
_SIGBUS = 135
# What kubelet and containerd say of a container that they know nothing of any more, as after a node's restart.
_LOST = ("ContainerStatusUnknown", "Unknown")


def pending(pods: Sequence[Pod], events: Sequence[dict[str, Any]]) -> str:
    """What a job waits for, in the words of the scheduler, the kubelet or the queue; "" where nobody says."""
    for pod in pods:
        name = pod["metadata"]["name"]
        for status in _container_statuses(pod):
            waiting = status.get("state", {}).get("waiting") or {}
            if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
                return f"{name}: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
        for condition in pod.get("status", {}).get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"{name}: {condition.get('reason', '')}: {condition.get('message', '')}"
    warnings = [event for event in events if event.get("type") == "Warning" or event.get("reason") == "Pending"]
    if warnings:
        last = max(warnings, key=last_seen)
        involved = last.get("involvedObject", {})
        return f"{involved.get('name', '')}: {last.get('reason', '')}: {' '.join(last.get('message', '').split())}"
    return ""


def hopeless(pods: Sequence[Pod], events: Sequence[dict[str, Any]]) -> str:
    """What a pod waits for that will not come by itself; "" where there is none."""
    for event in events:
        message = " ".join(event.get("message", "").split())
        if event.get("reason") in ("FailedCreatePod", "FailedCreate") and any(sign in message for sign in _NEVER):
            return message
    for pod in pods:
        for status in _container_statuses(pod):
            waiting = status.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in HOPELESS:
                return f"{pod['metadata']['name']}: {waiting['reason']}: {waiting.get('message', '')}"
    return ""


def last_seen(item: dict[str, Any]) -> str:
    """When an event was last seen, or any other object was made; "" where it does not say."""
    stamp: str = item.get("lastTimestamp") or item.get("eventTime") or item["metadata"].get("creationTimestamp") or ""
    return stamp


def seconds_since_start(pods: Sequence[Pod]) -> float:
    """For how long all of a job's pods have been running."""
    running = [
        s.get("state", {}).get("running") or {} for pod in pods for s in pod["status"].get("containerStatuses", ())
    ]
    started = max((state["startedAt"] for state in running if "startedAt" in state), default="")
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds()) if started else 0.0


def waits(pods: Sequence[Pod], expected: int) -> bool:
    """Whether not all of a job's pods have started. An operator's Running says that one has."""
    started = [pod for pod in pods if pod.get("status", {}).get("phase") not in (None, "Pending")]
    return len(started) < expected


def failure(pods: Sequence[Pod], step: str, said: str) -> KubealignError:
    """The error of what came first, for all that this is known to a second; `said` is the operator's word.

    A pod that is taken away ends like one that was told to stop, its peers lose their connection to it, and on a
    failure the operator takes away what still runs. So in one second a failure of a pod's own counts as first, then
    what came from outside, then what is as a rule a consequence.
    """
    found = [end for pod in pods if (end := _end(pod, step)) is not None]
    if not found:
        return RetryableError(f"{step}: its pods are gone ({said}); deleted from outside, or their node was lost")
    return min(found, key=lambda end: end[0])[1]


def unsaid(pods: Sequence[Pod], step: str, logs: Mapping[str, Sequence[str]]) -> KubealignError | None:
    """The signal that a process of a pod has died of, by the pods' logs (name -> its last lines).

    Who is killed leaves no last words, so its peers in the same pod have them, and they tell of a consequence.
    """
    for pod in pods:
        number = killing_signal(logs.get(pod["metadata"]["name"], ()))
        if number is not None:
            return signal_error(f"{step}: {pod['metadata']['name']}", number)
    return None


_Order = tuple[str, int, str]
_OWN, _OUTSIDE, _CONSEQUENCE = range(3)


def _end(pod: Pod, step: str) -> tuple[_Order, KubealignError] | None:
    """((when, kind of cause, name), error) of a pod that did not end well."""
    status, name = pod.get("status", {}), pod["metadata"]["name"]
    ended = [end for s in _container_statuses(pod) if (end := s.get("state", {}).get("terminated"))]
    for end in ended:
        if end["exitCode"] != 0 and end.get("reason") == "OOMKilled":
            return (end.get("finishedAt") or "", _OWN, name), terminated(step, name, end)
    if full := _FULL_VOLUME.search(status.get("message") or ""):
        when = min((end.get("finishedAt") or "" for end in ended), default="")
        option = _VOLUME_OPTIONS.get(full[1], "disk")
        what = f"{step}: {name}: {' '.join(status['message'].split())}".rstrip(". ")
        return (when, _OWN, name), UserError(what, fix=f"raise resources.{option}")
    disrupted = true_conditions(pod)
    if status.get("reason") in _FROM_OUTSIDE or "DisruptionTarget" in disrupted:
        when = min((end.get("finishedAt") or "" for end in ended), default="")
        why = status.get("message") or disrupted.get("DisruptionTarget", "")
        text = f"{step}: {name}: {status.get('reason') or 'disrupted'}: {' '.join(why.split())}"
        return (_deleted_at(pod) or when, _OUTSIDE, name), RetryableError(text)
    if deleted := _deleted_at(pod):
        return (deleted, _OUTSIDE, name), RetryableError(f"{step}: {name} was deleted while it ran")
    for end in (s["state"]["terminated"] for s in status.get("initContainerStatuses") or [] if _failed(s)):
        # The operator's own: it waits for the first pod's name, for a few minutes.
        text = f"{step}: {name}: the job's first pod did not come in time (its init container ended with exit code "
        return (end.get("finishedAt") or "", _OUTSIDE, name), RetryableError(f"{text}{end['exitCode']})")
    for end in ended:
        if end.get("reason") in _LOST:
            return (end.get("finishedAt") or "", _OUTSIDE, name), RetryableError(f"{step}: {name} was lost on its node")
        if end["exitCode"] != 0:
            error = terminated(step, name, end)
            kind = _CONSEQUENCE if is_consequence(error) else _OWN
            return (end.get("finishedAt") or "", kind, name), error
    return None


def _deleted_at(pod: Pod) -> str:
    """When a pod's deletion was asked for, as API servers write a time; "" where it was not."""
    stamp = pod["metadata"].get("deletionTimestamp")
    if not stamp:
        return ""
    grace = timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
    asked = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ") - grace  # the stamp is the end of the grace period
    return asked.strftime("%Y-%m-%dT%H:%M:%SZ")


def terminated(step: str, name: str, ended: dict[str, Any]) -> KubealignError:
    """What a container's end means. Ours leave "code message" as their last words; anything else is quoted."""
    code, reason, message = ended["exitCode"], ended.get("reason", ""), str(ended.get("message") or "").strip()
    if reason == "OOMKilled":
        return UserError(
            f"{step}: {name} was killed for lack of memory (OOMKilled)",
            fix="raise resources.memory, or lower micro_batch_tokens",
        )
    if reason in ("StartError", "ContainerCannotRun"):
        return UserError(f"{step}: {name} could not start: {' '.join(message.split())}", fix="is it one of our images?")
    lines = [line for line in message.splitlines() if line.strip()]
    if (said := re.match(r"(\d+) (.+)", lines[-1]) if lines else None) and said[1] in ("1", "75", "143"):
        return error_of(int(said[1]), said[2])
    spoken = list(sentences(lines))
    last = f": {' '.join(spoken[-1].split())}" if spoken else ""
    if "No module named 'components'" in message or 'No module named "components"' in message or code == 127:
        return UserError(
            f"{step}: {name} runs an image without our code{last}", fix="set resources.image to one of ours"
        )
    if (number := killing_signal(lines) or (7 if code == _SIGBUS else None)) is not None:
        return signal_error(f"{step}: {name}", number)
    signal = f" ({_SIGNALS[code]})" if code in _SIGNALS else ""
    text = f"{step}: {name} ended with exit code {code}{signal}{last}"
    if code == 143:
        return Cancelled(text)
    return RetryableError(text) if code == 75 else UserError(text)


def _failed(status: dict[str, Any]) -> bool:
    end = status.get("state", {}).get("terminated")
    return bool(end and end["exitCode"] != 0)


def _container_statuses(pod: Pod) -> list[dict[str, Any]]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
