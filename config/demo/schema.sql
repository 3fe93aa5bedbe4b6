-- The demo's tables. `foreshard apply` runs this file on every shard; it may run again at any time.

CREATE TABLE IF NOT EXISTS language (
    name      text PRIMARY KEY,
    extension text NOT NULL
);

INSERT INTO language (name, extension)
VALUES ('python', '.py'), ('c', '.h'), ('text', '.txt'), ('shell', '.sh'), ('data', '.cfg')
ON CONFLICT DO NOTHING;

-- A client raises `revision` with every change of the body. Each trigger function counts the revisions it has handled,
-- so an effect that was lost or made twice shows as a difference.
CREATE TABLE IF NOT EXISTS document (
    id          bigserial PRIMARY KEY,
    path        text NOT NULL,
    language    text NOT NULL REFERENCES language,
    body        text NOT NULL,
    revision    integer NOT NULL DEFAULT 1,
    indexed     integer NOT NULL DEFAULT 0,
    compressed  integer NOT NULL DEFAULT 0,
    shingled    integer NOT NULL DEFAULT 0,
    lzma_ratio  double precision,
    minhash     bigint[],
    worked_s    double precision NOT NULL DEFAULT 0
) WITH (fillfactor = 80);

CREATE INDEX IF NOT EXISTS document_path ON document (path);

CREATE TABLE IF NOT EXISTS symbol (
    id          bigserial PRIMARY KEY,
    document_id bigint NOT NULL REFERENCES document ON DELETE CASCADE,
    name        text NOT NULL,
    kind        text NOT NULL,
    line        integer NOT NULL
);

CREATE INDEX IF NOT EXISTS symbol_document_id ON symbol (document_id);
