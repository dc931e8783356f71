#!/bin/sh
# Makes the federation's certificates where they are missing or end within 30 days, and hands each service its own
# and the revocation list.
#   certificates.sh                  once at each `docker compose up`
#   certificates.sh revoke ROLE ID   afterwards nobody accepts that identity any more, until it is renewed
#   certificates.sh renew ROLE ID    a new certificate for the same identity
set -eu
umask 077

issue() { # ROLE ID [--host HOST]
    # Who was put out does not come back by itself at the next start.
    [ ! -e "/authority/$1-$2/revoked" ] || return 0
    # Asked first, for it takes a hundredth of the time.
    openssl x509 -checkend 2592000 -noout -in "/authority/$1-$2/tls.crt" >/dev/null 2>&1 ||
        fednano certs issue /authority "$@" --renew-within 30 >/dev/null
}

# Whole or not at all: a service may read while this writes.
put() { # FILE FOLDER
    mkdir -p "$2"
    if ! cmp -s "$1" "$2/${1##*/}"; then
        cp "$1" "$2/.new" && mv "$2/.new" "$2/${1##*/}"
    fi
}

hand_over() { # HOLDER FOLDER
    for file in "/authority/$1/tls.key" "/authority/$1/tls.crt" "/authority/$1/ca.crt" /authority/ca.crl; do
        put "$file" "$2"
    done
}

case ${1:-prepare} in
    prepare) ;;
    revoke) fednano certs revoke /authority "$2" "$3" && touch "/authority/$2-$3/revoked" ;;
    renew)
        case $2 in
            server | aggregator) fednano certs issue /authority "$2" "$3" --host "$3" ;;
            *) fednano certs issue /authority "$2" "$3" ;;
        esac
        rm -f "/authority/$2-$3/revoked"
        ;;
    *) echo "usage: certificates.sh [revoke ROLE ID | renew ROLE ID]" >&2; exit 2 ;;
esac

fednano certs init /authority >/dev/null
issue server server --host server
issue aggregator aggregator --host aggregator
issue operator operator
hand_over server-server /identities/server
hand_over aggregator-aggregator /identities/aggregator
hand_over operator-operator /identities/operator
number=1
while [ "$number" -le "$CLIENT_SLOTS" ]; do
    issue client "client-$number"
    hand_over "client-client-$number" "/identities/clients/client-$number"
    number=$((number + 1))
done
echo "certificates are in place: server, aggregator, operator, client-1 to client-$CLIENT_SLOTS"
