"""Certificates of forgetting: what was taken out of a state, and a check that it is not there.

A certificate names the class, so no byte of it is in the state: that keeps a hash of it in its history, which tells
nothing without the certificate, since that holds a random number. Samples are named by hashes with that number too.
"""
from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgecl import __version__
from edgecl.errors import BadInput
from edgecl.files.forms import COUNT, have_forms
from edgecl.settings import counted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from edgecl.learning.knowledge import Knowledge
    from edgecl.learning.repository import Repository
    from edgecl.state.generations import Generation

VERSION = 1
FORM = {"edgecl_certificate": COUNT, "edgecl": str, "state": str, "generation": COUNT, "time": str, "action": str,
        "removed": dict, "before": dict, "after": dict, "exact": bool, "remains": [str], "nonce": str}
REMOVED = {"class": str, "samples": COUNT, "stored": COUNT, "in_other_classes": COUNT}
CURE = "give the file that `edgecl forget --certificate FILE` wrote"
TUNED = "the backbone may have been tuned on samples of the class, and stays as it is"
PROVES = ("This state is the one that the certificate names, it has recorded the forgetting, and what it knows now "
          "holds none of the samples that were removed.")
NO_MORE = "Only what is marked ✓ is proven: the state can't tell the rest any more."
APPROXIMATE = "It does not prove that nothing is left of them: the certificate itself says what remains."
NOT_PROVEN = ("It can't tell of copies: backups, exported models and samples, states that were merged from this one, "
              "and whatever was printed or logged before. A state can only show its own record, which its owner could "
              "have made up together with the certificate.")


def drafted(repository: Repository, knowledge: Knowledge, label: str) -> dict[str, Any]:
    """The certificate of a forgetting that is about to begin, as far as it can be written."""
    nonce, keys, elsewhere, removed = secrets.token_bytes(16), list[int](), set[int](), None
    if knowledge.gaussians is None:
        names, every = knowledge.known.all()
        for name, key in zip(names, every.tolist()):
            if name == label:
                keys.append(key)
            else:
                elsewhere.add(key)
        removed = sorted({salted(key, nonce) for key in keys if key not in elsewhere})
    return {"edgecl_certificate": VERSION, "edgecl": __version__, "state": repository.store.meta["id"], "generation": 0,
            "time": "", "action": "forget",
            "removed": {"class": label, "samples": knowledge.plain.counts[label],
                        "stored": sum(row.label == label for row in knowledge.stored) if removed is not None else 0,
                        "hashes": removed, "in_other_classes": sum(key in elsewhere for key in keys)},
            "before": {"generation": repository.store.current, **_hashes(knowledge)},
            "after": {}, "exact": False, "remains": [], "nonce": nonce.hex()}


def completed(draft: dict[str, Any], knowledge: Knowledge, exact: bool, tuned: bool, remains: str) -> dict[str, Any]:
    """The same once the class is forgotten, but not on the disk yet. exact: whether nothing is left of it; tuned:
    whether a backbone may have seen it; remains: of it in the statistics, in words."""
    why = [*filter(None, [remains if not exact else "", TUNED if tuned else ""])]
    return {**draft, "exact": exact, "remains": why,
            "after": {"keys": _hashes(knowledge)["keys"], "classes": len(knowledge.labels),
                      "samples": knowledge.plain.total}}


def issued(certificate: dict[str, Any], generation: Generation) -> dict[str, Any]:
    """The same with what only the generation that did it can tell."""
    return {**certificate, "generation": generation.id, "time": generation.created,
            "after": {"statistics": _statistics(generation), **certificate["after"]}}


def digest(certificate: dict[str, Any]) -> str:
    """What a state keeps of a certificate: a hash of all that its generation does not tell itself."""
    part = {**certificate, "after": {key: value for key, value in certificate["after"].items() if key != "statistics"}}
    for name in ("generation", "time"):
        del part[name]
    text = json.dumps(part, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"certificate").hexdigest()


def salted(key: int, nonce: bytes) -> str:
    """The hash by which a certificate names a sample. key: of `samples.sample_keys`."""
    return hashlib.blake2b(key.to_bytes(8, "big"), digest_size=8, key=nonce).hexdigest()


def _hashes(knowledge: Knowledge) -> dict[str, str | None]:
    """Hashes of what is known: of the statistics as they would be written, and of the keys of all samples by class;
    None if none are kept."""
    keys = None
    if knowledge.gaussians is None:
        names, every = knowledge.known.all()
        lines = sorted(f"{name}\t{key:016x}\n" for name, key in zip(names, every.tolist()))
        keys = hashlib.sha256("".join(lines).encode()).hexdigest()
    return {"statistics": hashlib.sha256(knowledge.snapshot()).hexdigest(), "keys": keys}


def _statistics(generation: Generation) -> str | None:
    """The SHA-256 of a generation's statistics, by which their file is named; None if it has none any more."""
    return None if generation.snapshot is None else generation.snapshot.partition(".")[0]


# checking ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CertificateFinding:
    """One thing that was checked. ok: True if it holds, False if not, None if it can't be told."""

    what: str
    ok: bool | None
    text: str


@dataclass
class CheckedCertificate:
    """A certificate against a state. exact: what the certificate says."""

    label: str
    generation: int
    exact: bool
    findings: list[CertificateFinding] = field(default_factory=list)

    def add(self, what: str, ok: bool | None, text: str) -> None:
        """Add a finding."""
        self.findings.append(CertificateFinding(what, ok, text))

    @property
    def valid(self) -> bool:
        """Whether nothing contradicts it."""
        return all(each.ok is not False for each in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As a dict."""
        proven = all(each.ok for each in self.findings)
        proves = [PROVES if proven else NO_MORE, *([] if self.exact else [APPROXIMATE])]
        return {"class": self.label, "generation": self.generation, "valid": self.valid, "exact": self.exact,
                "findings": [{"check": each.what, "ok": each.ok, "text": each.text} for each in self.findings],
                "proves": proves if self.valid else [],
                "does_not_prove": [NOT_PROVEN]}


def read_certificate(path: Path) -> dict[str, Any]:
    """A certificate from its file. Raises BadInput."""
    from edgecl.files.regular import read_regular

    try:
        found: dict[str, Any] = json.loads(read_regular(path))
    except OSError as error:
        raise BadInput(f"{path} can't be read ({error.strerror})", CURE) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON ({error})", CURE) from error
    if not (have_forms(found, FORM) and FORM.keys() <= found.keys()
            and have_forms(found["removed"], REMOVED) and REMOVED.keys() <= found["removed"].keys()):
        raise BadInput(f"{path} is not a certificate of edgecl", CURE)
    hashes = found["removed"].get("hashes")
    if found["edgecl_certificate"] != VERSION:
        raise BadInput(f"{path} is a certificate of form {found['edgecl_certificate']}, this edgecl reads {VERSION}",
                       "check it with the edgecl that wrote it")
    try:
        whole = len(bytes.fromhex(found["nonce"])) == 16
    except ValueError:
        whole = False
    shown = all(text.isprintable() for text in (found["state"], found["time"], *found["remains"]))
    if not (whole and shown) or not (hashes is None or have_forms({"hashes": hashes}, {"hashes": [str]})):
        raise BadInput(f"{path} is not a certificate of edgecl", CURE)
    return found


def check_certificate(repository: Repository, certificate: dict[str, Any]) -> CheckedCertificate:
    """Check a certificate of `read_certificate` against a state. Raises StateError if the state can't be read."""
    store, number = repository.store, certificate["generation"]
    done = CheckedCertificate(certificate["removed"]["class"], number, certificate["exact"])
    with store.reading():
        if certificate["state"] != store.meta["id"]:
            done.add("state", False, f"it is of state {certificate['state']}, and this is state {store.meta['id']}")
            return done
        done.add("state", True, f"it is of this state, {store.meta['id']}")
        every = store.generations()
        known = None if repository.foundation is None else repository.known()
        _check_generation(done, certificate, every, store.current)
        if known is not None:
            _check_knowledge(done, certificate, known, every, store.current)
    return done


def _check_generation(done: CheckedCertificate, certificate: dict[str, Any], every: list[Generation],
                      current: int) -> None:
    """Whether the history has the forgetting, as the certificate says it."""
    number = done.generation
    own = next((g for g in every if g.id == number), None)
    if own is None and current < number:
        done.add("history", False, f"this state is at generation {current}, and the class was forgotten at {number}: "
                 "it is a copy from before, and may know the class")
        return
    if own is None:
        done.add("history", None, f"generation {number} is not in the history any more, which names the last ones "
                 "only: whether the certificate was changed can't be told")
        return
    if own.action != "forget" or own.undone or own.created != certificate["time"]:
        done.add("history", False, f"generation {number} of this state is {own.action} at {own.created}, and not the "
                 f"forgetting at {certificate['time']}")
        return
    done.add("history", True, f"generation {number} of this state is the forgetting, {own.created}")
    kept = own.detail.get("certificate")
    if kept is None:
        done.add("certificate", False, f"no certificate was written of generation {number}")
    else:
        same = kept == digest(certificate)
        done.add("certificate", same, "it is as it was written" if same else "it was changed after it was written")
    statistics, after = _statistics(own), certificate["after"].get("statistics")
    if statistics is None:
        done.add("statistics", None, "the statistics of then are not stored any more, so their hash can't be compared")
    else:
        done.add("statistics", statistics == after, "the statistics after it have the hash that it names"
                 if statistics == after else "the statistics after it have another hash than it names")


def _check_knowledge(done: CheckedCertificate, certificate: dict[str, Any], known: Knowledge, every: list[Generation],
                     current: int) -> None:
    """Whether what is known now can be what was left, and holds nothing that was removed."""
    number, label = done.generation, done.label
    later = [g for g in every if g.id > number and not g.undone]
    if current == number:
        same = certificate["after"].get("keys") == _hashes(known)["keys"]
        done.add("since", same, "nothing has changed since: the samples known now are those that were left" if same else
                 "nothing has changed since, but the samples known now are not those that were left")
    else:
        done.add("since", True if later else None, f"{counted(len(later), 'later change')}: {_actions(later)}")
    taught = [g for g in later if g.action in ("learn", "merge", "move", "rename")]
    again = [g for g in taught if g.detail.get("class") == label or g.action == "merge"]
    if label in known.labels:
        done.add("class", bool(again), f"a class called {label!r} is known: it was taught again by generation "
                 f"{again[0].id}" if again else f"a class called {label!r} is known, and was not taught again")
    else:
        done.add("class", True, f"no class is called {label!r}")
    hashes = certificate["removed"].get("hashes")
    if hashes is None or known.gaussians is not None:
        done.add("samples", None, "this state keeps no hashes of samples, and no samples")
        return
    _check_samples(done, {*hashes}, bytes.fromhex(certificate["nonce"]), known, taught)
    count = certificate["removed"]["samples"] - certificate["removed"]["in_other_classes"] - len(hashes)
    if count > 0:
        done.add("unlisted", None, f"{counted(count, 'removed sample')} can't be looked for: repeated, or their hashes "
                 "were not kept any more")


def _check_samples(done: CheckedCertificate, removed: set[str], nonce: bytes, known: Knowledge,
                   taught: list[Generation]) -> None:
    """Whether samples that were removed are known or stored. taught: generations since that may have taught them."""
    stored: dict[str, int] = {}
    for row in known.stored:
        name = salted(row.key, nonce)
        if name in removed:
            stored[name] = min(stored.get(name, row.generation or 0), row.generation or 0)
    _, keys = known.known.all()
    here = {*stored, *({salted(key, nonce) for key in keys.tolist()} & removed)}
    old = sum(generation <= done.generation for generation in stored.values())
    if not here:
        done.add("samples", True, f"of {counted(len(removed), 'removed sample')} none is known or stored")
    elif old or not taught:
        done.add("samples", False, f"{counted(old or len(here), 'sample')} that were removed are still "
                 f"{'stored' if old else 'known'}")
    else:
        done.add("samples", None, f"{counted(len(here), 'sample')} that were removed are known: they were taught again "
                 f"since, see the history from generation {taught[0].id} on")


def _actions(generations: Iterable[Generation]) -> str:
    """What some generations did, in words."""
    counts: dict[str, int] = {}
    for g in generations:
        counts[g.action] = counts.get(g.action, 0) + 1
    return ", ".join(f"{count} x {action}" if count > 1 else action for action, count in counts.items()) or "none"
