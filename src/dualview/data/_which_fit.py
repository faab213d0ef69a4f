"""Which of a store's fits is meant: by its name, by a method, or by settings that tell it from the others."""

from __future__ import annotations

import ast
import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dualview.data._method import DataMethod, as_method
from dualview.engine.fingerprint import model_fingerprint
from dualview.engine.manifest import Manifest, as_json
from dualview.engine.store import Store
from dualview.engine.task import Task
from dualview.errors import DamagedFile, StoreError


class StoredFit(NamedTuple):
    """A fit as its file holds it.

    Attributes:
        folder: of the store, where its rows stand.
        name: of the file.
        tensors: state, positions and images.
        facts: what describes it.
        data_id: the user's own name for the training data.
        made: when the file was written, seconds since 1970.
    """

    folder: str
    name: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    data_id: str | None
    made: float

    @property
    def size(self) -> tuple[int, int]:
        """Count the training samples, and those that the fit saw."""
        num_train = self.facts["num_train"]
        return num_train, len(self.tensors.get("positions", range(num_train)))

    @property
    def described(self) -> str:
        """Say what tells it from other fits."""
        method, certificate = as_method(self.facts["method"]), self.facts["certificate"]
        num_train, num_fitted = self.size
        words = [f"{method!r} on {num_fitted} of {num_train} samples"]
        if "C" in certificate and getattr(method, "C", None) != certificate["C"]:
            words.append(f"chose C={certificate['C']:.3g}")
        if "held_out" in certificate:
            words.append(f"{certificate['held_out'] or 'none'} held out")
        if self.data_id is not None:
            words.append(f"data_id={self.data_id!r}")
        words.append(f"made {datetime.datetime.fromtimestamp(self.made):%Y-%m-%d %H:%M:%S}")
        return ", ".join(words)

    def has(self, wanted: DataMethod, settings: Sequence[str]) -> bool:
        """Tell whether its method has these settings of `wanted`; a C that it chose counts, as it is listed."""
        if self.facts["method"]["method"] != type(wanted).__name__:
            return False
        asked, mine = (as_json(each.describe()) for each in (wanted, as_method(self.facts["method"])))
        chosen = self.facts["certificate"].get("C") if mine.get("C") == "auto" else None
        return all(
            asked.get(name) == mine.get(name)
            or (name == "C" and chosen is not None and f"{chosen:.3g}" == f"{wanted.C:.3g}")  # type: ignore[attr-defined]
            for name in settings
        )


def whole_manifests(store: Store) -> tuple[dict[str, Manifest], list[DamagedFile]]:
    """Read every folder's manifest; a damaged one must not keep the others shut."""
    whole, damaged = {}, []
    for folder in store.keys():
        try:
            whole[folder] = store.manifest(folder)
        except DamagedFile as error:
            damaged.append(error)
    return whole, damaged


def chosen_fit(store: Store, manifests: Mapping[str, Manifest], method: DataMethod | str | None) -> StoredFit:
    """Find the one fit that is meant among those in these folders, which are all of one model.

    Raises:
        StoreError: there is none.
        ValueError: there are several.
        DamagedFile: its file was truncated or altered.
    """
    fits, damaged = [], []
    for folder, name in [(key, fit) for key in manifests for fit in store.fits(key)]:
        try:
            tensors, facts = store.load_fit(folder, name)
        except DamagedFile as error:
            damaged.append(DamagedFile(f"{error}: run dualview.fit with this store and this method once more"))
            if method in (name, f"{folder}/{name}"):
                raise damaged[-1] from error
            continue
        made = store.fit_file(folder, name).stat().st_mtime
        fits.append(StoredFit(folder, name, tensors, facts, manifests[folder].key.data_id, made))
    found = _meant(fits, method)
    if damaged and (method is None or not found):
        raise damaged[0]
    names = [fit.name for fit in fits]
    listed = "; ".join(f"{_called(fit.folder, fit.name, names)} ({fit.described})" for fit in fits)
    if not found:
        asked = "" if method is None else f" {method!r}"
        raise StoreError(f"the store at {store.root} has no fit{asked} of this model; it has: {listed or 'none'}")
    by_method = method is not None and not isinstance(method, str)
    if len(found) > 1 and not (by_method and len({fit.size for fit in found}) == len(found)):
        asked = "" if method is None else f", and {method!r} is {len(found)} of them"
        raise ValueError(
            f"the store at {store.root} holds {len(fits)} fits{asked}: say which with method= (--method on the command "
            f"line), a name or settings as 'DualView(C=0.01)'; there are {listed}"
        )
    return max(found, key=lambda fit: fit.size)


def newest_fit(store: Store, task: Task) -> tuple[str, int]:
    """Return the name of the fit of this model that was written last, and how many fits of it the store holds."""
    fingerprint = model_fingerprint(task.model)
    manifests, _ = whole_manifests(store)
    mine = [folder for folder, one in manifests.items() if one.key.model_fingerprint == fingerprint]
    fits = [(folder, name) for folder in mine for name in store.fits(folder)]
    folder, name = max(fits, key=lambda fit: store.fit_file(*fit).stat().st_mtime_ns)
    return _called(folder, name, [other for _, other in fits]), len(fits)


def _called(folder: str, name: str, names: Sequence[str]) -> str:
    """Return what a fit is called among those of these names: with its folder where two share one."""
    return name if names.count(name) == 1 else f"{folder}/{name}"


def _meant(fits: list[StoredFit], method: DataMethod | str | None) -> list[StoredFit]:
    """List the fits that a method, a name or a text of settings can mean."""
    if method is None:
        return fits
    if isinstance(method, str):
        named = [fit for fit in fits if method in (fit.name, f"{fit.folder}/{fit.name}")]
        read = None if named else _read(method)
        if read is None:
            return named
        wanted, settings = read
        having = [fit for fit in fits if fit.has(wanted, settings)]
    else:
        wanted, having = method, fits
    whole = [fit for fit in having if fit.facts["method"] == as_json(wanted.describe())]
    return whole if whole or not isinstance(method, str) else having


def _read(text: str) -> tuple[DataMethod, list[str]] | None:
    """Read a method and the names of the settings that were given; None where the text is no method.

    Raises:
        ValueError: a setting is no plain value.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None
    return _method_of(node)


def _method_of(node: ast.expr) -> tuple[DataMethod, list[str]] | None:
    import dualview.data as view  # lists all methods, and is made of this file too

    called = node.func if isinstance(node, ast.Call) else node
    if not isinstance(called, ast.Name) or called.id not in view.__all__:
        return None
    words = node.keywords if isinstance(node, ast.Call) else []
    if isinstance(node, ast.Call) and (node.args or any(word.arg is None for word in words)):
        raise ValueError(f"`method` is {ast.unparse(node)!r}; expected settings with names, as 'DualView(C=0.01)'")
    settings = {str(word.arg): _value(word.value) for word in words}
    return as_method({"method": called.id, **settings}), list(settings)


def _value(node: ast.expr) -> Any:
    nested = _method_of(node)
    if nested is not None:
        return nested[0]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"`method` holds {ast.unparse(node)!r}; expected a plain value or a method") from None
