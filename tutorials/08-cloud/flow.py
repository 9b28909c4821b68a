"""Which classifier reads handwritten digits best?  The same question on the laptop, on AWS Batch and on Kubernetes.

The digits are scikit-learn's own: 1,797 images of 8 by 8 pixels. Nothing here says where the steps run.
"""

import os
import socket

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from flowkit import FlowSpec, Parameter, resources, retry, step

GRID = [
    {"model": "logistic regression", "C": 1.0},
    {"model": "support vectors", "C": 10.0, "gamma": 0.03},
    *({"model": "nearest neighbours", "n_neighbors": k} for k in (1, 25)),
]


def classifier(model: str, **settings):
    """Return an untrained classifier."""
    if model == "nearest neighbours":
        return KNeighborsClassifier(**settings)
    kind = {"logistic regression": LogisticRegression, "support vectors": SVC}[model]
    return make_pipeline(StandardScaler(), kind(**settings, max_iter=2000))


def place() -> str:
    """Return where this code runs."""
    if "AWS_BATCH_JOB_ID" in os.environ:
        job = os.environ["AWS_BATCH_JOB_ID"]
        return f"AWS Batch, job {job}" if len(job) < 20 else f"AWS Batch, job {job[:8]}…{job[36:]}"
    if "KUBERNETES_SERVICE_HOST" in os.environ or "JOB_COMPLETION_INDEX" in os.environ:
        return f"Kubernetes, pod {socket.gethostname()}"
    return "this machine"


class CloudFlow(FlowSpec):
    """Train each classifier of a grid wherever the run says, and choose by images that none of them has seen."""

    seed = Parameter("seed", default=7, help="of the random split")

    @step
    def start(self):
        """Load the images, and split them: 60 % to train, 40 % to choose by."""
        digits = load_digits()
        self.images, self.labels = digits.data, digits.target
        self.train, self.choose = train_test_split(np.arange(len(self.images)), train_size=0.6, random_state=self.seed)
        self.grid = GRID
        self.next(self.fit, foreach="grid")

    # What a task needs: on a cluster it is ordered, on the laptop it is no more than a word.
    @resources(cpu=1, memory=1000)
    @retry(times=1, minutes_between_retries=0)
    @step
    def fit(self):
        """Train one classifier of the grid."""
        self.label = ", ".join(str(value) if key == "model" else f"{key}={value}" for key, value in self.input.items())
        self.model = classifier(**self.input).fit(self.images[self.train], self.labels[self.train])
        self.score = self.model.score(self.images[self.choose], self.labels[self.choose])
        self.place = place()
        print(f"{self.label}: {self.score:.1%}, on {self.place}")
        self.next(self.join)

    @step
    def join(self, inputs):
        """Choose the best."""
        ranked = sorted(inputs, key=lambda task: task.score, reverse=True)
        self.scores = {task.label: task.score for task in ranked}
        self.places = {task.label: task.place for task in ranked}
        self.best, self.model = ranked[0].label, ranked[0].model
        self.next(self.end)

    @step
    def end(self):
        print(f"{self.best} reads {self.scores[self.best]:.1%} of the images right.")


if __name__ == "__main__":
    CloudFlow()
