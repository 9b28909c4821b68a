"""How well are digits read that arrived today?  Runs every night, and whenever new digits arrive.

The 1,797 digits of scikit-learn arrive here in 30 portions, one a day. Each night two classifiers learn from all that
came before, and are judged by the new ones.
"""

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from flowkit import FlowSpec, Parameter, exit_hook, retry, schedule, step, trigger

PORTION = 60
MODELS = {"nearest neighbours": KNeighborsClassifier(3), "logistic regression": LogisticRegression(max_iter=3000)}


def call_somebody(run):
    print(f"{run.pathspec} did not work: somebody should look.")


def numbers(labels):
    """Return labels as numbers. What the readers of day 13 have sent is written out in words."""
    return [int(label) for label in labels]


# None of these says anything to a run on the laptop. They count once the flow is deployed.
@schedule(cron="30 2 * * *", timezone="America/New_York")
@trigger(event={"name": "digits_arrived", "parameters": {"day": "day"}})
@exit_hook(on_error=[call_somebody])
class NightlyFlow(FlowSpec):
    """Learn from the digits of all days before, and read those of today."""

    day = Parameter("day", default=7, help="which portion is today's")

    @step
    def start(self):
        """Fetch the digits of today and of the days before."""
        digits = load_digits()
        old, new = slice(0, PORTION * self.day), slice(PORTION * self.day, PORTION * (self.day + 1))
        self.images, self.labels = digits.data[old], digits.target[old]
        self.new_images, self.new_labels = digits.data[new], [str(label) for label in digits.target[new]]
        if self.day == 13:
            self.new_labels = [label.replace("7", "seven") for label in self.new_labels]
        self.models = list(MODELS)
        self.next(self.fit, foreach="models")

    @retry(times=2)
    @step
    def fit(self):
        """Learn."""
        self.name = self.input
        self.model = MODELS[self.name].fit(self.images, self.labels)
        self.next(self.judge)

    @step
    def judge(self, inputs):
        """Read the new digits, by each of the two."""
        self.merge_artifacts(inputs, include=["new_images", "new_labels"])
        wanted = numbers(self.new_labels)
        self.scores = {each.name: float(each.model.score(self.new_images, wanted)) for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        """Say which did better."""
        self.best = max(self.scores, key=self.scores.get)
        print(f"Day {self.day}: {self.best} reads {self.scores[self.best]:.0%} of {len(self.new_labels)} new digits.")


if __name__ == "__main__":
    NightlyFlow()
