#!/usr/bin/env bash
# environment.sh REQUIREMENTS DIR: makes the environment that REQUIREMENTS names, with the uv of $UV and the Python of $PYTHON.
# Nothing is resolved, so it is the same one everywhere. Done already, it does nothing.
set -euo pipefail
requirements=$1
dir=$2
done=$dir/installed.txt
cmp -s "$requirements" "$done" && exit 0
rm -rf "$dir"
# Its own bytecode is written now, by all cores, and not by the first test or server.
"$UV" venv -q --python "${PYTHON:-python3}" "$dir"
"$UV" pip install -q --no-deps --compile-bytecode -p "$dir/bin/python" -r "$requirements"
cp "$requirements" "$done"
