"""The tables of archive.db; docs/archive.md describes them for whoever browses the file."""

# Entry i takes a file from `PRAGMA user_version` = i to i + 1; once released, it stays.
MIGRATIONS = (
    """
    CREATE TABLE campaign (
        id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL, plan TEXT NOT NULL,
        provenance TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL
    );
    CREATE TABLE starts (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, seconds REAL NOT NULL, machine TEXT NOT NULL
    );
    CREATE TABLE candidates (
        id INTEGER PRIMARY KEY, recipe_id TEXT NOT NULL,
        recipe TEXT NOT NULL,
        segments BLOB,         -- of a mixture, which its recipe leaves out; NULL for other kinds
        genome BLOB,           -- float64, little-endian; NULL for a baseline
        origin TEXT NOT NULL,  -- search, baseline, seed, warm_start or recommended
        label TEXT,            -- of what was not proposed; RUN#NUMBER of a warm start
        stage INTEGER NOT NULL,
        ordinal INTEGER,       -- the n-th proposal of its stage, from 0; NULL if not proposed
        parents TEXT NOT NULL, -- ids, a JSON list
        part INTEGER,          -- of the items, on which alone it is scored; NULL: on all of them
        again INTEGER REFERENCES candidates(id),  -- which it is, on another part; NULL if new
        dominated_by INTEGER REFERENCES candidates(id)
    );
    CREATE INDEX candidates_recipe_id ON candidates(recipe_id);
    CREATE INDEX candidates_origin ON candidates(origin);
    CREATE INDEX candidates_stage ON candidates(stage, ordinal);
    CREATE INDEX candidates_front ON candidates(id) WHERE dominated_by IS NULL AND part IS NULL;
    CREATE INDEX candidates_part ON candidates(stage, part) WHERE part IS NOT NULL;
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        -- ask, tell, retry, recommend, part, final, seed, warm_start or rebuild
        kind TEXT NOT NULL,
        stage INTEGER NOT NULL,
        candidate_id INTEGER REFERENCES candidates(id),  -- NULL for a rebuild
        batch INTEGER,         -- of an ask or a race: which one; its candidates share it
        asked INTEGER,         -- of an ask: how many were asked for; of a race: how many may end it
        blamed INTEGER,        -- of a retry: 1 if the candidate may have killed its worker, else 0
        proposed INTEGER,      -- of a rebuild: how many its stage had proposed by then
        note TEXT NOT NULL,
        at REAL NOT NULL
    );
    CREATE INDEX events_candidate ON events(candidate_id, kind);
    CREATE INDEX events_batch ON events(batch);
    CREATE INDEX events_race ON events(stage, batch) WHERE kind = 'recommend';
    CREATE TABLE outcomes (
        candidate_id INTEGER PRIMARY KEY REFERENCES candidates(id),
        status TEXT NOT NULL,  -- ok, stopped or failed
        reason TEXT NOT NULL, value REAL, violation REAL NOT NULL, seconds_merge REAL NOT NULL,
        seconds_score REAL NOT NULL, items_scored INTEGER NOT NULL, weights_checksum TEXT NOT NULL,
        worker TEXT NOT NULL, copy_of INTEGER REFERENCES candidates(id),
        estimate REAL          -- of the value, where a part of the items was scored; else NULL
    );
    CREATE INDEX outcomes_best ON outcomes(violation, value DESC);
    CREATE INDEX outcomes_status ON outcomes(status);
    CREATE TABLE scores (
        candidate_id INTEGER REFERENCES candidates(id), objective TEXT, split TEXT,
        mean REAL NOT NULL,    -- over all items of the split; an estimate, if fewer were scored
        stderr REAL NOT NULL, items INTEGER NOT NULL,
        PRIMARY KEY (candidate_id, objective, split)
    ) WITHOUT ROWID;
    CREATE TABLE finals (
        candidate_id INTEGER PRIMARY KEY REFERENCES candidates(id),
        status TEXT NOT NULL,  -- ok or failed, on the held-out items
        reason TEXT NOT NULL, seconds_score REAL NOT NULL, worker TEXT NOT NULL
    );
    CREATE TABLE items (
        objective TEXT, split TEXT, ordinal INTEGER, doc_hash TEXT NOT NULL,
        PRIMARY KEY (objective, split, ordinal)
    ) WITHOUT ROWID;
    CREATE TABLE item_scores (
        candidate_id INTEGER REFERENCES candidates(id), objective TEXT, split TEXT,
        encoding TEXT NOT NULL,  -- bits or f32
        which BLOB,              -- uint32: positions of what was scored; NULL for all of the split
        scores BLOB NOT NULL, PRIMARY KEY (candidate_id, objective, split)
    );
    CREATE TABLE answers (
        candidate_id INTEGER REFERENCES candidates(id), objective TEXT, split TEXT,
        ordinal INTEGER, answer TEXT NOT NULL,
        PRIMARY KEY (candidate_id, objective, split, ordinal)
    ) WITHOUT ROWID;
    CREATE VIEW pareto_front AS  -- CROSS JOIN: the few of the front first, then their outcomes
        SELECT c.id, c.recipe_id, c.origin, c.label, s.objective, s.mean, s.stderr, s.items
        FROM candidates c
        CROSS JOIN outcomes o ON o.candidate_id = c.id AND o.status = 'ok'
        CROSS JOIN scores s ON s.candidate_id = c.id AND s.split = 'search'
        WHERE c.dominated_by IS NULL AND c.part IS NULL;
    """,
    """
    CREATE TABLE item_texts (
        objective TEXT, split TEXT, ordinal INTEGER,
        text TEXT NOT NULL,    -- what the item asks, its first 2,000 characters
        target TEXT NOT NULL,  -- what is right, its first 500 characters
        PRIMARY KEY (objective, split, ordinal)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE verdicts (
        key TEXT PRIMARY KEY,  -- a hash of the judge's name and of every word that it was sent
        objective TEXT NOT NULL, ordinal INTEGER NOT NULL,
        judge TEXT NOT NULL,   -- its name at its address
        candidate_first INTEGER,  -- of two answers, 1 if the candidate's came first; NULL of one
        score REAL,            -- in [0, 1]; NULL where it could not be read
        text TEXT NOT NULL,    -- what the judge said
        at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE opponents (   -- a baseline's answers, which candidates' have to beat
        objective TEXT, ordinal INTEGER, answer TEXT NOT NULL,
        PRIMARY KEY (objective, ordinal)
    ) WITHOUT ROWID;
    """,
)
