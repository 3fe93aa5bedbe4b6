"""What shards know of routers, so that a bucket leaves only when nobody goes on to use it there (ARCHITECTURE.md,
"Moves").

A router holds two advisory locks on one connection to each shard: MOVE_LOCK, shared, as long as it may send statements
by the map that it knows; and one of its own (ROUTER_CLASS, its number). Its backends are enlisted by that number before
they are used, which the shard refuses when the router's lock is not held there. So whoever takes a bucket away can tell
every session that has nobody to answer for it, and end it first.
"""

from __future__ import annotations

from collections.abc import Iterator

from foreshard.proxy.control.key_sql import function_step
from foreshard.proxy.control.moves import MOVE_LOCK
from foreshard.proxy.control.steps import Step, labelled_step

ROUTER_CLASS = 0x726F7574  # the bytes of "rout": first half of the locks of routers, their number is the second
GIVEN_CLASS = 0x67697665  # the bytes of "give": of a router's consent, the bucket is the second half
FREEZE_CHANNEL = "foreshard_freeze"
END_MS = 5000  # for a session to end that was told to

_SAFE = "SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
_HERE = "held.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
_ROUTER_LOCK = f"held.locktype = 'advisory' AND held.classid = {ROUTER_CLASS} AND held.objsubid = 2 AND {_HERE}"
# The query node is made anew at any time, no table of its lasts: its sessions hold a lock each, and are found by that.
# What a backend says first, whatever its client's defaults are.
ENLIST = "BEGIN READ WRITE ISOLATION LEVEL READ COMMITTED; SELECT foreshard.enlist({}); COMMIT"
ENLIST_AT_NODE = f"SELECT pg_catalog.pg_advisory_lock_shared({ROUTER_CLASS}, {{}})"
FENCE_AT_NODE = f"""
SELECT pg_terminate_backend(held.pid, {END_MS}) FROM pg_locks AS held
WHERE {_ROUTER_LOCK} AND held.granted AND held.objid::integer = ANY ($1)
"""
# Ended sessions are forgotten by whoever comes first; nobody waits for that.
FORGET_ENDED = """
DELETE FROM foreshard.enlisted WHERE ctid = ANY (ARRAY(
  SELECT known.ctid FROM foreshard.enlisted AS known WHERE NOT EXISTS (
    SELECT FROM pg_stat_get_activity(NULL) AS present
    WHERE present.pid = known.pid AND present.backend_start = known.started)
  FOR UPDATE SKIP LOCKED))
"""
# In a transaction that goes on for longer than sessions should wait that are being enlisted: they are there, or are
# refused.
END_STRANGERS_NOW = (
    "SAVEPOINT strangers; LOCK TABLE foreshard.enlisted IN EXCLUSIVE MODE; SELECT foreshard.end_strangers(); "
    "ROLLBACK TO strangers; RELEASE strangers"
)
UNWILLING = f"""
SELECT held.pid FROM pg_locks AS held WHERE {_ROUTER_LOCK} AND held.granted AND NOT EXISTS (
  SELECT FROM pg_locks AS given WHERE given.pid = held.pid AND given.locktype = 'advisory' AND given.granted
    AND given.classid = {GIVEN_CLASS} AND given.objid = {{bucket}}::oid AND given.objsubid = 2)
"""
IS_WAITING = (
    "SELECT NOT held.granted FROM pg_locks AS held WHERE held.pid = $1 AND held.locktype = 'advisory' "
    f"AND held.classid = 0 AND held.objid = {MOVE_LOCK} AND held.objsubid = 1"
)

ENLISTED = """\
CREATE UNLOGGED TABLE IF NOT EXISTS foreshard.enlisted (
  pid integer PRIMARY KEY,
  started timestamptz NOT NULL,
  router integer NOT NULL
);
COMMENT ON TABLE foreshard.enlisted IS 'sessions of routers; some may have ended';
"""

ENLIST_FUNCTION = f"""\
CREATE OR REPLACE FUNCTION foreshard.enlist(router integer) RETURNS void LANGUAGE plpgsql VOLATILE {_SAFE} AS $body$
-- This session is the router's. Written first, then looked: whoever ends a router's sessions waits for writers.
BEGIN
  INSERT INTO foreshard.enlisted AS known (pid, started, router)
  SELECT own.pid, own.backend_start, enlist.router FROM pg_stat_get_activity(pg_backend_pid()) AS own
  ON CONFLICT (pid) DO UPDATE SET started = excluded.started, router = excluded.router;
  IF NOT EXISTS (SELECT FROM pg_locks AS held
                 WHERE {_ROUTER_LOCK} AND held.objid = enlist.router::oid AND held.granted) THEN
    RAISE EXCEPTION 'this router has lost its hold on the shard'
      USING ERRCODE = 'cannot_connect_now', HINT = 'It takes hold again by itself; try again.';
  END IF;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.enlist(integer) TO PUBLIC;
"""

END_SESSIONS = f"""\
CREATE OR REPLACE FUNCTION foreshard.end_sessions(routers integer[], pids integer[]) RETURNS integer
LANGUAGE plpgsql VOLATILE {_SAFE} AS $body$
-- End the sessions of these routers that are among the pids, all of them where that is NULL; how many there were.
DECLARE
  stray record;
  ended integer := 0;
BEGIN
  IF cardinality(routers) = 0 THEN
    RETURN 0;  -- the usual case: writers of a moving bucket wait for the answer
  END IF;
  FOR stray IN
    SELECT known.pid FROM foreshard.enlisted AS known
    JOIN pg_stat_get_activity(NULL) AS present ON present.pid = known.pid AND present.backend_start = known.started
    WHERE known.router = ANY (routers) AND (pids IS NULL OR known.pid = ANY (pids))
  LOOP
    IF NOT pg_terminate_backend(stray.pid, {END_MS}) THEN
      PERFORM pg_stat_clear_snapshot();
      IF EXISTS (
        SELECT FROM pg_stat_get_activity(stray.pid) AS present JOIN foreshard.enlisted AS known USING (pid)
        WHERE present.backend_start = known.started) THEN
        RAISE EXCEPTION 'session % of a router does not end', stray.pid USING ERRCODE = 'lock_not_available';
      END IF;
    END IF;
    ended := ended + 1;
  END LOOP;
  RETURN ended;
END
$body$;
REVOKE EXECUTE ON FUNCTION foreshard.end_sessions(integer[], integer[]) FROM PUBLIC;
"""

END_STRANGERS = f"""\
CREATE OR REPLACE FUNCTION foreshard.end_strangers() RETURNS integer LANGUAGE sql VOLATILE {_SAFE} AS $body$
-- End the sessions of routers that have no hold on this shard any more: nobody answers for what they do.
  SELECT foreshard.end_sessions(ARRAY(
    SELECT DISTINCT known.router FROM foreshard.enlisted AS known WHERE NOT EXISTS (
      SELECT FROM pg_locks AS held WHERE {_ROUTER_LOCK} AND held.objid = known.router::oid AND held.granted)), NULL)
$body$;
REVOKE EXECUTE ON FUNCTION foreshard.end_strangers() FROM PUBLIC;
"""

GIVE_WAY = f"""\
CREATE OR REPLACE FUNCTION foreshard.give_way(router integer, lost integer[], bucket integer) RETURNS boolean
LANGUAGE plpgsql VOLATILE {_SAFE} AS $body$
-- Called by a router that has nothing open in the bucket any more: let whoever waits take it away. Whether it is here
-- still when that has ended. `lost` are sessions that the router has given up: it does not know what they do.
BEGIN
  IF cardinality(lost) > 0 THEN
    PERFORM foreshard.end_sessions(ARRAY[router], lost);
  END IF;
  PERFORM pg_advisory_lock_shared({GIVEN_CLASS}, give_way.bucket); -- MOVE_LOCK does not say which bucket may go
  PERFORM pg_advisory_unlock_shared({MOVE_LOCK});
  PERFORM pg_advisory_lock_shared({MOVE_LOCK});
  PERFORM pg_advisory_unlock_shared({GIVEN_CLASS}, give_way.bucket);
  RETURN (SELECT get_bit(owned.buckets, give_way.bucket) = 1 FROM foreshard.owned_buckets AS owned);
END
$body$;
REVOKE EXECUTE ON FUNCTION foreshard.give_way(integer, integer[], integer) FROM PUBLIC;
"""

SILENT_ROUTERS = f"""\
CREATE OR REPLACE FUNCTION foreshard.silent_routers(lease interval) RETURNS integer[]
LANGUAGE sql VOLATILE {_SAFE} AS $body$
-- Routers that have a hold on this shard and have not been heard of for so long.
  SELECT ARRAY(
    SELECT held.objid::integer FROM pg_locks AS held
    JOIN pg_stat_get_activity(NULL) AS present ON present.pid = held.pid
    WHERE {_ROUTER_LOCK} AND held.granted AND present.state = 'idle'
      AND present.state_change < clock_timestamp() - lease)
$body$;
REVOKE EXECUTE ON FUNCTION foreshard.silent_routers(interval) FROM PUBLIC;
"""

FENCE = f"""\
CREATE OR REPLACE FUNCTION foreshard.fence(routers integer[]) RETURNS void LANGUAGE plpgsql VOLATILE {_SAFE} AS $body$
-- End everything that these routers have here, and what they hold. They must begin anew.
BEGIN
  PERFORM pg_terminate_backend(held.pid, {END_MS}) FROM pg_locks AS held
  WHERE {_ROUTER_LOCK} AND held.granted AND held.objid::integer = ANY (routers);
  LOCK TABLE foreshard.enlisted IN EXCLUSIVE MODE;  -- sessions that are being enlisted are there, or are refused
  PERFORM foreshard.end_sessions(routers, NULL);
END
$body$;
REVOKE EXECUTE ON FUNCTION foreshard.fence(integer[]) FROM PUBLIC;
"""


def fence_steps() -> Iterator[Step]:
    """What every shard needs to tell whose sessions it has."""
    yield labelled_step("table foreshard.enlisted", ENLISTED)
    yield function_step("foreshard.enlist(integer)", ENLIST_FUNCTION)
    yield function_step("foreshard.end_sessions(integer[], integer[])", END_SESSIONS)
    yield function_step("foreshard.end_strangers()", END_STRANGERS)
    yield function_step("foreshard.give_way(integer, integer[], integer)", GIVE_WAY)
    yield function_step("foreshard.silent_routers(interval)", SILENT_ROUTERS)
    yield function_step("foreshard.fence(integer[])", FENCE)
