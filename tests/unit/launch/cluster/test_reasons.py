"""Which pod failed first and of what, and what a job waits for: from objects as an API server sends them."""

from typing import Any

import pytest

from components.core.errors import LOST_PEER, Cancelled, KubealignError, RetryableError, UserError
from components.launch.cluster import reasons
from components.launch.last_words import killing_signal


def pod(name: str, *, ended: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    deleted = status.pop("deleted", None)
    metadata: dict[str, Any] = {"name": name, "uid": name}
    if deleted:
        metadata |= {"deletionTimestamp": deleted, "deletionGracePeriodSeconds": 30}
    if ended:
        status["containerStatuses"] = [{"name": "pytorch", "state": {"terminated": ended}}]
    return {"metadata": metadata, "status": status}


def end(code: int, second: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"exitCode": code, "reason": reason, "message": message, "finishedAt": f"2026-01-01T00:00:{second:02d}Z"}


def failure(*pods: dict[str, Any]) -> KubealignError:
    return reasons.failure(pods, "sft", "1 Worker replica(s) failed")


def test_earliest_failure_is_told() -> None:
    error = failure(
        pod("m", ended=end(1, 20, "1 the second thing")), pod("w", ended=end(1, 10, "1 data is empty; give it rows"))
    )
    assert isinstance(error, UserError)
    assert str(error) == "data is empty; give it rows"


@pytest.mark.parametrize(("code", "kind"), [(1, UserError), (75, RetryableError), (143, Cancelled)])
def test_last_words_keep_their_exit_code(code: int, kind: type[KubealignError]) -> None:
    error = failure(pod("m", ended=end(code, 1, f"some log\n{code} what happened")))
    assert type(error) is kind
    assert str(error) == "what happened"


def test_a_peer_that_lost_its_connection_is_not_the_cause() -> None:
    lost = pod("m", ended=end(75, 10, f"75 {LOST_PEER} (gloo)"))
    assert "the data is empty" in str(failure(lost, pod("w", ended=end(1, 10, "1 the data is empty"))))


def test_pod_deleted_from_outside_is_the_cause_of_what_its_peers_died_of() -> None:
    """The stamp is the end of the grace period: it was asked for at second 10."""
    deleted = pod("w", deleted="2026-01-01T00:00:40Z", ended=end(143, 12, "143 sft was cancelled"))
    error = failure(pod("m", ended=end(143, 11, "143 sft was cancelled")), deleted)
    assert isinstance(error, RetryableError)
    assert "w was deleted while it ran" in str(error)


def test_pod_that_the_operator_took_away_after_a_failure_is_not_the_cause() -> None:
    deleted = pod("w", deleted="2026-01-01T00:00:40Z", ended=end(143, 12))
    assert str(failure(deleted, pod("m", ended=end(1, 10, "1 the data is empty")))) == "the data is empty"


def test_out_of_memory_names_the_option() -> None:
    error = failure(pod("m", ended=end(137, 1, reason="OOMKilled")))
    assert isinstance(error, UserError)
    assert "OOMKilled" in str(error) and "resources.memory" in str(error)


@pytest.mark.parametrize(
    "status",
    [
        {"reason": "Evicted", "message": "The node was low on resource: memory."},
        {"conditions": [{"type": "DisruptionTarget", "status": "True", "message": "preempted by high"}]},
    ],
)
def test_eviction_and_preemption_are_worth_another_attempt(status: dict[str, Any]) -> None:
    assert isinstance(failure(pod("m", ended=end(137, 1), **status)), RetryableError)


def test_pods_that_are_gone_are_worth_another_attempt() -> None:
    assert isinstance(failure(), RetryableError)


def test_segmentation_fault_is_named_with_its_last_line() -> None:
    text = str(failure(pod("m", ended=end(139, 1, "loading\nabout to crash"))))
    assert "exit code 139 (SIGSEGV): about to crash" in text


TORCHRUN = """
Failures:
[0]:
  exitcode  : -9 (pid: 20)
  traceback : Signal 9 (SIGKILL) received by PID 20
------------------------------------------------------------
Root Cause (first observed failure):
[1]:
  exitcode  : {0} (pid: 21)
  traceback : Signal {0} ({1}) received by PID 21
============================================================
"""


@pytest.mark.parametrize(
    ("number", "name", "option"), [(7, "SIGBUS", "resources.shared_memory"), (9, "SIGKILL", "resources.memory")]
)
def test_signal_that_a_rank_died_of_names_the_option(number: int, name: str, option: str) -> None:
    """The pod's own process is torchrun, which ends with exit code 1 and a frame around its last words."""
    log = TORCHRUN.format(number, name)
    error = failure(pod("m", ended=end(1, 1, log)))
    assert isinstance(error, UserError)
    assert "m: a process" in str(error) and f"signal {number}" in str(error) and option in str(error)


def test_rank_that_torchrun_itself_has_killed_is_not_the_cause() -> None:
    """It was stuck in a collective while torchrun ended the others; the one that failed first has spoken."""
    log = TORCHRUN.replace("traceback : Signal {0} ({1}) received by PID 21", "traceback : <N/A>").format(75, "")
    assert killing_signal(log.splitlines()) is None


def test_abort_is_worth_another_attempt() -> None:
    """NCCL's watchdog ends its process so, when another rank is lost or silent."""
    error = failure(pod("m", ended=end(1, 1, TORCHRUN.format(6, "SIGABRT"))))
    assert isinstance(error, RetryableError) and "signal 6" in str(error)


@pytest.mark.parametrize(("code", "reason"), [(137, "ContainerStatusUnknown"), (255, "Unknown")])
def test_container_that_was_lost_with_its_node_is_worth_another_attempt(code: int, reason: str) -> None:
    assert isinstance(failure(pod("m", ended=end(code, 1, reason=reason))), RetryableError)


def test_worker_whose_master_did_not_come_in_time_is_worth_another_attempt() -> None:
    """The operator's init container gives up after some minutes; the master may wait for a node."""
    waited = pod("w", initContainerStatuses=[{"name": "init-pytorch", "state": {"terminated": end(1, 1)}}])
    error = failure(waited)
    assert isinstance(error, RetryableError) and "first pod did not come in time" in str(error)


def test_sigbus_of_the_pods_own_process_names_the_option_too() -> None:
    assert "raise resources.shared_memory" in str(failure(pod("m", ended=end(135, 1))))


def test_killed_rank_is_found_in_the_log_where_its_peer_had_the_last_word() -> None:
    pods = [pod("m", ended=end(75, 1, f"75 {LOST_PEER} (gloo)")), pod("w", ended=end(75, 1, f"75 {LOST_PEER} (gloo)"))]
    error = reasons.unsaid(pods, "sft", {"m": [], "w": TORCHRUN.format(7, "SIGBUS").splitlines()})
    assert str(error).startswith("sft: w: a process died of signal 7")
    assert reasons.unsaid(pods, "sft", {"m": ["all is well"]}) is None


@pytest.mark.parametrize(
    ("volume", "option"), [("scratch", "resources.disk"), ("shared-memory", "resources.shared_memory")]
)
def test_pod_that_has_filled_its_own_volume_is_not_tried_again(volume: str, option: str) -> None:
    """The kubelet calls it an eviction, and the API server a disruption, as if the node were to blame."""
    disrupted = {"type": "DisruptionTarget", "status": "True", "message": "Usage of EmptyDir"}
    said = f'Usage of EmptyDir volume "{volume}" exceeds the limit "10Mi". '
    error = failure(pod("m", ended=end(137, 1), reason="Evicted", message=said, conditions=[disrupted]))
    assert isinstance(error, UserError)
    assert str(error) == f'sft: m: Usage of EmptyDir volume "{volume}" exceeds the limit "10Mi"; raise {option}'


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


def test_what_a_pod_waits_for() -> None:
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "1 Insufficient gpu."}
    assert reasons.pending([pod("w", conditions=[scheduled])], []) == "w: Unschedulable: 1 Insufficient gpu."
    pulling = pod("w", **waiting("ImagePullBackOff", "no such image"))
    assert reasons.pending([pulling], []) == "w: ImagePullBackOff: no such image"
    assert reasons.hopeless([pulling], []) == ""
    assert reasons.pending([pod("w", **waiting("ContainerCreating"))], []) == ""
    never = pod("w", **waiting("ErrImageNeverPull", "not present"))
    assert reasons.hopeless([never], []) == "w: ErrImageNeverPull: not present"


def test_latest_event_tells_where_there_is_no_pod_yet() -> None:
    def event(reason: str, second: int) -> dict[str, Any]:
        return {
            "type": "Warning", "reason": reason, "message": "quota", "lastTimestamp": f"2026-01-01T00:00:{second:02d}Z",
            "metadata": {}, "involvedObject": {"name": "job"},
        }  # fmt: skip

    assert reasons.pending([], [event("FailedCreatePod", 9), event("Older", 3)]) == "job: FailedCreatePod: quota"
    assert reasons.hopeless([], [event("FailedCreatePod", 9)]) == ""
    refused = event("FailedCreatePod", 9) | {"message": 'Error creating: Pod "x" is invalid: spec.tolerations'}
    assert "spec.tolerations" in reasons.hopeless([], [refused])


def test_running_is_only_when_every_pod_has_started() -> None:
    assert reasons.waits([pod("m", phase="Running"), pod("w", phase="Pending")], 2)
    assert reasons.waits([pod("m", phase="Running")], 2)
    assert not reasons.waits([pod("m", phase="Running"), pod("w", phase="Running")], 2)
