"""Making the vector shards of one index by many tasks at once, on as many machines as share a disk.

Every task writes its own shards; each is written atomically and is a pure function of its rows, so tasks need no lock
among themselves. Afterwards `build_dense` or `build_sparse` with the same plan finds the shards there and completes
the index.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError, OutputExists
from ..ids import Ids
from ..progress import task
from . import building, folder
from .plan import BuildPlan, sequential
from .registry import BACKENDS
from .shards import writer_for
from .vectors import fixed_shards

__all__ = ["write_part"]

_PATIENCE = 60.0
"""Seconds that a task waits for another to write the plan."""


def write_part(
    out: str | Path,
    ids: Ids,
    encode: Callable[[int, int], Any],
    *,
    plan: BuildPlan,
    number: int,
    count: int,
) -> int:
    """Write the missing shards of task `number` of `count`: those whose number is `number` modulo `count`.

    Args:
        out, ids, encode, plan: as for `build_dense` or `build_sparse`; the plan cannot overwrite.
        number: of this task, from 0.
        count: how many tasks share the shards.

    Returns:
        How many shards of the whole index are still missing.

    Raises:
        ConfigError: bad numbers; `out` holds a build of another plan.
        OutputExists: the index is there already.
    """
    if not 0 <= number < count:
        raise ConfigError(f"part {number} of {count}: expected a number from 0 to {count - 1}")
    if plan.overwrite:
        raise ConfigError("tasks that share an index cannot overwrite one; remove it first, or give another output")
    kind = BACKENDS[plan.backend.name].vectors
    if kind is None:
        raise ConfigError(f"back-end {plan.backend.name!r} takes texts, so there are no vectors to share out")
    site = Path(out).absolute()
    writer = writer_for(kind, site, plan)
    ids.refuse_duplicates("document")
    _join(site, building.describe(plan, ids))
    shards = fixed_shards(len(ids), plan.shard_size)
    mine = [shard for shard in writer.missing(shards) if shard.number % count == number]
    with task("encode", sum(map(len, mine))) as advance:
        (plan.executor or sequential(encode, advance))(writer, mine)
    return len(writer.missing(shards))


def _join(site: Path, description: dict[str, Any]) -> None:
    """Find the plan in the folder, or be the one that writes it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        if folder.state(site) == "index":
            raise OutputExists(site)
        if building.unfinished(site) is not None:
            building.refuse_other_plan(site, description)
            return
        try:
            with folder.lock(site):
                building.prepare(site, description, replace=False)
            return
        except ConfigError:
            if time.monotonic() > deadline or building.unfinished(site) is not None:
                raise
            time.sleep(0.1)
