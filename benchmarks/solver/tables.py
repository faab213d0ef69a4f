"""Rows of the benchmark as tables, and the goals judged by them."""

from benchmarks.__main__ import table
from benchmarks.solver.contenders import CAP, PATH_GAP
from benchmarks.solver.features import SETS
from benchmarks.solver.turns import FIT

RIVALS = FIT[1:]


def write(rows: list[dict], num_runs: int) -> str:
    """Return all tables of which there are rows."""
    parts = [
        ("Goals", goals(rows)),
        ("Seconds and quality", [seconds(row, num_runs) for row in rows if row["part"] == "fit"]),
        ("Memory and support", [memory(row) for row in rows if row["part"] == "fit"]),
        ("Path of five C", [path(row) for row in rows if row["part"] == "path"]),
        ("Two threads", [threads(row) for row in rows if row["part"] == "threads"]),
    ]
    return "\n\n".join(f"## {title}\n\n{table(lines)}" for title, lines in parts if lines)


def seconds(row: dict, num_runs: int) -> dict:
    ours, features = row["ours"], SETS[row["features"]]
    line = {"features": f"{row['features']}: {features.title}", "role": features.role, "C": row["C"]}
    line["ours, s"] = _time(ours, num_runs)
    if "stopped" in ours:
        line |= {"regime": "–", "gap": "–"}
    else:
        ended = "" if ours["status"] == "converged" else f" ({ours['status']})"
        line |= {"regime": ours["regime"], "gap": f"{ours['gap']:.1e}{ended}"}
    for rival in RIVALS:
        found = row.get(rival)
        line[f"{rival}, s"] = "–" if found is None else _time(found, num_runs)
        known = found is not None and "primal" in found and "dual" in ours
        line[f"{rival}, quality"] = f"{(found['primal'] - ours['dual']) / found['primal']:.1e}" if known else "–"
    ratio = speedup(row)
    line["fork / ours"] = "–" if ratio is None else _at_least(row["fork"]) + f"{ratio:.1f}"
    return line


def memory(row: dict) -> dict:
    line = {"features": row["features"], "C": row["C"]}
    for name in FIT[:3]:
        line[f"{name}, MiB"] = f"{row[name]['MiB']:.0f}" if "MiB" in row.get(name, {}) else "–"
    for name in FIT[:2]:
        line[f"{name}, support"] = f"{row[name]['support']:.1%}" if "support" in row.get(name, {}) else "–"
    return line


def path(row: dict) -> dict:
    return {
        "features": row["features"],
        "role": SETS[row["features"]].role,
        "path, s": _figure(row["path"], "seconds"),
        "last alone, s": _figure(row["path end"], "seconds"),
        "path / last": _ratio(row["path"], row["path end"], "seconds"),
        "largest gap": _figure(row["path"], "gap", ".1e"),
    }


def threads(row: dict) -> dict:
    one, two = row["1 threads"], row["2 threads"]
    return {
        "features": row["features"],
        "C": row["C"],
        "one thread, wall s": _figure(one, "wall"),
        "two threads, wall s": _figure(two, "wall"),
        "two / one": _ratio(two, one, "wall"),
    }


def speedup(row: dict) -> float | None:
    """Return the fork's seconds in units of ours; of a fork that was stopped, the seconds it had had."""
    if "fork" not in row or "stopped" in row["ours"]:
        return None
    return row["fork"].get("seconds", CAP) / row["ours"]["seconds"]


def goals(rows: list[dict]) -> list[dict]:
    """Return each goal with what was measured, as far as it was."""
    fits = {(row["features"], row["C"]): row for row in rows if row["part"] == "fit" and "fork" in row}
    wanted = [("goal", 3.5, name, C) for name in ("d192", "d512") for C in (1e-5, 1e-3)]
    wanted += [("goal", 20, "d192", 0.1), ("goal", 20, "d192", 1.0), ("goal", 8, "d512", 0.1)]
    wanted += [("aim", 10, "kh100", C) for C in SETS["kh100"].C_values]
    found = []
    for kind, goal, name, C in wanted:
        if (name, C) in fits:
            row = fits[name, C]
            ratio, status = speedup(row), row["ours"].get("status", "stopped")
            measured = "–" if ratio is None else _at_least(row["fork"]) + f"{ratio:.1f}"
            met = ratio is not None and ratio >= goal and status == "converged"
            measured += "" if status == "converged" else f", ours {status}"
            found.append(_verdict(kind, f"≥ {goal}× the fork, {name}, C = {C:g}", measured, met))
    for row in rows:
        if row["part"] == "path":
            ratio = _ratio(row["path"], row["path end"], "seconds")
            met = ratio != "–" and float(ratio) <= 2 and row["path"]["gap"] <= PATH_GAP
            found.append(_verdict("goal", f"path ≤ 2× its last C, {row['features']}", ratio, met))
        elif row["part"] == "threads":
            ratio = _ratio(row["2 threads"], row["1 threads"], "wall")
            claim = f"two threads ≤ 1.1× one, {row['features']}, C = {row['C']:g}"
            found.append(_verdict("goal", claim, ratio, ratio != "–" and float(ratio) <= 1.1))
    return found


def _verdict(kind: str, claim: str, measured: str, met: bool) -> dict:
    return {"": kind, "what": claim, "measured": measured, "met": "yes" if met else "**no**"}


def _time(found: dict, num_runs: int) -> str:
    if "stopped" in found:
        return f"> {CAP}, stopped"
    times = "" if found["runs"] == num_runs else f" ({found['runs']} run{'s' if found['runs'] > 1 else ''})"
    return f"{found['seconds']:.2f}{times}"


def _at_least(found: dict) -> str:
    return "> " if "stopped" in found else ""


def _figure(found: dict, key: str, form: str = ".2f") -> str:
    return "–" if "stopped" in found else format(found[key], form)


def _ratio(found: dict, other: dict, key: str) -> str:
    return "–" if "stopped" in found or "stopped" in other else f"{found[key] / other[key]:.2f}"
