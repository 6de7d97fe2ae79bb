#!/usr/bin/env bash
# Runs once, as root, when Gradescope builds the image: Python, and the course in an environment of its own.
set -euo pipefail
source="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

if [ -z "${MEMCOURSE_PYTHON:-}" ]; then  # set: the course is installed there already
    home=/opt/memcourse
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    for version in 3.11 3.12 3.13; do  # the first is the one that constraints.txt is tested with
        apt-get install -y "python$version" "python$version-venv" && break
    done
    "python$version" -m venv "$home"
    wheel="$(echo "$source"/memcourse-*.whl)"
    "$home/bin/pip" install --no-cache-dir -c "$source/constraints.txt" "${wheel}[course]"
    # Answers run as another user, with a copy of the library that holds no answers: the rest is for root alone.
    chmod -R go= "$home"/lib/python*/site-packages/memcourse "$home"/lib/python*/site-packages/memcourse-*
fi
chmod -R go= "$source"
