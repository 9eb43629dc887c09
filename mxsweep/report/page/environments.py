"""List what runs were made with."""

from dataclasses import dataclass

from mxsweep.report.shared_paths import shared_path
from mxsweep.results.groups import Results
from mxsweep.results.studies import flat_environment


@dataclass(frozen=True)
class Environment:
    """Hold one environment, and the sweeps made in it."""

    sweeps: list[tuple[str, int]]  # folder and runs
    values: dict[str, str]


def environments(results: Results) -> list[Environment]:
    """Return every different environment, the most used first."""
    alike: dict[tuple[tuple[str, str], ...], dict[str, int]] = {}
    done = {run.path.parent for run in results.runs if run.status == "done"}
    for run in results.runs:
        environment = (run.record or {}).get("environment")
        # A failed run's lacks what is known of the device: it is shown where the sweep has no better one.
        if not isinstance(environment, dict) or (run.status != "done" and run.path.parent in done):
            continue
        values = {name: value for name, value in flat_environment(environment).items() if name not in ("seed", "dtype")}
        sweeps = alike.setdefault(tuple(values.items()), {})
        sweep = shared_path(run.path.parent)
        sweeps[sweep] = sweeps.get(sweep, 0) + 1
    ordered = sorted(alike.items(), key=lambda item: -sum(item[1].values()))
    return [Environment(list(sweeps.items()), dict(values)) for values, sweeps in ordered]
