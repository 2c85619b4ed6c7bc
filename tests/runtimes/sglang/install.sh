#!/usr/bin/env bash
# install.sh DIR: makes the environment that requirements.txt names; see environment.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/../environment.sh" "$here/requirements.txt" "$1"
