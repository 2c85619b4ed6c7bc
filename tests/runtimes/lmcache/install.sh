#!/usr/bin/env bash
# install.sh DIR: makes the environment that requirements.txt names, with the uv of $UV and the Python of $PYTHON.
# Nothing is resolved, so it is the same one everywhere. Done already, it does nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
done=$dir/installed.txt
cmp -s "$here/requirements.txt" "$done" && exit 0
rm -rf "$dir"
# Its own bytecode is written now, by all cores, and not by the first test.
"$UV" venv -q --python "${PYTHON:-python3}" "$dir"
"$UV" pip install -q --no-deps --compile-bytecode -p "$dir/bin/python" -r "$here/requirements.txt"
cp "$here/requirements.txt" "$done"
