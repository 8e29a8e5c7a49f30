"""The tables of archive.db, from its first version on; the README says what is in them."""

# Each entry takes a file from `PRAGMA user_version` = its index to the next; never edit one
# that has been released.
MIGRATIONS = (
    """
    CREATE TABLE campaign (
        id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT, plan TEXT, provenance TEXT,
        state TEXT, reason TEXT
    );
    CREATE TABLE starts (
        id INTEGER PRIMARY KEY, at REAL, seconds REAL, machine TEXT
    );
    CREATE TABLE candidates (
        id INTEGER PRIMARY KEY, recipe_id TEXT, recipe TEXT, genome BLOB, origin TEXT,
        label TEXT, parents TEXT, ordinal INTEGER, dominated_by INTEGER REFERENCES candidates(id)
    );
    CREATE INDEX candidates_recipe_id ON candidates(recipe_id);
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY, kind TEXT, batch INTEGER, n INTEGER,
        candidate_id INTEGER REFERENCES candidates(id), note TEXT, at REAL
    );
    CREATE INDEX events_candidate ON events(candidate_id, kind);
    CREATE TABLE outcomes (
        candidate_id INTEGER PRIMARY KEY REFERENCES candidates(id), status TEXT, reason TEXT,
        value REAL, seconds_merge REAL, seconds_score REAL, items_scored INTEGER,
        weights_checksum TEXT, worker TEXT, copy_of INTEGER REFERENCES candidates(id)
    );
    CREATE INDEX outcomes_value ON outcomes(value);
    CREATE INDEX outcomes_status ON outcomes(status);
    CREATE TABLE scores (
        candidate_id INTEGER REFERENCES candidates(id), objective TEXT, split TEXT, mean REAL,
        stderr REAL, items INTEGER, PRIMARY KEY (candidate_id, objective, split)
    ) WITHOUT ROWID;
    CREATE TABLE items (
        objective TEXT, split TEXT, ordinal INTEGER, doc_hash TEXT,
        PRIMARY KEY (objective, split, ordinal)
    ) WITHOUT ROWID;
    CREATE TABLE item_scores (
        candidate_id INTEGER REFERENCES candidates(id), objective TEXT, split TEXT,
        encoding TEXT, which BLOB, scores BLOB, PRIMARY KEY (candidate_id, objective, split)
    );
    CREATE INDEX candidates_front ON candidates(id) WHERE dominated_by IS NULL;
    CREATE VIEW pareto_front AS
        SELECT c.id, c.recipe_id, c.origin, c.label, s.objective, s.mean, s.stderr, s.items
        FROM candidates c
        JOIN outcomes o ON o.candidate_id = c.id AND o.status = 'ok'
        JOIN scores s ON s.candidate_id = c.id AND s.split = 'search'
        WHERE c.dominated_by IS NULL;
    """,
    """
    CREATE TABLE answers (
        candidate_id INTEGER REFERENCES candidates(id), objective TEXT, split TEXT,
        ordinal INTEGER, answer TEXT, PRIMARY KEY (candidate_id, objective, split, ordinal)
    ) WITHOUT ROWID;
    CREATE INDEX candidates_ordinal ON candidates(ordinal);
    CREATE INDEX candidates_origin ON candidates(origin);
    CREATE INDEX events_batch ON events(batch);
    """,
    """
    DROP VIEW pareto_front;
    CREATE VIEW pareto_front AS  -- CROSS JOIN: the few of the front first, then their outcomes
        SELECT c.id, c.recipe_id, c.origin, c.label, s.objective, s.mean, s.stderr, s.items
        FROM candidates c
        CROSS JOIN outcomes o ON o.candidate_id = c.id AND o.status = 'ok'
        CROSS JOIN scores s ON s.candidate_id = c.id AND s.split = 'search'
        WHERE c.dominated_by IS NULL;
    ALTER TABLE outcomes ADD COLUMN violation REAL NOT NULL DEFAULT 0;
    CREATE INDEX outcomes_best ON outcomes(violation, value DESC);
    """,
    """
    ALTER TABLE candidates ADD COLUMN stage INTEGER NOT NULL DEFAULT 0;
    DROP INDEX candidates_ordinal;
    CREATE INDEX candidates_stage ON candidates(stage, ordinal);
    """,
)
