"""What an evaluation came to: tables for people, a report as JSON, and the pages and plots that lie beside it."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxvla.envs import pacing
from jaxvla.envs.evaluation import Tally, table
from jaxvla.envs.metaworld import scores
from jaxvla.envs.worlds import Scenario


def conclude(
    rows: Mapping[str, pacing.Paced],
    scenario: Scenario,
    report: Mapping[str, Any],
    output: pathlib.Path | None,
    said: str,
    timed: bool,
) -> None:
    """Prints tables; writes the report, and beside it a page by the world's protocol, and a plot by latency.

    Args:
        rows: how each way of playing did, by name.
        scenario: that was played.
        report: JSON values of the report, at least what was played as "checkpoint", and "settings"; successes and
            episodes are added, and under the world's name what its protocol makes of them.
        output: the JSON file; None where nothing is kept.
        said: the terms on which the policy was played, for the page.
        timed: whether ways and latencies are held against one another.
    """
    tallies = {name: Tally.of(row.results) for name, row in rows.items()}
    print(pacing.markdown(list(rows.values())).rstrip() if timed else table(tallies))
    if output is None:
        return
    found, protocol = dict(report), scenario.protocol
    found["summary"] = {name: row.to_json() for name, row in rows.items()}
    found["episodes"] = {name: [dataclasses.asdict(result) for result in row.results] for name, row in rows.items()}
    if protocol is not None:
        terms = scenario.terms(found["settings"])
        page = scores.markdown(tallies, protocol, "\n".join([f"checkpoint   {found['checkpoint']}", *terms, said]))
        output.with_suffix(".md").write_text(page)
        print(page)
        shares = {name: scores.to_json(tally, protocol) for name, tally in tallies.items()}
        found[scenario.world] = {**shares, "terms": terms}
    output.write_text(json.dumps(found, indent=1))
    print(f"report       {output}")
    if timed:
        pacing.plot(list(rows.values()), output.with_suffix(".png"))
        print(f"plot         {output.with_suffix('.png')}")
