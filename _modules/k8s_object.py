"""
The few objects that a cluster needs from its installer, compared and applied through this node's API server.
"""

import json
import urllib.parse

from salt.exceptions import CommandExecutionError

FIELD_MANAGER = "kubernetes-controller-formula"


def differences(api, document):
    """
    Return how the cluster's object differs from ``document``: a dictionary of field to old and new, {} when it does not.

    api
        The row of kube-apiserver in the configuration's ``components``.
    document
        The object (dict). Fields that it does not name may have any value.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_object.differences "$ROW" '{"apiVersion": "v1", "kind": "Namespace", …}'
    """
    answer = __salt__["k8s_health.api"](api, _path(api, document))
    if answer["status"] == 404:
        return {"object": {"old": None, "new": _said(document)}}
    present = _parsed(answer, document)
    return {
        key: {"old": present.get(key), "new": value} for key, value in document.items() if not _covers(present.get(key), value)
    }


def apply(api, document):
    """
    Apply ``document`` by server-side apply (https://kubernetes.io/docs/reference/using-api/server-side-apply/).

    api, document
        See ``differences``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_object.apply "$ROW" '{"apiVersion": "v1", "kind": "Namespace", …}'
    """
    path = f"{_path(api, document)}?fieldManager={FIELD_MANAGER}&force=true"
    answer = __salt__["k8s_health.api"](
        api, path, method="PATCH", body=json.dumps(document), content_type="application/apply-patch+yaml"
    )
    _checked(answer, document)
    return True


def _path(api, document):
    """Return the API path of an object; the plural of its kind is asked of the API server."""
    version = document["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    kinds = _parsed(__salt__["k8s_health.api"](api, root), document).get("resources", [])
    plural = next((kind["name"] for kind in kinds if kind["kind"] == document["kind"] and "/" not in kind["name"]), None)
    if plural is None:
        raise CommandExecutionError(f"the API server knows no {document['kind']} in {version}")
    name, namespace = (urllib.parse.quote(str(document["metadata"].get(key) or ""), safe=":") for key in ("name", "namespace"))
    return f"{root}/{f'namespaces/{namespace}/' if namespace else ''}{plural}/{name}"


def _checked(answer, document):
    if answer["status"] not in (200, 201):
        raise CommandExecutionError(f"{_said(document)}: the API server said {answer['status']}: {answer['body'][:300]}")
    return answer["body"]


def _parsed(answer, document):
    """Return the object (dict) that the API server answered with."""
    text = _checked(answer, document)
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CommandExecutionError(f"{_said(document)}: the API server answered with something else: {text[:300]}")
    return found


def _said(document):
    return f"{document['kind']} {document['metadata']['name']}"


def _covers(present, wanted):
    if isinstance(wanted, dict):
        return isinstance(present, dict) and all(_covers(present.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):  # the API server completes items, too
        return isinstance(present, list) and len(present) == len(wanted) and all(map(_covers, present, wanted))
    return present == wanted
