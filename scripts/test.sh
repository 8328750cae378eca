#!/usr/bin/env bash
# Everything that proves Puck, one part after the other; a part that fails does not keep the others from running.
# `test.sh` runs all, `test.sh e2e` the end-to-end parts only. Needs `make image`.
set -uo pipefail
cd "$(dirname "$0")/.."

(($(id -u) == 0)) || { echo "the tests start sprites, which needs root: sudo make test" >&2; exit 1; }

export PYTHONDONTWRITEBYTECODE=1
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
failed=()

part() { # NAME COMMAND...
    local name=$1 started=$SECONDS
    shift
    echo "=== $name"
    "$@" || failed+=("$name")
    echo "--- $name took $((SECONDS - started)) s"
}

python=.venv/bin/python
node=$PWD/tests/e2e/js/node_modules/.bin/node

$python tests/e2e/leaks.py save "$state/before"
[[ ${1:-all} == e2e ]] || part "unit tests" cargo test --release --workspace
part "end to end: command line, Python, durability, isolation" $python -m pytest -c tests/e2e/pytest.ini --rootdir tests/e2e tests/e2e -q -p no:cacheprovider
part "end to end: JavaScript" $python tests/e2e/with_server.py "$node" --test --test-reporter=spec --test-concurrency=2 "tests/e2e/js/*.test.js"
part "nothing left behind" $python tests/e2e/leaks.py check "$state/before"

if ((${#failed[@]})); then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all passed in $SECONDS s"
