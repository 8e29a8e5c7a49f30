"""What the archive's tables and columns hold, in words, and questions that people ask of them.

docs/archive.md and Datasette's metadata are made of this.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple


class Table(NamedTuple):
    """A table in words.

    Attributes:
        description: what its rows are.
        columns: column -> what it holds.

    >>> tables()["campaign"].columns["state"]
    'running, finished, interrupted or failed'
    """

    description: str
    columns: Mapping[str, str]


class Query(NamedTuple):
    """A question to an archive.

    Attributes:
        title: what it asks.
        sql: one statement.

    >>> QUERIES["failures"].title
    'Why candidates failed'
    """

    title: str
    sql: str


# A table, below it its columns, and what a line is too short for further in.
_TABLES = """
campaign: one row.
  id: 1
  name: of the campaign
  plan: JSON: the campaign file with its defaults
  provenance: JSON: objectives, genes, sources with their hashes, fitness files' hashes, versions,
    git commit, machine; with `workers.engine: auto`, which engine answers what
  state: running, finished, interrupted or failed
  reason: why it failed
starts: one row for each time that the campaign was started.
  id: a running number
  at: when it was started
  seconds: how long it ran
  machine: JSON: versions, host, cores, threads, device
candidates: one row for each model that was ever proposed, and for each baseline.
  id: a running number, the one that `show` and `export --pick` take
  recipe_id: sha256 of the recipe, each model replaced by the hash of its content
  recipe: JSON
  segments: of a mixture: its segments and coefficients, compressed; NULL for other kinds
  genome: float64, little-endian; NULL for a baseline
  origin: search, baseline, seed (what the space would have scored before the search), warm_start,
    or recommended (to be scored in full)
  label: of a baseline or a seed, its name; of a warm start, RUN#NUMBER; of what is recommended,
    what it is
  stage: from 0
  ordinal: n for the n-th proposal of its stage, from 0; NULL if it was not proposed
  parents: JSON: the ids of the candidates that were crossed
  part: the part of the items on which alone it is scored; NULL: on all, or, recommended, until a
    race stops it
  again: the id of the candidate that it is, on another part; NULL if it is new
  dominated_by: a candidate that is as good in all objectives and better in one; NULL for the
    front
events: the ledger, in order.
  seq: a running number
  kind: ask, tell, retry, recommend (a race begins), part (a round of a race), final, seed,
    warm_start or rebuild
  stage: from 0
  candidate_id: whom it is about; NULL for a rebuild
  batch: of an ask or a race: which one; its candidates share it
  asked: of an ask: how many candidates were asked for; of a race: how many may end it
  blamed: of a retry: 1 if the candidate may have killed its worker, else 0
  proposed: of a rebuild: how many candidates its stage had proposed by then
  note: a reason or a name; of a part, JSON: its items, seconds and worker; of the race at a
    search's end, `last`
  at: when
outcomes: what became of each candidate on search items.
  candidate_id: whose outcome it is
  status: ok, stopped (by a race, before all items were scored) or failed
  reason: of a failure, or why a race stopped it; `scored as RUN#NUMBER` where that run's outcome
    was taken over
  value: the weighted mean of the objectives, on the baselines' scale; NULL where not all items
    were scored
  violation: by how much constraints are missed; 0 if all are kept
  seconds_merge: spent merging
  seconds_score: spent scoring
  items_scored: of all objectives; of a failure, those it was to be scored on
  weights_checksum: of the weights that were scored, of the adapter's factors by the engine
    `vllm-lora`; empty for a path
  worker: host, process and device
  copy_of: an earlier candidate with the same recipe, whose outcome this is
  estimate: of the value, where a part of the items was scored
scores: one row for each candidate, objective and split.
  candidate_id: whose score it is
  objective: its name
  split: search or heldout; `heldout by transformers` of the best that another engine scored
  mean: over all items of the split; an unbiased estimate of it, where fewer were scored
  stderr: the standard error of the mean; 1.96 of them are the 95 % interval
  items: how many were scored
finals: what became of each finalist on held-out items.
  candidate_id: whose outcome it is
  status: ok or failed
  reason: of a failure
  seconds_score: spent scoring
  worker: host, process and device
items: one row for each item that is ever scored.
  objective: whose item it is
  split: search or heldout
  ordinal: its place in the task, from 0
  doc_hash: of its content
item_scores: the score on each single item, packed.
  candidate_id: whose scores they are
  objective: its name
  split: search or heldout; `heldout by transformers` of the best that another engine scored
  encoding: bits (all scores are 0 or 1, eight to a byte) or f32 (float32, little-endian)
  which: uint32, little-endian: the positions of the items that were scored; NULL for all of the
    split
  scores: in the order of the items' ordinals
answers: what the finalists said to each held-out item, for tasks that generate.
  candidate_id: who said it
  objective: its name
  split: heldout
  ordinal: of the item
  answer: the text, after the task's filters
item_texts: what the held-out items ask, for tasks that can say it in words.
  objective: whose item it is
  split: heldout
  ordinal: of the item
  text: what the item asks, its first 2,000 characters
  target: what is right, its first 500 characters
verdicts: what judges said, each question once; of the answers, those of finalists are in `answers`.
  key: a hash of the judge's name and of every word that it was sent: question, answers, rubric
  objective: its name
  ordinal: of the item
  judge: the judge's name at its address
  candidate_first: of two answers, 1 if the candidate's came first, else 0; NULL of one answer
  score: in [0, 1]; NULL where the verdict could not be read, which counts 0
  text: what the judge said
  at: when
opponents: the answers of a baseline that candidates' have to beat.
  objective: its name
  ordinal: of the item
  answer: the baseline's
"""

QUERIES = {
    "front": Query(
        "The Pareto front with its search scores, one row for each objective",
        """
SELECT id, COALESCE(label, origin) AS who, objective, mean, 1.96 * stderr AS half_width, items
FROM pareto_front
ORDER BY objective, mean DESC
""",
    ),
    "best": Query(
        "The ten best candidates",
        """
SELECT c.id, c.origin, c.label, o.value
FROM candidates c JOIN outcomes o ON o.candidate_id = c.id
WHERE o.status = 'ok'
ORDER BY o.violation, o.value DESC
LIMIT 10
""",
    ),
    "convergence": Query(
        "How the search converged: values by scored items, and the best that was scored in full",
        """
SELECT SUM(o.items_scored) OVER (ORDER BY e.seq) AS items, c.id, c.origin,
       COALESCE(o.value, o.estimate) AS value, o.value IS NULL AS is_estimate,
       MAX(o.value) OVER (ORDER BY e.seq) AS best_so_far
FROM events e
JOIN candidates c ON c.id = e.candidate_id
JOIN outcomes o ON o.candidate_id = e.candidate_id
WHERE e.kind = 'tell' AND o.status = 'ok'
ORDER BY e.seq
""",
    ),
    "heldout": Query(
        "Held-out scores of the finalists, with their 95 % intervals",
        """
SELECT c.id, COALESCE(c.label, c.origin) AS who, s.objective, s.mean, 1.96 * s.stderr AS half_width
FROM scores s JOIN candidates c ON c.id = s.candidate_id
WHERE s.split = 'heldout'
ORDER BY s.objective, s.mean DESC
""",
    ),
    "items": Query(
        "Item by item, for scores of 0 and 1: what the best solves, and how many baselines do",
        """
WITH best AS (
    SELECT candidate_id FROM outcomes WHERE status = 'ok' AND value IS NOT NULL
    ORDER BY violation, value DESC, candidate_id LIMIT 1
), places AS (
    SELECT objective, ordinal,
           ROW_NUMBER() OVER (PARTITION BY objective ORDER BY ordinal) - 1 AS n
    FROM items WHERE split = 'search'
), solved AS (  -- the n-th bit of the packed scores, the highest of a byte first
    SELECT s.candidate_id, s.objective, p.ordinal,
           ((INSTR('0123456789ABCDEF',
                   SUBSTR(HEX(SUBSTR(s.scores, n / 8 + 1, 1)), 1 + n % 8 / 4, 1)) - 1)
            >> (3 - n % 4)) & 1 AS score
    FROM item_scores s JOIN places p ON p.objective = s.objective
    WHERE s.split = 'search' AND s.encoding = 'bits' AND s.which IS NULL
)
SELECT b.objective, b.ordinal, b.score AS best,
       SUM(o.score) AS baselines_that_solve_it, COUNT(*) AS baselines
FROM solved b
JOIN solved o ON o.objective = b.objective AND o.ordinal = b.ordinal
JOIN candidates c ON c.id = o.candidate_id AND c.origin = 'baseline'
WHERE b.candidate_id = (SELECT COALESCE(copy_of, candidate_id) FROM outcomes
                        WHERE candidate_id = (SELECT candidate_id FROM best))
GROUP BY b.objective, b.ordinal
ORDER BY best DESC, baselines_that_solve_it
""",
    ),
    "failures": Query(
        "Why candidates failed",
        """
SELECT reason, COUNT(*) AS times, MIN(candidate_id) AS first
FROM outcomes WHERE status = 'failed'
GROUP BY reason ORDER BY times DESC
""",
    ),
    "time": Query(
        "Where the workers' time went",
        """
SELECT c.origin, COUNT(*) AS candidates, SUM(o.items_scored) AS items,
       SUM(o.seconds_merge) AS merging, SUM(o.seconds_score) AS scoring
FROM candidates c JOIN outcomes o ON o.candidate_id = c.id
GROUP BY c.origin
UNION ALL
SELECT 'held-out', COUNT(*), (SELECT SUM(items) FROM scores WHERE split = 'heldout'),
       NULL, SUM(seconds_score)
FROM finals
""",
    ),
    "workers": Query(
        "What each worker did",
        """
SELECT worker, COUNT(*) AS candidates, SUM(seconds_merge) AS merging, SUM(seconds_score) AS scoring
FROM outcomes WHERE copy_of IS NULL
GROUP BY worker
""",
    ),
    "ledger": Query(
        "The ledger's last events",
        """
SELECT seq, kind, candidate_id, note, datetime(at, 'unixepoch') AS time
FROM events ORDER BY seq DESC LIMIT 20
""",
    ),
    "weights": Query(
        "The weights of the best candidate, group by group",
        """
SELECT json_extract(g.value, '$.layers') AS layers, json_extract(g.value, '$.weight') AS weight
FROM candidates c, json_each(c.recipe, '$.groups') g
WHERE c.id = (SELECT candidate_id FROM outcomes ORDER BY violation, value DESC LIMIT 1)
""",
    ),
    "sources": Query(
        "The sources and their hashes",
        """
SELECT s.key AS label, json_extract(s.value, '$.name') AS name,
       json_extract(s.value, '$.sha256') AS sha256
FROM campaign, json_each(provenance, '$.sources') s
""",
    ),
}

_VIEW = "the candidates that no other dominates, with their search scores; a view"

# Of what Datasette shows first: columns to count the values of, the order, and units.
_FACETS = {
    "candidates": ["origin", "stage"],
    "events": ["kind", "stage"],
    "outcomes": ["status", "worker"],
    "scores": ["objective", "split"],
    "finals": ["status"],
    "items": ["objective", "split"],
    "item_scores": ["objective", "split"],
    "answers": ["objective"],
    "item_texts": ["objective"],
    "verdicts": ["objective", "judge"],
    "opponents": ["objective"],
    "pareto_front": ["objective", "origin"],
}
_ORDERS = {"events": "seq", "starts": "id", "outcomes": "value"}  # the highest first
_SECONDS = ("seconds", "seconds_merge", "seconds_score")


@functools.cache
def tables() -> dict[str, Table]:
    """Return the tables by name, in the order of the file.

    >>> list(tables())[:4]
    ['campaign', 'starts', 'candidates', 'events']
    """
    found: dict[str, Table] = {}
    columns: dict[str, str] = {}
    for line in _TABLES.strip().splitlines():
        name, _, text = line.strip().partition(": ")
        if not line.startswith(" "):
            columns = {}
            found[name] = Table(text, columns)
        elif not line.startswith("    "):
            columns[name] = text
        else:  # it goes on
            last = next(reversed(columns))
            columns[last] += " " + line.strip()
    return found


def markdown() -> str:
    """Return the tables and the questions as the guide has them.

    >>> markdown().startswith("**campaign**: one row.")
    True
    """
    blocks = []
    for name, table in tables().items():
        lines = [f"**{name}**: {table.description}", "", "| column | what it holds |", "|---|---|"]
        lines += [f"| `{column}` | {text} |" for column, text in table.columns.items()]
        blocks.append("\n".join(lines))
    said = "its columns are those above (`id` is the candidate's)."
    blocks.append(f"**pareto_front**: {_VIEW}; {said}")
    blocks.append("## Questions in SQL")
    for query in QUERIES.values():
        blocks.append(f"{query.title}:\n\n```sql\n{query.sql.strip()};\n```")
    return "\n\n".join(blocks)


def datasette_metadata(name: str, database: str = "archive") -> dict[str, Any]:
    """Return what Datasette shows beside a campaign's archive: titles, columns, facets, questions.

    Args:
        name: of the campaign.
        database: the file's name, without its ending.

    >>> metadata = datasette_metadata("demo")
    >>> metadata["databases"]["archive"]["tables"]["outcomes"]["facets"]
    ['status', 'worker']
    """
    described = dict(tables())
    front = {"id": "the candidate's"}
    for table in ("candidates", "scores"):
        front |= described[table].columns
    columns = ("id", "recipe_id", "origin", "label", "objective", "mean", "stderr", "items")
    described["pareto_front"] = Table(_VIEW, {column: front[column] for column in columns})
    found: dict[str, dict[str, Any]] = {}
    for table, (description, texts) in described.items():
        found[table] = {"description": description, "columns": dict(texts)}
        if table in _FACETS:
            found[table]["facets"] = _FACETS[table]
        if table in _ORDERS:
            found[table]["sort_desc"] = _ORDERS[table]
        if units := {column: "s" for column in texts if column in _SECONDS}:
            found[table]["units"] = units
    queries = {key: {"title": q.title, "sql": q.sql.strip()} for key, q in QUERIES.items()}
    about = f"The search '{name}': every candidate, outcome and item score, in the order they came."
    return {
        "title": f"evomerge: {name}",
        "description": about,
        "databases": {database: {"description": about, "tables": found, "queries": queries}},
    }
