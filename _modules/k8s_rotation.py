"""
The rotation of a CA or of the service-account key, on the master: three steps, each a change of files and a rollout.

``trust``: beside the present pair there is the next one, and what is handed to minions as the CA is both. ``sign``: the
next is the present one, the former is trusted still, and servers show to those who trust the former one only that it
vouched for the new one (``cross``). ``drop``: the former is handed out no more. A small file beside the
pair (``NAME.rotation``) says at which step it stands. It is written first, in one rename, and ``settle`` brings the other
files to it from whatever a run that was cut off has left. So each run of ``k8s_pki.make`` goes on with what is begun, and
a rollout at any moment is a right one.
"""

import datetime
import os
import re

import salt.utils.files
import yaml
from salt.exceptions import CommandExecutionError

STEPS = ("trust", "sign", "drop")
SERVICE_ACCOUNT = "service-account"
SAID = {
    "trust": "the next one is trusted everywhere beside the present one, which signs",
    "sign": "the new one signs, the former one is trusted still",
    "drop": "the former one is trusted no more",
}


def plan(pki, authority=None, until=None):
    """
    Return what a run of a rotation has to do: ``names``, ``steps`` (those left; after the last one ``end``), ``begins``
    (bool), and ``fault`` (str).

    pki
        The key ``pki`` of the cluster's resolved configuration.
    authority
        Name of a CA (str), several (list), or ``all`` for each that the master made; ``service-account`` for that key.
    until
        The last step to take: ``trust`` or ``sign`` (default: all).

    A rotation that was cut off goes on with the rollout of the step at which it stands. ``fault`` is the sentence for the
    operator when nothing can be done, "" otherwise.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_rotation.plan "$PKI" kubernetes until=trust
    """
    asked = [authority] if isinstance(authority, str) else authority
    if asked == ["all"]:
        asked = [name for name in managed(pki) if name != SERVICE_ACCOUNT]
    fault = _fault(pki, asked, until)
    if fault:
        return {"names": [], "steps": [], "begins": False, "fault": fault}
    names = list(dict.fromkeys(asked))
    try:
        at = [_step(pki["directory"], name) for name in names]
    except CommandExecutionError as exc:
        return {"names": [], "steps": [], "begins": False, "fault": str(exc)}
    first = min(_number(step) or 1 for step in at)
    steps = STEPS[first - 1 : _number(until)] if until else (*STEPS[first - 1 :], "end")
    return {"names": names, "steps": list(steps), "begins": None in at, "fault": ""}


def managed(pki):
    """
    Return the names of what can be rotated: the CAs that the master made, and ``service-account`` where it made that key.

    pki
        See ``plan``.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_rotation.managed "$PKI"
    """
    names = [name for name, row in pki["authorities"].items() if row["managed"] and row.get("enabled", True)]
    return names + [SERVICE_ACCOUNT] * bool(pki["service_account"]["managed"])


def status(directory):
    """
    Return where each rotation that is under way stands, in words: {name: sentence}; {} when there is none. Of one that cannot
    be read the sentence says what to do.

    directory
        The directory of certificates on the master.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_rotation.status /srv/kubernetes_controller/pki
    """
    found = {}
    for name in _under_way(directory):
        try:
            mark = _mark(directory, name)
            found[name] = f"{said(name, mark['step'])} Since {mark['since']}, begun {mark['begun']}."
        except CommandExecutionError as exc:
            found[name] = str(exc)
    return found


def said(name, step):
    """
    Return the sentence that says at which step a rotation stands.

    name, step
        Of the CA (or ``service-account``), and ``trust``, ``sign``, ``drop`` or ``end``.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_rotation.said kubernetes trust
    """
    what = "service-account key" if name == SERVICE_ACCOUNT else f"{name} CA"
    if step == "end":
        return f"{what}: rotated."
    return f"{what}: step {_number(step)} of {len(STEPS)}, {step}: {SAID[step]}."


def differences(pki, names, step):
    """
    Return which of the rotations are not at ``step`` or beyond it: {name: {"old": step or None, "new": step}}.

    pki
        See ``plan``.
    names
        Of CAs, or ``service-account`` (list).
    step
        ``trust``, ``sign``, ``drop``, or ``end`` when the last rollout is done.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_rotation.differences "$PKI" '["kubernetes"]' trust
    """
    found = {}
    for name in names:
        old = _step(pki["directory"], name)
        if (step == "end" and old) or (step != "end" and _number(old) < _number(step)):
            found[name] = {"old": old, "new": step}
    return found


def advance(pki, names, step):
    """
    Bring rotations to ``step``: first the file that says so, then the pair's files. Returns what ``differences`` does.

    pki, names, step
        See ``differences``.

    Raises CommandExecutionError when a step would be left out, or a file that it needs is lost; then nothing is changed.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_rotation.advance "$PKI" '["kubernetes"]' trust
    """
    with __salt__["k8s_kept.locked"](pki["directory"]):
        found = differences(pki, names, step)
        for name, change in found.items():
            _refuse(pki, name, change["old"], step)
        for name in found:
            files = _files(pki["directory"], name)
            if step == "end":
                os.unlink(files["mark"])
                continue
            now = _now()
            begun = (_mark(pki["directory"], name) or {"begun": now})["begun"]
            __salt__["k8s_kept.write"](files["mark"], yaml.safe_dump({"step": step, "since": now, "begun": begun}))
            settle(pki, name)
    return found


def pending(pki, name):
    """
    Return which files of a pair are not as the step of its rotation asks: {path: why}; {} when none or there is no rotation.

    pki, name
        See ``differences``.

    Raises CommandExecutionError when a file that the step needs is lost.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_rotation.pending "$PKI" kubernetes
    """
    return {path: why for path, why, _ in _moves(pki, name)}


def settle(pki, name):
    """
    Bring the files of a pair to the step at which its rotation stands. Returns what ``pending`` did.

    pki, name
        See ``differences``.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_rotation.settle "$PKI" kubernetes
    """
    done = {}
    for path, why, act in _moves(pki, name):
        act()
        done[path] = why
    return done


def chain(pki, name):
    """
    Return the path of what is shown after each certificate of a CA, or None; only while the new one signs already.

    pki, name
        See ``differences``.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_rotation.chain "$PKI" kubernetes
    """
    if _step(pki["directory"], name) != "sign":
        return None
    files = _files(pki["directory"], name)
    if os.path.exists(files["cross"]):
        return files["cross"]
    if __salt__["k8s_pki.has_ended"](files["former" if os.path.exists(files["former"]) else "public"]):
        return None  # nobody trusts the former one
    raise _lost(files["cross"])


# -- the moves: (path, why, function that does it), judged when the ones before it are done ----------------------------


def _moves(pki, name):
    files, step = _files(pki["directory"], name), _step(pki["directory"], name)
    beside = [files[what] for what in ("next_key", "next_public", "former", "cross") if os.path.exists(files[what])]
    if step is None and beside:
        raise CommandExecutionError(
            f"{files['mark']} is lost, while {beside[0]} of a rotation exists. Restore it from a backup, or write into it "
            f"`step: {_guessed(files)}`, and run this again."
        )
    if step == "trust":
        yield from _make_next(pki, name, files)
    elif step == "sign":
        yield from _exchange(pki, files)
    elif step == "drop":
        if os.path.exists(files["cross"]):
            yield files["cross"], "shown no more", lambda: os.unlink(files["cross"])
        if os.path.exists(files["former"]):
            yield files["former"], "trusted no more", lambda: _drop(pki, files)


def _guessed(files):
    """Return the step at which a rotation stands by its files alone."""
    if os.path.exists(files["next_key"]):
        return "trust"
    return "sign" if os.path.exists(files["next_public"]) or os.path.exists(files["former"]) else "drop"


def _make_next(pki, name, files):
    if not os.path.exists(files["next_key"]):
        if os.path.exists(files["next_public"]):
            raise _lost(files["next_key"])
        yield files["next_key"], "a rotation begins", lambda: __salt__["k8s_pki.make_key"](pki, files["next_key"])
    if not os.path.exists(files["next_public"]):
        yield files["next_public"], "a rotation begins", lambda: _write_public(pki, name, files)
    crossed = _keys(files["cross"])
    stale = crossed is None or crossed != _keys(files["next_public"])
    if name != SERVICE_ACCOUNT and stale and not __salt__["k8s_pki.has_ended"](files["public"]):
        yield files["cross"], "a rotation begins", lambda: _write_cross(pki, name, files)


def _exchange(pki, files):
    """
    The former certificate first finds its place, then the key is exchanged, then its other half.

    While the next key is there under its name, the present pair is whole and the former one; without it, only the other
    half is left to follow.
    """
    if os.path.exists(files["next_public"]):
        if os.path.exists(files["next_key"]):
            if _text(files["former"]) != _text(files["public"]):
                yield files["former"], "signs no more", lambda: _copy(files["public"], files["former"])
            yield files["key"], "exchanged", lambda: _replace(pki, files["next_key"], files["key"])
        yield files["public"], "exchanged", lambda: _replace(pki, files["next_public"], files["public"])
    elif not os.path.exists(files["former"]):
        raise _lost(files["former"])


def _write_public(pki, name, files):
    __salt__["k8s_kept.write"](files["next_public"], __salt__["k8s_pki.public_half"](pki, name, files["next_key"]))


def _write_cross(pki, name, files):
    pair = (os.path.splitext(files[key])[0] for key in ("key", "next_key"))
    __salt__["k8s_kept.write"](files["cross"], __salt__["k8s_pki.cross_half"](pki, name, *pair))


def _copy(source, target):
    __salt__["k8s_kept.write"](target, _text(source))


def _replace(pki, source, target):
    __salt__["k8s_kept.keep"](pki["directory"], target)
    __salt__["k8s_kept.move"](source, target)


def _drop(pki, files):
    name = os.path.relpath(files["public"], pki["directory"])
    __salt__["k8s_kept.keep"](pki["directory"], files["former"], name=name)
    os.unlink(files["former"])


def _lost(path):
    return CommandExecutionError(
        f"{path} is lost, while a rotation needs it. Restore it from a backup, or from what is kept of it (docs/operations.md)."
    )


# -- where a rotation stands ------------------------------------------------------------------------------------------


def _files(directory, name):
    if name == SERVICE_ACCOUNT:
        base, half = f"{directory}/shared/{name}", "pub"
    else:
        base, half = f"{directory}/authorities/{name}-ca", "crt"
    return {
        "key": f"{base}.key",
        "public": f"{base}.{half}",
        "next_key": f"{base}.next.key",
        "next_public": f"{base}.next.{half}",
        "former": f"{base}.former.{half}",
        "cross": f"{base}.cross.{half}",
        "mark": f"{base}.rotation",
    }


def _under_way(directory):
    """Return the names of the rotations that are under way."""
    found = []
    for place, pattern in (("authorities", r"(.+)-ca\.rotation"), ("shared", rf"({SERVICE_ACCOUNT})\.rotation")):
        path = os.path.join(directory, place)
        files = sorted(os.listdir(path)) if os.path.isdir(path) else []
        found += [match[1] for match in map(re.compile(pattern).fullmatch, files) if match]
    return found


def _mark(directory, name):
    files = _files(directory, name)
    try:
        text = _text(files["mark"])
        if text is None:
            return None
        mark = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        mark = None
    if not isinstance(mark, dict) or mark.get("step") not in STEPS:
        raise CommandExecutionError(
            f"{files['mark']}: expected a step ({', '.join(STEPS)}). Restore it from a backup, or write into it, and nothing "
            f"else, step: {_guessed(files)}"
        )
    return {"since": "?", "begun": "?", **mark}


def _step(directory, name):
    mark = _mark(directory, name)
    return mark and mark["step"]


def _number(step):
    return STEPS.index(step) + 1 if step in STEPS else 0


def _refuse(pki, name, old, step):
    """Raise where ``step`` may not follow: one was left out, or what it needs is not there."""
    files = _files(pki["directory"], name)
    if name not in managed(pki):
        raise CommandExecutionError(_fault(pki, [name], None))
    if _number(old) + 1 != (len(STEPS) + 1 if step == "end" else _number(step)):
        raise CommandExecutionError(f"{name}: {step} does not follow {old or 'no rotation'}; the steps are {', '.join(STEPS)}.")
    needed = {"trust": ("key", "public"), "sign": ("next_key", "next_public")}.get(step, ())
    for path in (files[what] for what in needed):
        if not os.path.exists(path):
            raise CommandExecutionError(f"{path} is not there, so there is nothing to rotate. Is the cluster rolled out?")
    if step == "trust":
        pending(pki, name)
        __salt__["k8s_pki.public_half"](pki, name, files["key"])  # what cannot be made is told before the mark is written
        if name != SERVICE_ACCOUNT and not __salt__["k8s_pki.has_ended"](files["public"]):
            present = os.path.splitext(files["key"])[0]
            __salt__["k8s_pki.cross_half"](pki, name, present, present)


def _fault(pki, asked, until):
    """Return why what is asked for cannot be rotated, or ""."""
    valid = f"It can be {', '.join(managed(pki)) or 'none here'}; several in a list; or all, for every CA."
    if not asked or not isinstance(asked, list):
        return f'Say which CA to rotate: pillar=\'{{"authority": "kubernetes"}}\'. {valid}'
    for name in asked:
        row = pki["authorities"].get(name) if isinstance(name, str) else None
        if name in managed(pki):
            continue
        if name == SERVICE_ACCOUNT or (row and not row["managed"]):
            return f"{name} is not made by this master but brought (pki in the pillar), so it is yours to rotate. {valid}"
        if row:
            return f"The {name} CA is switched off (kubernetes_controller:pki:authorities:{name}:enabled). {valid}"
        return f"There is no CA {name!r} to rotate. {valid}"
    if until not in (None, *STEPS[:-1]):
        return f"until is {until!r}, expected {' or '.join(STEPS[:-1])}, or nothing to go to the end."
    return ""


def _keys(path):
    """Return the public keys of a file; None where there is no file."""
    text = _text(path)
    return None if text is None else __salt__["k8s_certificate.public_keys"](text)


def _text(path):
    try:
        with salt.utils.files.fopen(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def _now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
