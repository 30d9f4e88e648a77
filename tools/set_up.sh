# What ./demo, ./test and ./soak share: get the few things they need, by apt and into .venv.
# To be sourced by a POSIX sh that has set -eu and stands in the clone.

# Commands for the end of the script, last first; each keeps going if one fails.
at_exit_commands=
at_exit() {
    at_exit_commands="$1
$at_exit_commands"
}
run_at_exit() {
    status=$?
    trap - EXIT HUP INT TERM
    set +e
    eval "$at_exit_commands"
    exit "$status"
}
trap run_at_exit EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

say() {
    printf '%s\n' "$*"
}

give_up() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || give_up "containers need root: sudo ./${0##*/}"
}

# Services that come with a package shall not start. policy-rc.d is asked by all of Debian's
# ways to start one; what was there before comes back.
keep_services_from_starting() {
    policy=/usr/sbin/policy-rc.d
    # (What a killed set-up left there is ours, not what was there before.)
    [ ! -e $policy ] || [ -e $policy.before-woodfrog ] || mv $policy $policy.before-woodfrog
    at_exit 'allow_services'
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
}
allow_services() {
    [ -n "${policy:-}" ] || return 0
    rm -f $policy
    [ ! -e $policy.before-woodfrog ] || mv $policy.before-woodfrog $policy
    policy=
}

has() {
    case $1 in
        python3)
            # 3.11 or newer, able to make a virtual environment with pip in it.
            python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null
            ;;
        cni) [ -x /usr/lib/cni/bridge ] ;;
        netavark) [ -x /usr/lib/podman/netavark ] ;;
        libc-headers) [ -e /usr/include/stdio.h ] ;;
        *) command -v "$1" > /dev/null 2>&1 ;;
    esac
}

# install_packages COMMAND=PACKAGE[,PACKAGE] …: install the packages whose command is missing.
install_packages() {
    packages=
    for pair in "$@"; do
        has "${pair%%=*}" || packages="$packages $(printf %s "${pair#*=}" | tr , ' ')"
    done
    [ -n "$packages" ] || return 0
    command -v apt-get > /dev/null || give_up "missing, and there is no apt to get them:$packages"
    say "installing by apt (nothing is removed, no service is started):$packages"
    keep_services_from_starting
    apt_log=$(mktemp)
    at_exit 'rm -f "$apt_log"'
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    apt-get -qq update > /dev/null || say "(some package lists could not be fetched)"
    # shellcheck disable=SC2086 # words are meant
    apt-get -qq install -y --no-install-recommends --no-remove -o Dpkg::Use-Pty=0 $packages \
        > "$apt_log" 2>&1 || {
        cat "$apt_log" >&2
        give_up "apt-get install failed:$packages"
    }
    allow_services
    for pair in "$@"; do
        has "${pair%%=*}" || give_up "still missing after the installation: ${pair%%=*}"
    done
}

# make_environment [EXTRA]: a virtual environment in .venv that runs this clone.
make_environment() {
    what=".${1:+[$1]}"
    # An environment that another place's Python made, or that was copied, does not run.
    .venv/bin/python -c 'import pip' 2> /dev/null || {
        say "making .venv"
        rm -rf .venv
        python3 -m venv .venv
    }
    wanted="$(cksum < pyproject.toml) $PWD"
    for stamp in .venv/has-"$what" .venv/has-".[dev]"; do
        [ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ] || return 0
    done
    say "installing woodfrog ($what) into .venv by pip"
    # The build's own tool first, so that pip needn't fetch it into one more environment.
    for part in 'setuptools>=70.1' "--no-build-isolation --editable $what"; do
        # shellcheck disable=SC2086 # words are meant
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --root-user-action=ignore $part
    done
    printf %s "$wanted" > ".venv/has-$what"
}
