"""Which classifier reads handwritten digits best?  Trains eleven, lives through two accidents, and picks one.

The digits are scikit-learn's own: 1,797 images of 8 by 8 pixels, each a digit that somebody wrote by hand.
"""

import os
import signal

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from flowkit import FlowSpec, Parameter, catch, current, retry, step

GRID = [
    *({"model": "logistic regression", "C": c} for c in (0.01, 0.1, 1.0)),
    *({"model": "support vectors", "C": c, "gamma": gamma} for c in (1.0, 10.0) for gamma in (0.01, 0.03)),
    # The last of these fails: it asks for more neighbours than there are images to train on.
    *({"model": "nearest neighbours", "n_neighbors": k} for k in (1, 5, 25, 2000)),
]


def classifier(model: str, **settings):
    """Return an untrained classifier."""
    if model == "nearest neighbours":
        return KNeighborsClassifier(**settings)
    kind = {"logistic regression": LogisticRegression, "support vectors": SVC}[model]
    return make_pipeline(StandardScaler(), kind(**settings, max_iter=2000))


def interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was seen in n cases (Wilson's, which holds close to 1 as well)."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return middle - half, middle + half


class DigitsFlow(FlowSpec):
    """Train each classifier of a grid, choose by the validation images, judge by the test images."""

    shuffle = Parameter("shuffle", default=True, help="split the images at random; else in the order of the file")
    seed = Parameter("seed", default=7, help="of the random split")
    accident = Parameter("accident", default=True, help="kill one task at its first attempt, to see it tried again")

    @step
    def start(self):
        """Load the images, and split them: 60 % to train, 20 % to choose, 20 % to judge."""
        digits = load_digits()
        chance = {"shuffle": True, "random_state": self.seed} if self.shuffle else {"shuffle": False}
        train, rest = train_test_split(np.arange(len(digits.data)), train_size=0.6, **chance)
        choose, judge = train_test_split(rest, train_size=0.5, **chance)
        self.images, self.labels = digits.data, digits.target
        self.train, self.choose, self.judge = train, choose, judge
        print(f"{len(train):,} images to train, {len(choose):,} to choose, {len(judge):,} to judge")
        self.grid = GRID
        self.next(self.fit, foreach="grid")

    # Decorators add to what a step does. @retry tries again what may go better the next time: here only where the
    # process was killed, as by a machine that runs out of memory. @catch goes on without the step when it has failed
    # for good, and keeps the exception in self.failure (None where all went well).
    @catch(var="failure")
    @retry(times=2, minutes_between_retries=0, on=["killed", "oom", "crash"])
    @step
    def fit(self):
        """Train one classifier of the grid."""
        self.settings = self.input
        self.label = ", ".join(str(value) if key == "model" else f"{key}={value}" for key, value in self.input.items())
        if self.accident and self.index == 0 and current.retry_count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.model = classifier(**self.settings).fit(self.images[self.train], self.labels[self.train])
        self.score = self.model.score(self.images[self.choose], self.labels[self.choose])
        print(f"{self.label}: {self.score:.1%} of the images to choose by")
        self.next(self.join)

    @step
    def join(self, inputs):
        """Choose the best, by images that it has not seen."""
        # What a failed task assigned before it failed is kept: its label, but no score.
        self.failures = {task.label: str(task.failure.exception) for task in inputs if task.failure}
        fitted = sorted((task for task in inputs if not task.failure), key=lambda task: task.score, reverse=True)
        self.scores = {task.label: task.score for task in fitted}
        self.best, self.model = fitted[0].label, fitted[0].model
        # Artifacts that all inputs agree on are taken over: the images and the split.
        self.merge_artifacts(inputs, include=["images", "labels", "judge"])
        self.next(self.end)

    @step
    def end(self):
        """Judge the chosen one, once, by images that had no part in training or choosing."""
        guesses = self.model.predict(self.images[self.judge])
        self.mistakes = [
            {"image": int(i), "wrote": int(self.labels[i]), "read": int(guess)}
            for i, guess in zip(self.judge, guesses, strict=True)
            if guess != self.labels[i]
        ]
        self.accuracy = 1 - len(self.mistakes) / len(guesses)
        low, high = interval(self.accuracy, len(guesses))
        self.answer = (
            f"The best on the images to choose by is {self.best} ({self.scores[self.best]:.1%}). Of {len(guesses)} "
            f"images never used before it reads {self.accuracy:.1%}; the truth lies between {low:.1%} and {high:.1%}."
        )
        print(self.answer)


if __name__ == "__main__":
    DigitsFlow()
