#!/usr/bin/env bash
# Installs what building, testing and running Puck needs on Debian 12, by the ordinary clients. Does nothing for what is there.
# `setup.sh bench` brings what the disk is measured with and compared to, beside that.
set -euo pipefail
cd "$(dirname "$0")/.."

# To build.
packages=(build-essential git pkg-config)
# To run: base image, volumes, machines' network.
packages+=(debian-archive-keyring e2fsprogs erofs-utils iproute2 kmod mmdebstrap nftables procps util-linux)
# To test.
packages+=(busybox-static curl python3 python3-venv tmux zstd)
command -v npm >/dev/null || packages+=(npm)
# To measure the disk. Of Postgres only the programs are wanted, no database of the host's.
if [[ ${1:-} == bench ]]; then
    packages+=(fio fuse3 postgresql-15)
    [[ -e /etc/postgresql-common/createcluster.conf || $EUID != 0 ]] || install -D /dev/stdin /etc/postgresql-common/createcluster.conf <<<"create_main_cluster = false"
fi

missing=()
for package in "${packages[@]}"; do
    [[ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || missing+=("$package")
done
if ((${#missing[@]})); then
    echo "setup: apt-get install ${missing[*]}"
    sudo=()
    ((EUID == 0)) || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq "${missing[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing. Debian's is too old; install Rust 1.95 or newer with rustup (https://rustup.rs), then run this again." >&2
    exit 1
fi

# A stamp holds the checksum of what was asked for, so that a changed list is installed and an unchanged one is not.
stamped() { # STAMP FILE COMMAND...: runs COMMAND unless STAMP says that it has run for this FILE.
    local stamp=$1 file=$2 sum
    shift 2
    sum=$(sha256sum <"$file")
    [[ -f $stamp && $(<"$stamp") == "$sum" ]] && return
    "$@"
    echo "$sum" >"$stamp"
}

install_python() {
    echo "setup: pip install -r tests/e2e/requirements.txt"
    [[ -x .venv/bin/pip ]] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt
}

install_node() {
    echo "setup: npm ci in tests/e2e/js"
    npm ci --prefix tests/e2e/js --silent --no-fund --no-audit
}

stamped .venv/.installed tests/e2e/requirements.txt install_python
install_peers() {
    echo "setup: pip install -r bench/requirements.txt"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt
}

[[ ${1:-} != bench ]] || stamped .venv/.installed-bench bench/requirements.txt install_peers
stamped tests/e2e/js/node_modules/.installed tests/e2e/js/package-lock.json install_node
