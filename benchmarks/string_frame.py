"""A table of strings through flowkit's codecs and through plain pickle, in one process: {what: seconds} as JSON.

    python string_frame.py ROWS

Both write to a new file and read it back; flowkit hashes what it writes and verifies what it reads as well. The
columns are read to their last value, so that nothing is left lazy.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import sys
import tempfile
import time

import numpy as np
import pandas as pd

from flowkit.datastore.artifacts import ArtifactReader, ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage

ROUNDS = 5


def through_flowkit(frame: pd.DataFrame, folder: str) -> pd.DataFrame:
    """Save and load a frame as a task would."""
    blobs = Blobs(LocalStorage(folder))
    return ArtifactReader(blobs).load("frame", ArtifactWriter(blobs).save("frame", frame, step="start"))


def through_pickle(frame: pd.DataFrame, folder: str) -> pd.DataFrame:
    """Save and load a frame with the standard library."""
    path = os.path.join(folder, "frame.pickle")
    with open(path, "wb") as file:
        pickle.dump(frame, file, protocol=5)
    with open(path, "rb") as file:
        return pickle.load(file)


def main(rows: int) -> None:
    """Time both, in turn, and print the medians."""
    rng = np.random.default_rng(0)
    few = np.array([f"word {i:04}" for i in range(1000)], dtype=object)[rng.integers(0, 1000, rows)]
    many = np.array([f"value {i}" for i in rng.integers(0, 1 << 40, rows)], dtype=object)
    plain = pd.DataFrame({"few": pd.Series(few, dtype=object), "many": pd.Series(many, dtype=object)})
    frames = {"Python strings": plain, "pandas strings": plain.astype("str")}
    found = {}
    for label, frame in frames.items():
        times: dict[str, list[float]] = {"flowkit": [], "pickle": []}
        for _ in range(ROUNDS + 1):
            for name, through in (("flowkit", through_flowkit), ("pickle", through_pickle)):
                with tempfile.TemporaryDirectory(dir=".") as folder:
                    began = time.perf_counter()
                    back = through(frame, folder)
                    length = int(back["many"].str.len().sum())
                    times[name].append(time.perf_counter() - began)
                    assert length == int(frame["many"].str.len().sum())
                    del back
        found.update({f"{label}, {name}": statistics.median(seconds[1:]) for name, seconds in times.items()})
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
