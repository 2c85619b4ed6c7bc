#!/bin/sh
# Installs header, both libraries and the pkg-config file: install.sh LIBKVTIER.A VERSION PREFIX
set -eu
here=$(dirname "$0")
archive=$1
version=$2
prefix=$3
mkdir -p "$prefix/include" "$prefix/lib/pkgconfig"
"$here/link.sh" "$archive" "$prefix/lib"
cp "$here/include/kvtier.h" "$prefix/include/"
cp "$archive" "$prefix/lib/libkvtier.a"
sed -e "s|@PREFIX@|$prefix|" -e "s|@VERSION@|$version|" "$here/kvtier.pc.in" >"$prefix/lib/pkgconfig/kvtier.pc"
