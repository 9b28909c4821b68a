"""Look at the latest run of DigitsFlow: python look.py, after python flow.py run."""

from flowkit import Flow

run = Flow("DigitsFlow").latest_successful_run
print(f"{run.pathspec}, right on the images to choose by:")
for label, score in run.data.scores.items():
    print(f"    {score:6.1%}  {label}{'  <- chosen' if label == run.data.best else ''}")
for label, reason in run.data.failures.items():
    print(f"  failed  {label}: {reason}")

for task in run["fit"]:
    if task.current_attempt > 0:
        print(f"{task.pathspec} was tried {task.current_attempt + 1} times")

print()
print(run.data.answer)
ties = sum(score == max(run.data.scores.values()) for score in run.data.scores.values())
if ties > 1:
    print(f"({ties} classifiers share the best score to choose by; the first of them in the grid is taken.)")

# The model is an artifact too, and so are the images: look at one that it got wrong.
if run.data.mistakes:
    mistake = run.data.mistakes[0]
    image = run.data.images[mistake["image"]]
    assert run.data.model.predict([image])[0] == mistake["read"]
    print(f"\nSomebody wrote the digit {mistake['wrote']}, and it reads {mistake['read']}:")
    for row in image.reshape(8, 8):
        print("    " + "".join(2 * " .:-=+*#%@"[int(pixel / 16.0 * 9)] for pixel in row).rstrip())
