"""What a launcher may do in its namespace: this and nothing more. `infra/kubernetes/launcher.yaml` grants it."""

from components.core.errors import UserError
from components.launch.cluster.api import Api

Rules = dict[tuple[str, str], tuple[str, ...]]

_CORE: Rules = {
    ("", "pods"): ("get", "list", "watch"),
    ("", "pods/log"): ("get",),
    ("", "events"): ("list", "watch"),
}
_JOBS = ("create", "delete", "get", "list", "patch", "watch")


def needed(group: str, plural: str) -> Rules:
    """(API group, resource) -> verbs, for jobs of one kind."""
    return {(group, plural): _JOBS} | _CORE


def check(api: Api, rules: Rules) -> None:
    """Raises UserError that names every verb that is missing, before anything is begun."""
    missing = []
    for (group, resource), verbs in rules.items():
        plural, _, subresource = resource.partition("/")
        denied = [verb for verb in verbs if not _allowed(api, group, plural, subresource, verb)]
        if denied:
            missing.append(f"{', '.join(denied)} {resource}" + (f" ({group})" if group else ""))
    if missing:
        raise UserError(
            f"not permitted in namespace {api.namespace} to {'; '.join(missing)}",
            fix="give the launcher's service account the Role in infra/kubernetes/launcher.yaml",
        )


def _allowed(api: Api, group: str, resource: str, subresource: str, verb: str) -> bool:
    asked = {
        "namespace": api.namespace, "group": group, "resource": resource, "subresource": subresource, "verb": verb,
    }  # fmt: skip
    body = {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }  # fmt: skip
    answer = api.call("create", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
    return bool(answer["status"]["allowed"])
