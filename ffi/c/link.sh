#!/bin/sh
# Links the shared library from the static one: link.sh LIBKVTIER.A OUT_DIR
#
# Not rustc: it hides symbols by a version script of its own, and linkers take only one. So the names of symbols and
# their version (kvtier.map), the soname and what is exported are decided here. `ABI` is the library's, not the
# package's, version: a program finds every library that it can work with.
set -eu
ABI=1
here=$(dirname "$0")
archive=$1
out=$2
mkdir -p "$out"
"${CC:-cc}" -shared -o "$out/libkvtier.so.$ABI" \
    -Wl,-soname,"libkvtier.so.$ABI" -Wl,--version-script="$here/kvtier.map" \
    -Wl,--gc-sections -Wl,-z,defs -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack \
    -Wl,--whole-archive "$archive" -Wl,--no-whole-archive -lgcc_s -lpthread -lm -ldl
ln -sf "libkvtier.so.$ABI" "$out/libkvtier.so"
