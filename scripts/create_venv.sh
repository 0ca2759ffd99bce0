#!/bin/sh
# Make the virtual environment $1 with Python $2, or with the first suitable one of this machine.
# What is missing is said in one line. Does nothing where a working environment is already there.
venv=$1
wanted=$2

"$venv/bin/python" -m pip --version >/dev/null 2>&1 && exit 0

# Real vLLM for CPU comes in its tested version for 3.11 and newer, so 3.10 is the second choice.
is_from() {
    "$1" -c "import sys; sys.exit(not (3, $2) <= sys.version_info < (3, 15))" >/dev/null 2>&1
}
for lowest in 11 10; do
    for python in ${wanted:-python3 python3.13 python3.12 python3.11 python3.14 python3.10}; do
        is_from "$python" "$lowest" && break 2
    done
    python=
done

if [ -z "$python" ]; then
    found=$("${wanted:-python3}" --version 2>/dev/null || echo "no ${wanted:-python3}")
    echo "setup: found $found, need Python 3.10 to 3.14: install one, or name it: make PYTHON=/path/to/python3" >&2
    exit 1
fi
if ! "$python" -c "import ensurepip, venv" >/dev/null 2>&1; then
    echo "setup: $python lacks its venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2
    exit 1
fi
if [ "$(df -Pk . | awk 'NR == 2 { print $4 }')" -lt 1048576 ]; then
    echo "setup: less than 1 GiB is free in $PWD: free some space" >&2
    exit 1
fi
echo "setup: $venv with $("$python" --version)"
if ! reason=$("$python" -m venv "$venv" 2>&1); then
    echo "setup: $venv could not be made: $(echo "$reason" | tail -n 1)" >&2
    exit 1
fi
