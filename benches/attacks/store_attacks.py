"""Attacks on the trace store's file, as a disk, a crash or a bad copy would damage it."""

import json
import random
import shutil
import sqlite3
import subprocess
import time

from harness import ATTACKER, CannotRun, Row, Server, call

SEED = 7
NUM_FLIPS = 36
NUM_FILE_FLIPS = 60
NUM_TRACES = 200
EXPORT_SECONDS = 60


def keep_traces(server, number, first=0):
    """Keeps so many short answers and returns their ids, the oldest first."""
    ids = []
    for index in range(first, first + number):
        body = {"prompt": f"Number {index}:", "max_tokens": 2, "seed": index, "store": True, "metadata": {"n": str(index)}}
        reply = server.post("/v1/completions", body)
        name = reply.json().get("trace_id")
        if not name:
            raise CannotRun(f"no trace was kept: {reply.text()} {reply.body[:200]!r}")
        ids.append(name)
    return ids


def record(server, name):
    """The status and the record of a trace."""
    reply = server.get(f"/v1/traces/{name}")
    return reply.status, reply.json()


def stream(server, after=None):
    """The rows of the whole stream as trees, and how it ended."""
    query = "?format=tree" + (f"&after={after}" if after else "")
    reply = server.get("/v1/traces/stream" + query, timeout=120)
    rows = []
    for line in reply.body.split(b"\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)], reply


def id_of(row):
    """The trace of a row: trees have `id` themselves or inside."""
    return row.get("id") or row.get("trace_id") or (row.get("trace") or {}).get("id")


def export(setup, database):
    """The records that `ponder traces export` writes, its exit code and what it said."""
    command = [setup.binary, "traces", "export", "--trace-db", str(database), "--format", "tree", "--out", "-"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=EXPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return {}, "timeout", ""
    found = {}
    for line in done.stdout.split(b"\n"):
        try:
            row = json.loads(line)
            found[id_of(row)] = row
        except (ValueError, AttributeError):
            continue
    return found, done.returncode, done.stderr.decode(errors="replace")


def payloads(database):
    """Row numbers and payloads of a stopped server's file; everything is in the main file afterwards."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    try:
        rows = connection.execute("SELECT id, payload FROM traces ORDER BY seq").fetchall()
    except sqlite3.Error as error:
        raise CannotRun(f"the store has another shape: {error}") from None
    return connection, rows


def set_payload(connection, name, payload):
    connection.execute("UPDATE traces SET payload = ? WHERE id = ?", (payload, name))


def without_cursor(row):
    return {key: value for key, value in row.items() if key != "cursor"}


def flip(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def store_bit_flips(setup):
    """One bit of each payload is turned over: which records come back as something else?"""
    random.seed(SEED)
    with Server(setup.binary, setup.model) as server:
        ids = keep_traces(server, NUM_FLIPS)
        before = {name: record(server, name)[1] for name in ids}
        server.stop()
        connection, rows = payloads(server.trace_db)
        for name, payload in rows:
            set_payload(connection, name, flip(payload, random.randrange(8 * len(payload))))
        connection.commit()
        connection.close()
        server.start()
        after = {name: record(server, name) for name in ids}
        streamed = {id_of(row): without_cursor(row) for row in stream(server)[0]}
    served = [name for name, (status, _) in after.items() if status == 200]
    changed = [name for name in served if after[name][1] != before[name]]
    in_stream = [name for name, row in streamed.items() if name not in before or row != without_cursor(before[name])]
    by_file = flips_of_the_file(setup)
    measured = f"{len(changed)} of {NUM_FLIPS} served as changed ({len(in_stream)} in the stream), {NUM_FLIPS - len(served)}"
    measured += f" refused; {by_file['changed']} of {NUM_FILE_FLIPS} bits of the file change an exported record"
    held = not changed and not in_stream
    return Row("store_bit_flips", measured, held, "none is served as changed", {"file": by_file})


def flips_of_the_file(setup):
    """One bit at any place of the file, then an export; a count by what came of it."""
    counts = {"same": 0, "reported": 0, "changed": 0, "fewer, in silence": 0}
    with Server(setup.binary, setup.model) as server:
        keep_traces(server, NUM_FLIPS)
        server.stop()
        connection, _ = payloads(server.trace_db)
        connection.close()
        whole, *_ = export(setup, server.trace_db)
        data = server.trace_db.read_bytes()
        copy = server.folder / "flipped.db"
        for _ in range(NUM_FILE_FLIPS):
            copy.write_bytes(flip(data, random.randrange(8 * len(data))))
            found, code, said = export(setup, copy)
            kind = "same"
            if any(name not in whole or row != whole[name] for name, row in found.items()):
                kind = "changed"
            elif len(found) < len(whole):
                kind = "reported" if code or said.strip() else "fewer, in silence"
            counts[kind] += 1
    return counts


def store_unreadable(setup):
    """One payload in the middle is destroyed: how many of the others does a reader reach?"""
    with Server(setup.binary, setup.model) as server:
        ids = keep_traces(server, NUM_TRACES)
        server.stop()
        connection, _ = payloads(server.trace_db)
        set_payload(connection, ids[NUM_TRACES // 2], b"\x28\xb5\x2f\xfd" + b"\xff" * 40)
        connection.commit()
        connection.close()
        exported, code, said = export(setup, server.trace_db)
        server.start()
        rows, reply = stream(server)
        streamed = {id_of(row) for row in rows} & set(ids)
        listed = server.get("/v1/traces?limit=1000").json().get("data") or []
    others = NUM_TRACES - 1
    is_told = bool(said.strip()) or code != 0
    measured = f"stream {len(streamed)} of {others} ({reply.status or reply.error}), export {len(exported)} of {others}"
    measured += f" (exit {code}{', told' if is_told else ', not told'}), list {len(listed)}"
    held = len(streamed) >= others and len(exported) >= others and is_told
    details = {"said": said[-300:], "exit": code}
    return Row("store_unreadable", measured, held, "all others are reached, and the damage is told", details)


def store_wal_tail(setup):
    """The log's tail is lost, so numbers are given again: what does a reader with an older cursor see?"""
    with Server(setup.binary, setup.model) as server:
        keep_traces(server, 10)
        saved = server.folder / "saved"
        saved.mkdir()
        for path in server.folder.glob("traces.db*"):
            shutil.copy(path, saved / path.name)
        keep_traces(server, 5, first=10)
        rows, _ = stream(server)
        cursor = rows[-1].get("cursor")
        server.kill()
        for path in server.folder.glob("traces.db*"):
            path.unlink()
        for path in saved.iterdir():
            shutil.copy(path, server.folder / path.name)
        server.start()
        at_once, first = stream(server, cursor)
        new = keep_traces(server, 5, first=20)
        later, second = stream(server, cursor)
    seen = {id_of(row) for row in later} & set(new)
    is_error = first.status >= 400 and second.status >= 400
    measured = f"cursor {cursor}: before new traces {first.status} with {len(at_once)} rows, then {second.status}"
    measured += f" with {len(seen)} of 5 new traces"
    held = is_error or len(seen) == 5
    details = {"answer": second.body[:300].decode(errors="replace") if is_error else ""}
    return Row("store_wal_tail", measured, held, "all 5, or an error that says what to do", details)


def damage_index(database, name):
    """Turns over one bit of a trace's id in an index of the file, and not in the table."""
    connection = sqlite3.connect(database)
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data, place = bytearray(database.read_bytes()), -1
    while (place := data.find(name.encode(), place + 1)) >= 0:
        # The first byte of an index's page is 2 (inner) or 10 (leaf).
        if data[place // size * size] in (2, 10):
            data[place + len(name) - 1] ^= 2
            database.write_bytes(data)
            return
    raise CannotRun("the id was found in no index page")


def store_index_flip(setup):
    """A key of the index on ids is damaged: the trace is listed; can it be read and deleted?"""
    with Server(setup.binary, setup.model) as server:
        ids = keep_traces(server, 20)
        server.stop()
        damage_index(server.trace_db, ids[10])
        server.start()
        # A check in the background may take a moment.
        deadline = time.monotonic() + 10
        while (status := record(server, ids[10])[0]) != 200 and time.monotonic() < deadline:
            time.sleep(0.2)
        listed = [row["id"] for row in server.get("/v1/traces?limit=100").json().get("data") or []]
        deleted = call(server.port, "DELETE", f"/v1/traces/{ids[10]}", key=ATTACKER).status
    measured = f"listed {ids[10] in listed}, get {status}, delete {deleted}"
    held = status == 200 and deleted == 204
    return Row("store_index_flip", measured, held, "get 200 and delete 204 within 10 s of the start")


ATTACKS = [store_bit_flips, store_unreadable, store_wal_tail, store_index_flip]
