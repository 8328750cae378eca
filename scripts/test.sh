#!/usr/bin/env bash
# Everything that proves Puck, one part after the other; a part that fails does not keep the others from running.
# `test.sh` runs all, `test.sh e2e` the end-to-end parts only, `test.sh soak` the long form of what crashes, fills up and goes
# away. Needs `make image`.
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

pytest() { # SUITE ARGUMENTS...
    local suite=tests/$1
    shift
    "${around[@]}" $python -m pytest -c "$suite/pytest.ini" --rootdir "$suite" -q -p no:cacheprovider "$@"
}
around=()

on_s3() { # SUITE ARGUMENTS...
    local around=($python tests/e2e/with_seaweedfs.py)
    pytest "$@"
}

encrypted() { # SUITE ARGUMENTS...
    (umask 077 && target/release/puck key generate >"$state/keys")
    PUCK_ENCRYPTION_KEY_FILE=$state/keys pytest "$@"
}

what=${1:-all}
$python tests/e2e/leaks.py save "$state/before"
if [[ $what == soak ]]; then
    export PUCK_SOAK=1
    part "soak: suites, killed agents and servers, what is full, a bucket that is away" pytest soak tests/soak -s "${@:2}"
    if (($# == 1)); then
        part "soak on S3: killed servers" on_s3 soak tests/soak/test_killed_server.py
        part "end to end on S3" on_s3 e2e tests/e2e
    fi
else
    [[ $what == e2e ]] || part "unit tests" cargo test --release --workspace --no-fail-fast
    part "end to end: command line, Python, durability, isolation" pytest e2e tests/e2e
    part "end to end: JavaScript" $python tests/e2e/with_server.py "$node" --test --test-reporter=spec --test-concurrency=2 "tests/e2e/js/*.test.js"
    part "end to end on S3: checkpoints, sleep" on_s3 e2e tests/e2e/test_python_checkpoints.py tests/e2e/test_sleep.py
    part "end to end, encrypted: history, sleep" encrypted e2e tests/e2e/test_history.py tests/e2e/test_sleep.py
    part "soak, short form" pytest soak tests/soak -s
fi
part "nothing left behind" $python tests/e2e/leaks.py check "$state/before"

if ((${#failed[@]})); then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all passed in $SECONDS s"
