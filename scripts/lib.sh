# Shared by the scripts beside it: a Python, a virtual environment, and the servers tests use.
# POSIX sh; sourced with `root` set to the repository's directory.

# A bare environment (env -i) has no PATH to hand on, and a user's often lacks sbin.
PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin
export PATH
venv=${VENV:-$root/.venv}
# pip would warn that it cannot keep a cache.
if [ ! -w "${HOME:-/nonexistent}" ]; then PIP_NO_CACHE_DIR=1 && export PIP_NO_CACHE_DIR; fi

say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }

# Whether the program $1 is a Python of at least 3.11 (a pyenv shim may exist and run nothing).
good_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        good_python "$PYTHON" || fail "PYTHON=$PYTHON is not a Python >= 3.11"
        python=$PYTHON
        return
    fi
    for python in python3 python3.13 python3.12 python3.11 python3.14 python \
        "${HOME:-/nonexistent}"/.pyenv/versions/3.1[1-9]*/bin/python3 /opt/*/bin/python3.1[1-9]; do
        if good_python "$python"; then return; fi
    done
    fail "no Python >= 3.11 found: install one, or name it: PYTHON=/path/to/python3 sh scripts/..."
}

may_install() { is_root && [ -z "${NO_APT:-}" ] && command -v apt-get >/dev/null 2>&1; }

# apt-get, quiet unless it fails; once more after an update, for images without package lists.
apt_install() {
    log=$(mktemp)
    if apt_try "$@" >"$log" 2>&1 || { apt-get update -q && apt_try "$@"; } >"$log" 2>&1; then
        rm -f "$log"
        return
    fi
    tail -n 15 "$log" >&2
    rm -f "$log"
    return 1
}
apt_try() { DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" </dev/null; }

make_venv() {
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
    find_python
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        may_install || fail "$python cannot make virtual environments: apt-get install $package (as root), then again"
        say "installing $package (apt-get)"
        apt_install "$package" || apt_install python3-venv || fail "apt-get install $package did not work"
    fi
    say "making a virtual environment in $venv ($("$python" --version 2>&1))"
    mkdir -p "$(dirname "$venv")" && rm -rf "$venv" && "$python" -m venv "$venv" ||
        fail "cannot make $venv: run this in a clone that is yours, or set VENV=/a/directory/of/yours"
}

# install_package EXTRAS: the package from this checkout, with "[dev]" or "". Runs pip only when
# what is to be installed has changed since.
install_package() {
    make_venv
    wanted=$(cd "$root" && cat setup.cfg pyproject.toml | cksum)
    for stamp in "$venv/.installed-[dev]" "$venv/.installed-$1"; do
        if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted $root" ]; then return; fi
    done
    say "installing taskq$1 from $root (pip; the first time takes a minute)"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --root-user-action=ignore \
        -e "$root$1" || fail "pip could not install taskq$1; is the package index reachable?"
    printf '%s' "$wanted $root" >"$venv/.installed-$1"
}

# Debian starts a server when it is installed, unless a policy forbids it. Tests start their own.
policy=/usr/sbin/policy-rc.d
forbid_services() {
    if [ -e "$policy" ] && ! grep -q 'taskq scripts' "$policy"; then mv "$policy" "$policy.saved-by-taskq"; fi
    printf '#!/bin/sh\n# taskq scripts: removed when the installation has ended\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}
allow_services() {
    rm -f "$policy"
    if [ -e "$policy.saved-by-taskq" ]; then mv "$policy.saved-by-taskq" "$policy"; fi
}

install_servers() {
    missing=
    if [ ! -e /usr/lib/rabbitmq/bin/rabbitmq-env ] && ! command -v rabbitmq-server >/dev/null 2>&1; then
        missing="rabbitmq-server"
    fi
    if ! command -v redis-server >/dev/null 2>&1 && ! command -v valkey-server >/dev/null 2>&1; then
        missing="$missing redis-server"
    fi
    if [ -z "$missing" ]; then return; fi
    missing=${missing# }
    if ! may_install; then
        say "not installed: $missing. Their tests are left out; as root: apt-get install $missing"
        return
    fi
    say "installing $missing (apt-get; not started as services)"
    trap allow_services EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    forbid_services
    apt_install $missing || say "apt-get install $missing did not work: their tests are left out"
    allow_services
    trap - EXIT INT TERM
    if [ -d /run/systemd/system ]; then
        for service in $missing; do systemctl disable -q "$service" >/dev/null 2>&1 || :; done
    fi
}

# Whether there is a Java of at least 17, which Kafka's broker needs.
good_java() {
    number=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
    [ "${number:-0}" -ge 17 ]
}

# Kafka's broker for the tests: jars from Maven's repository, as Maven's settings say. Optional.
install_kafka() {
    pom=$root/tests/kafka/pom.xml
    kafka=$venv/kafka-$(sed -n '/kafka_2.13/,/version/s/.*<version>\(.*\)<.*/\1/p' "$pom")
    if [ -n "${KAFKA_BOOTSTRAP:-}" ] || [ -d "$kafka" ]; then return; fi
    if ! good_java || ! command -v mvn >/dev/null 2>&1; then
        if may_install; then
            say "installing default-jre-headless and maven (apt-get)"
            apt_install default-jre-headless maven || :
        fi
        if ! good_java || ! command -v mvn >/dev/null 2>&1; then
            say "no Java 17 with Maven: tests that need a real Kafka are left out"
            return
        fi
    fi
    say "fetching Kafka's broker (mvn; the first time takes half a minute)"
    set -- -q -B -f "$pom" dependency:copy-dependencies "-DoutputDirectory=$kafka.new" -DincludeScope=runtime
    if [ ! -w "${HOME:-/nonexistent}" ]; then set -- "-Dmaven.repo.local=$venv/maven" "$@"; fi
    rm -rf "$kafka.new"
    log=$(mktemp)
    # A repository that does not answer must not hold the tests up for long.
    if limited 300 mvn "$@" >"$log" 2>&1 </dev/null; then
        mv "$kafka.new" "$kafka"
    else
        tail -n 5 "$log" >&2
        say "mvn could not fetch Kafka: tests that need a real one are left out"
    fi
    rm -f "$log"
}
limited() { if command -v timeout >/dev/null 2>&1; then timeout "$@"; else shift && "$@"; fi; }

# Where scripts/rabbitmq4 puts it; tests/servers.py looks there too.
rabbitmq4_directory() { echo "${TASKQ_RABBITMQ4:-/var/cache/taskq-tests/rabbitmq4}"; }

# Only as root: the tests of a second version of RabbitMQ are left out where it cannot be had.
install_rabbitmq4() {
    if [ -e "$(rabbitmq4_directory)/made-by-taskq" ] || ! may_install; then return; fi
    say "making a RabbitMQ 4 in $(rabbitmq4_directory) (debootstrap; once, a minute or two)"
    limited 420 sh "$root/scripts/rabbitmq4" || say "no RabbitMQ 4: its tests are left out"
}

cores() { nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2; }
