"""Grades results and kept trees. Grades are remembered in a file beside the results."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import grade
from records import Progress, append, open_to_append, read_lines, read_problems

GRADERS = 2
WHOLE = ("stop", "length")


def grade_key(problem, row):
    """Changes with whatever the grade depends on."""
    scorer = problem["kind"] == "text" and grade.own_scorer(problem["dataset"]) is not None
    material = json.dumps([problem, row["text"], scorer], sort_keys=True)
    return hashlib.sha256(material.encode("utf-8", "surrogatepass")).hexdigest()


def graded(path, problems, results):
    """Whether each result is right, by its key. Failed requests are wrong."""
    cache_path = Path(path).with_suffix(".graded.jsonl")
    cache = {row["key"]: row["correct"] for row in read_lines(cache_path)}
    keys = {of: grade_key(problems[row["id"]], row) for of, row in results.items() if not row["error"]}
    todo = {key: results[of] for of, key in keys.items() if key not in cache}
    with open_to_append(cache_path) as out, ThreadPoolExecutor(GRADERS) as pool:
        jobs = {}
        for key, row in todo.items():
            jobs[pool.submit(grade.grade, problems[row["id"]], row["text"])] = key, row
        for job in as_completed(jobs):
            key, row = jobs[job]
            cache[key] = job.result()
            append(out, {"arm": row["arm"], "id": row["id"], "key": key, "correct": cache[key]})
    return {of: of in keys and cache[keys[of]] for of in results}


def write_outcomes(args):
    """Grades the whole answers of the trees in a file and writes the trees with their outcomes."""
    problems = {problem["id"]: problem for problem in read_problems(args.problems, args.limit, args.only_tested)}
    traces = [trace for trace in read_lines(args.outcomes) if trace["tags"] and trace["tags"][0] in problems]
    with open(args.out, "w", encoding="utf-8") as out, ThreadPoolExecutor(GRADERS) as pool:
        progress = Progress("grading", len(traces))
        for trace in traces:
            problem = problems[trace["tags"][0]]
            texts = node_texts(trace)
            whole = [(node, text) for node, text in zip(trace["nodes"], texts) if node["end"] in WHOLE]
            jobs = [(node, pool.submit(grade.grade, problem, text)) for node, text in whole]
            for node, job in jobs:
                node["outcome"] = float(job.result())
            if not args.only_mixed or len({node["outcome"] for node, _ in jobs}) > 1:
                append(out, trace)
            progress.step()


def node_texts(trace):
    """The text from the root to each node of a tree."""
    texts = []
    for node in trace["nodes"]:
        before = texts[node["parent"]] if node["parent"] is not None else ""
        texts.append(before + node["text"])
    return texts
