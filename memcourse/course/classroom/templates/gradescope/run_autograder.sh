#!/usr/bin/env bash
# Runs at every submission: grades what is in submission/ and writes results/results.json.
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
mkdir -p results
chmod go= results
cp source/not_finished.json results/results.json  # stays only where the grader is killed or cannot start
"${MEMCOURSE_PYTHON:-/opt/memcourse/bin/python}" -P -m memcourse.course.classroom.autograder CHAPTER . || true
