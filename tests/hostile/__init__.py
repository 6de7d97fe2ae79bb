"""Hostile submissions, and what must be true after each: no point forged, no neighbour harmed, no grader crashed,
nothing left behind.

    python -m tests.hostile                       # all of them at every level that this system offers
    python -m tests.hostile --level limits NAME   # some of them at one

Each is harmless to the machine that runs it even where the sandbox fails: what it fills, forks or waits for has an
end of its own, and what it changes, kills or calls was made for it (place.py).
"""

from .forging import FORGING
from .lying import LYING
from .notebooks import NOTEBOOKS
from .resources import RESOURCES
from .stealing import STEALING
from .talking import TALKING

GROUPS = {
    "resources": RESOURCES,
    "lying": LYING,
    "stealing": STEALING,
    "forging": FORGING,
    "talking": TALKING,
    "notebooks": NOTEBOOKS,
}
SUBMISSIONS = {submission.name: submission for group in GROUPS.values() for submission in group}
