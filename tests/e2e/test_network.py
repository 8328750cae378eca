"""A sprite reaches what its host reaches: the Debian mirror and the package indexes that the host uses."""


def test_apt_installs_a_package(sh):
    sh("sudo apt-get update -q", timeout=180)
    sh("sudo apt-get install -y -q hello", timeout=180)
    assert sh("hello") == "Hello, world!\n"


def test_pip_installs_a_package(sh):
    assert "Successfully installed" in sh("pip install --no-cache-dir six", timeout=120)
    sh("python3 -m venv env && env/bin/pip install --no-cache-dir six", timeout=120)
    assert sh("env/bin/python -c 'import six; print(six.__name__)'") == "six\n"


def test_names_resolve_and_the_sprite_knows_its_own(sh, name):
    assert sh("hostname").strip() == name
    assert sh("getent hosts localhost; getent hosts $(hostname)")
    assert sh("sudo true 2>&1") == ""


def test_loopback_works_and_ping_too(sh):
    sh("ping -c1 -W2 127.0.0.1")
    sh("(python3 -m http.server 9000 >/dev/null 2>&1 </dev/null &) ; for n in $(seq 100); do curl -sf localhost:9000 >/dev/null && exit 0; sleep 0.1; done; exit 1")
