# %% [markdown]
# # 00 Exercises: one minute, to see how it works
#
# Every exercise of the course looks like the one below: a question, a cell with a stub to fill in, and a cell that checks it.
# Replace `raise NotImplementedError` by your answer, run the cell, then run the check. It says one of four things: *not attempted*, *crashed* (with your
# line), *wrong* (with what it expected, and by name if it knows the mistake) or *checks passed*. `hint("0.1")` gives a hint, and each
# further call one more. Nothing is lost by a wrong answer.

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %% [markdown]
# ## The gate equation


# %% exercise="0.1"
def remember(state, candidate, forget_gate, input_gate):
    """The state after one step.  All four (B, d), the gates between 0 and 1 -> (B, d)."""
    return forget_gate * state + input_gate * candidate


# %% [markdown] tags=["solution-only"]
# Four settings of the gates, on a state of 4 and a candidate of 6. Both open adds, both shut clears: the two gates are
# independent, and the state can grow.

# %% tags=["solution-only"]
import torch

for f, i, what in ((1, 0, "keep"), (0, 1, "replace"), (1, 1, "add"), (0, 0, "clear")):
    state, candidate, forget_gate, input_gate = torch.tensor([[4.0], [6.0], [f], [i]])
    print(f"f = {f}, i = {i}: {what:8} {remember(state, candidate, forget_gate, input_gate).item():.0f}")
