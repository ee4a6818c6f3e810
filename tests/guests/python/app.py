"""A job in Python: keeps the rows whose `id` is even. Standard library only, straight on wit/."""

import array
import json
import os
import time

from wit_world import exports
from wit_world.imports import logging, output, types


def plan() -> str:
    field = {"name": "id", "data_type": "int64"}
    out = {"name": "main", "fields": [{"field": field, "origin": {"input": {"input": 0, "column": 0}}}]}
    forward = {"exchange": "forward"}
    return json.dumps({
        "version": 1,
        # Random, from a seed: the plan is the same every time.
        "name": f"evens-{os.urandom(8).hex()}",
        "nodes": [
            {"uid": "in", "name": "in", "outputs": [{"name": "main", "fields": [{"field": field, "origin": "new"}]}],
             "kind": {"source": {"binding": "in"}}},
            {"uid": "even", "name": "even", "inputs": [{"node": 0, "reads": [0], **forward}], "outputs": [out],
             "kind": {"transform": {}}},
            {"uid": "out", "name": "out", "inputs": [{"node": 1, **forward}], "kind": {"sink": {"binding": "out"}}},
        ],
    })


class Lifecycle(exports.Lifecycle):
    def plan(self) -> str:
        return plan()

    def open(self, subtask, config) -> None:
        time.sleep(3_600)  # Virtual: over at once.
        logging.log(types.Level.INFO, f"opened with {dict(config)} at {time.time()}")

    def close(self) -> None:
        pass


class Transform(exports.Transform):
    def process(self, clock, input, batch) -> None:
        ids = array.array("q", batch.columns[0].values)
        rows = array.array("I", (row for row, value in enumerate(ids) if value % 2 == 0))
        output.forward(0, rows.tobytes(), [])
