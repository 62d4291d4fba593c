"""Tests of what the comparison computes by itself: `python -m unittest test_peers`, in this
folder. No engine, no network and no package is needed."""

import io
import json
import random
import statistics
import struct
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import compare
import depth
import gguf
import llama_state
import load
import long_context
import machine
import peers
import picture
import rates
import servers
import start
from load import Answer

WORDS = [f"word{i}" for i in range(500)]


class Loads(unittest.TestCase):
    def test_one_seed_is_one_load(self):
        one, again, other = (load.conversations(s, WORDS, 2.0, 30, 4096, 1.0) for s in (7, 7, 8))
        self.assertEqual(one, again)
        self.assertNotEqual(one, other)

    def test_arrivals_are_a_poisson_process(self):
        arrivals = [c.arrival for c in load.conversations(1, WORDS, 4.0, 500, 512)]
        self.assertEqual(arrivals, sorted(arrivals))
        self.assertLessEqual(arrivals[-1], 500)
        # 2,000 are expected, with a standard deviation of 45.
        self.assertAlmostEqual(len(arrivals), 2000, delta=180)
        gaps = [b - a for a, b in zip(arrivals, arrivals[1:])]
        # Of an exponential distribution mean and standard deviation are equal.
        self.assertAlmostEqual(statistics.stdev(gaps) / statistics.mean(gaps), 1, delta=0.1)

    def test_lengths_are_those_of_sharegpt(self):
        dice = random.Random(3)
        for mean, sigma in [
            (load.PROMPT_MEAN, load.PROMPT_SIGMA),
            (load.ANSWER_MEAN, load.ANSWER_SIGMA),
            (load.TURNS_MEAN, load.TURNS_SIGMA),
        ]:
            drawn = [load.log_normal(dice, mean, sigma) for _ in range(100_000)]
            self.assertAlmostEqual(statistics.mean(drawn) / mean, 1, delta=0.05)
        several = sum(turns > 1 for turns in drawn) / len(drawn)
        self.assertAlmostEqual(several, 0.73, delta=0.01)

    def test_a_conversation_fits_the_context(self):
        dice = random.Random(5)
        for _ in range(300):
            conversation = load.conversation(dice, WORDS, 0.0, 1024, 0.0)
            self.assertTrue(conversation.turns)
            words = sum(len(turn.prompt.split()) for turn in conversation.turns)
            answers = sum(turn.answer_tokens for turn in conversation.turns)
            self.assertLessEqual(words * load.TOKENS_PER_WORD + answers, 1024)

    def test_the_first_turn_does_not_wait(self):
        for conversation in load.conversations(2, WORDS, 1.0, 60, 4096, 3.0):
            waits = [turn.think_seconds for turn in conversation.turns]
            self.assertEqual(waits[0], 0)
            self.assertTrue(all(wait > 0 for wait in waits[1:]))


class Figures(unittest.TestCase):
    def test_percentiles_interpolate(self):
        # Values of numpy.percentile([1, 2, 3, 10], ...).
        values = [10, 1, 3, 2]
        for share, expected in [(0, 1), (50, 2.5), (95, 8.95), (99, 9.79), (100, 10)]:
            self.assertAlmostEqual(load.percentile(values, share), expected)
        self.assertIsNone(load.percentile([], 50))

    def test_goodput_counts_whole_answers_within_both_bounds(self):
        good = Answer(ttft=1.0, gaps=[0.05] * 20, num_tokens=21, prompt_tokens=9)
        cases = [
            (good, True),
            (Answer(ttft=2.1, gaps=[0.05] * 20), False),
            (Answer(ttft=1.0, gaps=[0.05] * 10 + [0.2] * 10), False),
            # One slow gap among 40 is within 95 %.
            (Answer(ttft=1.0, gaps=[0.05] * 39 + [5.0]), True),
            (Answer(ttft=1.0, gaps=[]), True),
            (Answer(ttft=None), False),
            (Answer(ttft=1.0, gaps=[0.05], error="unfinished"), False),
        ]
        for answer, expected in cases:
            self.assertEqual(load.is_good(answer, 2.0, 0.1), expected, answer)
        answers = [answer for answer, _ in cases]
        figures = load.summary(answers, 10.0, 2.0, 0.1)
        self.assertEqual(figures["requests"], 7)
        self.assertEqual(figures["goodput"], 0.3)
        self.assertEqual(figures["errors"], {"unfinished": 1})
        self.assertEqual(figures["tokens_per_second"], 2.1)
        self.assertIsNone(load.summary([], 1.0, 2.0, 0.1)["good_share"])

    def test_start_medians_are_over_the_files_size(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes(1000))
            file.flush()
            fields = ["rss", "pss", "pss_anon", "vmhwm"]
            turns = [
                {
                    "ready_seconds": seconds,
                    "still_cached": 0.0,
                    "loaded": dict.fromkeys(fields, 1100),
                    "answered": dict.fromkeys(fields, 1500),
                }
                for seconds in (3.0, 1.0, 2.0)
            ]
            setup = servers.Setup("m", Path(file.name), 1, 1, 10, 10, 4)
            figures = start.summary(turns, turns, setup)
        self.assertEqual(figures["cold_seconds"], 2.0)
        self.assertEqual((figures["pss_loaded"], figures["pss_answered"]), (1.1, 1.5))
        self.assertEqual(figures["kv_bytes"], 40)

    def test_tokens_are_counted_though_chunks_hold_several(self):
        chunks = [[{"text": "a"}], [{"text": "bc"}], [{"text": "", "finish_reason": "length"}]]
        lines = [f"data: {json.dumps({'choices': chunk})}\n\n" for chunk in [*chunks, []]]
        body = "".join(lines) + "data: [DONE]\n\n"
        for sent, expected in [(body, (2.0, (long_context.OUTPUT - 1) / 4)), (lines[0], None)]:
            answer = mock.patch("urllib.request.urlopen", return_value=io.BytesIO(sent.encode()))
            clock = mock.patch("time.perf_counter", side_effect=[10.0, 12.0, 16.0])
            with answer, clock:
                if expected:
                    self.assertEqual(long_context.stream("http://h", "m", [1], 1), expected)
                else:
                    self.assertRaises(peers.Failed, long_context.stream, "http://h", "m", [1], 1)

    def test_the_roofline_counts_the_weights_of_a_token(self):
        own = {"bytes_per_token": 10**9, "Ponder": {"median": [1, 20.0, 1], "turns": []}}
        results = {"m": own | {"read_gb_s": 40.0}, "other": own | {"read_gb_s": 80.0}, "old": own}
        shares = {"m": {"Ponder": 0.5}, "other": {"Ponder": 0.25}}
        self.assertEqual(rates.roofline(results), shares)
        table = rates.roofline_table(results).splitlines()
        self.assertIn("| m | 40.0 | 50 % |", table[2])


class Results(unittest.TestCase):
    def test_a_file_keeps_what_was_not_measured_anew(self):
        of = {"kind": "zen4-avx2", "read_gb_s": 30.0}
        old = {"machine": of, "chat": {"load": {"Ponder": {"gap": 1}, "llama.cpp": {"gap": 9}}}}
        new = {"machine": of | {"read_gb_s": 20.0}, "chat": {"load": {"Ponder": {"gap": 2}}}}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "results.json"
            self.assertEqual(compare.merged(path, old), old)
            path.write_text(json.dumps(old))
            both = compare.merged(path, new)
            other = new | {"machine": of | {"kind": "zen3-avx2"}}
            with self.assertRaises(peers.Failed):
                compare.merged(path, other)
        self.assertEqual(both["chat"]["load"], {"Ponder": {"gap": 2}, "llama.cpp": {"gap": 9}})
        # The best rate that was seen.
        self.assertEqual(both["machine"]["read_gb_s"], 30.0)

    def test_bars_are_ratios_above_one_where_ponder_is_better(self):
        self.assertEqual(picture.ratio(3.0, [1.0, 2.0, None]), 1.5)
        self.assertEqual(picture.ratio(2.0, [1.0, 4.0], more_is_better=False), 0.5)
        self.assertIsNone(picture.ratio(1.0, [None]))
        size = {"prefill": 10.0, "decode": 4.0}
        results = {
            "long": {"m": {"Ponder": {"8192": size}, "llama.cpp": {"8192": {"failed": "no"}}}},
            "start": {"m": {"Ponder": {"cold_seconds": 2.0}, "llama.cpp": {"cold_seconds": 1.0}}},
        }
        self.assertEqual(picture.bars(results), [("m: start, cold", 0.5)])


class Machines(unittest.TestCase):
    def test_kinds(self):
        for vendor, family, model, expected in [
            ("AuthenticAMD", 25, 17, "zen4-avx2"),
            ("AuthenticAMD", 25, 1, "zen3-avx2"),
            ("GenuineIntel", 6, 143, "sapphire-rapids-avx2"),
            ("GenuineIntel", 6, 1, "genuineintel-6-1-avx2"),
        ]:
            fields = {"vendor_id": vendor, "cpu family": str(family), "model": str(model)}
            self.assertEqual(machine.kind(fields, "avx2"), expected)
        self.assertEqual(machine.kind({}, "neon"), "unknown--1--1-neon")

    @unittest.skipUnless(sys.platform == "linux", "mincore and fadvise as Linux has them")
    def test_pages_in_the_cache_are_counted(self):
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(4 << 20)
            self.assertEqual(servers.resident_share(file.name), 0.0)
            file.write(bytes(1 << 20))
            file.flush()
            self.assertEqual(servers.resident_share(file.name), 0.25)


def llama_file(num_cells, layers, size):
    """A saved state: row `r` of layer `l` is `size` bytes of value `l * 16 + r`."""
    parts = [struct.pack("<3I", llama_state.MAGIC, llama_state.VERSION, num_cells)]
    parts.append(struct.pack(f"<{num_cells}i", *range(num_cells)))
    parts.append(struct.pack("<2I", 1, num_cells))
    parts += [struct.pack("<iIi", cell, 1, 0) for cell in range(num_cells)]
    parts.append(struct.pack("<4I", 0, layers, 0, 0))
    for layer in range(2 * layers):
        parts.append(struct.pack("<iQ", 1, size))
        parts += [bytes([layer * 16 + row]) * size for row in range(num_cells)]
    return b"".join(parts)


class LlamaStates(unittest.TestCase):
    def test_a_state_of_its_own_length_is_itself(self):
        data = llama_file(5, 2, 6)
        self.assertEqual(b"".join(llama_state.lengthen(data, range(5))), data)

    def test_rows_repeat_and_cells_go_on(self):
        tokens = [70, 71, 72, 73, 74, 75, 76]
        long = b"".join(llama_state.lengthen(llama_file(3, 1, 2), tokens))
        source = llama_state.Source(long)
        self.assertEqual(source.words(3)[2], 7)
        self.assertEqual(list(source.words(7)), tokens)
        self.assertEqual(source.words(2), (1, 7))
        cells = [llama_state.CELL.unpack(source.take(12)) for _ in range(7)]
        self.assertEqual(cells, [(position, 1, 0) for position in range(7)])
        source.take(16)
        for layer in range(2):
            source.take(12)
            rows = [layer * 16 + row % 3 for row in range(7)]
            self.assertEqual(bytes(source.take(14)), bytes(row for row in rows for _ in "ab"))
        self.assertEqual(source.at, len(long))

    def test_another_form_is_refused(self):
        data = llama_file(3, 1, 2)
        other = data[:4] + struct.pack("<I", 5) + data[8:]
        transposed = bytearray(data)
        transposed[12 + 12 + 8 + 36] = 1
        for broken in [other, bytes(transposed), data[:-1], data + b"0"]:
            with self.assertRaises(peers.Failed):
                b"".join(llama_state.lengthen(broken, range(4)))


class Depths(unittest.TestCase):
    def test_the_table_says_what_share_of_memory_s_rate_is_read(self):
        of = {"tokens": 8192, "kv_bytes": 10**8, "prefill": 200.0, "decode": 20.0}
        own = {"read_gb_s": 16.0, "depths": [of]}
        results = {"m": {"bytes_per_token": 3 * 10**8, "Ponder, f16": own}}
        results["m"]["llama.cpp, f16"] = {"failed": "no answer"}
        table = depth.table(results)
        # 0.4 GB a token, 20 a second.
        self.assertIn("| m, 8,192 | Ponder, f16 | 95 | 200.0 | 20.00 | 50 % |", table)
        self.assertIn("| m | llama.cpp, f16 | failed: no answer |", table)


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_file(has_head):
    """A model of two layers whose tensors are 64 bytes, its header with an array of strings."""
    entries = {"embedding_length": 64, "block_count": 2, "attention.head_count": 4}
    entries["attention.head_count_kv"] = 2
    tensors = ["token_embd.weight", "blk.0.attn_q.weight"] + ["output.weight"] * has_head
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries) + 2)
    data += string("general.architecture") + struct.pack("<I", 8) + string("llama")
    data += string("tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bc")
    for key, value in entries.items():
        data += string(f"llama.{key}") + struct.pack("<II", 4, value)
    for index, name in enumerate(tensors):
        data += string(name) + struct.pack("<IQIQ", 1, 16, 0, 64 * index)
    data += bytes(-len(data) % 32)
    return data + bytes(64 * len(tensors))


class Ggufs(unittest.TestCase):
    def test_sizes(self):
        tied, own = gguf.parse(gguf_file(False)), gguf.parse(gguf_file(True))
        self.assertEqual(set(tied.tensors.values()), {64})
        # A tied table is the head, and read whole.
        self.assertEqual(tied.bytes_per_token(), 128)
        self.assertEqual(own.bytes_per_token(), 128)
        # 2 layers of 2 heads of 16 keys and 16 values in 2 bytes.
        self.assertEqual(own.kv_bytes_per_token(), 256)
        self.assertEqual(own.metadata["tokens"], 2)

    def test_other_files_are_refused(self):
        with self.assertRaises(ValueError):
            gguf.parse(b"ELF" + bytes(40))


if __name__ == "__main__":
    unittest.main()
