"""Who is compared: each peer, and beside it what of ours computes the same or the next to it."""

from collections.abc import Callable
from functools import partial

import dualview as dv
from benchmarks.peers import gradient_peers, stored_peers
from benchmarks.peers.peer import Peer, Started
from dualview.evaluation.contenders import Contender, Method, contender

LAST_LAYER = {"digits-cnn": "9"}  # by task; of the others "3"


def contenders(task: str) -> dict[str, Contender]:
    """Return all of them by name, in the order of the tables: ours bare, peers with their library's name."""
    named = [contender(one) if isinstance(one, str) else one for one in _rows(LAST_LAYER.get(task, "3"))]
    return {one.name: one for one in named if isinstance(one, Contender)}


def _rows(last_layer: str) -> list[str | Contender]:
    return [
        "random",
        _peer("dualxda DualDA (C=1.0)", stored_peers.dualxda),
        "DualView(C=1.0)",
        _peer("dualxda DualDA, C=0.001", stored_peers.dualxda, C=1e-3),
        "DualView(C=0.001)",
        "DualView",
        _peer("captum TracInCP", gradient_peers.captum_tracin),
        _peer("dattri TracInAttributor (512)", gradient_peers.dattri_tracin),
        "TracIn",
        _peer("captum TracInCPFast", gradient_peers.captum_tracin_fast),
        Method(dv.TracIn(parameters=last_layer), "TracIn, last layer"),
        "LastLayerInfluence",
        Peer("captum SimilarityInfluence (cosine)", stored_peers.captum_similarity, "similarity"),
        "FeatureSimilarity(metric='cosine')",
        "FeatureSimilarity",
        _peer("captum ArnoldiInfluenceFunction", gradient_peers.captum_arnoldi),
        _dattri("Arnoldi"),
        _dattri("Arnoldi", proj_dim=20),
        "Arnoldi",
        _dattri("CG", max_iter=10, regularization=0.01),
        "Influence",
        _dattri("DataInf", regularization=0.01),
        "DataInf",
        _peer("traker, proj_dim=512", stored_peers.traker, proj_dim=512),
        _peer("dattri TRAKAttributor (512)", gradient_peers.dattri_trak),
        "TRAK(projection=512)",
        _peer("traker (2048)", stored_peers.traker),
        _peer("traker (2048), lambda_reg=1", stored_peers.traker, lambda_reg=1.0),
        "TRAK",
        _peer("kronfluence EK-FAC (damping 1e-8)", stored_peers.kronfluence),
        _peer("kronfluence EK-FAC, damping_factor=0.001", stored_peers.kronfluence, damping_factor=1e-3),
        _peer("kronfluence EK-FAC, damping_factor=None", stored_peers.kronfluence, damping_factor=None),
        _dattri("EKFAC"),
        _dattri("EKFAC", damping=0.01),
        "EKFAC",
        "KernelInfluence",
        "ForwardInfluence",
    ]


def _peer(label: str, start: Callable[..., Started], **settings: float | None) -> Peer:
    return Peer(label, partial(start, **settings))


def _dattri(solver: str, **settings: float) -> Peer:
    changed = "".join(f", {name}={value}" for name, value in settings.items())
    return _peer(
        f"dattri IFAttributor{solver}{changed}", partial(gradient_peers.dattri_influence, solver=solver), **settings
    )
