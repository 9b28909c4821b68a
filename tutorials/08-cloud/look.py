"""Look at the latest run of CloudFlow: python look.py, or python stack.py run look.py for the runs in the cloud."""

from flowkit import Flow

run = Flow("CloudFlow").latest_successful_run
print(f"{run.pathspec}:")
for label, score in run.data.scores.items():
    print(f"    {score:6.1%}  {label:<34}  {run.data.places[label]}")

# The model was fitted elsewhere; it is an artifact like any other, and here it works as there.
model, images, labels = run.data.model, run["start"].task.data.images, run["start"].task.data.labels
right = (model.predict(images) == labels).mean()
print(f"The chosen one, {run.data.best}, reads {right:.1%} of all images, those it was trained on included.")
